"""HTML fragments shared by notebooks and the app: progress of a run, memory use, faults."""

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ..errors import Fault
from ..estimates import readable_bytes, readable_seconds
from .gauges import Gauge

STYLE = """
h2 { font-size: 1.4em; font-weight: normal; margin: 8px 0 0; }
.preview { overflow-x: auto; max-width: 100%; }
.preview table { min-width: 900px; }
table { border-collapse: collapse; font-size: 0.9em; }
th, td { text-align: start; padding: 2px 10px 2px 0; vertical-align: top; }
.bar { height: 8px; border-radius: 4px; background: rgba(128,128,128,0.25); overflow: hidden; margin: 4px 0; }
.bar > div { height: 100%; background: #0072b2; }
.gauge { display: grid; grid-template-columns: 1fr auto; font-size: 0.9em; margin: 4px 4px 4px 0; }
.gauge .bar { grid-column: 1 / -1; }
.log, .code { max-height: 240px; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.log, .code { font-size: 0.8em; }
.figures { font-size: 0.85em; }
h2 .figures { font-size: 0.6em; }
h3 { font-size: 1.05em; margin: 4px 0; overflow-wrap: anywhere; }
.state { font-size: 0.8em; font-weight: normal; padding: 2px 8px; border-radius: 10px; }
.state { color: #fff; background: #595959; }
.state.running { background: #005b96; }
.state.done { background: #00674b; }
.state.failed, .state.unreadable { background: #a3290b; }
.state.cancelled, .state.interrupted { background: #7a5200; }
"""

# measures of a training, with their names and formats
_MEASURES = {"loss": ("loss", ".3g"), "fvu": ("FVU", ".3f"), "l0": ("L0", ".1f")}


def title(name: str, state: str, what: str) -> str:
    """Return the name of a run with its state and a description."""
    badge = f"<span class='state {state}'>{escape(state)}</span>"
    return f"<h3>{escape(name)} {badge}</h3><span class='figures'>{escape(what)}</span>"


def bar(label: str, share: float, *, role: str = "progressbar") -> str:
    """Return a bar that shows a fraction from 0 to 1."""
    attributes = f"aria-label='{escape(label, quote=True)}' aria-valuemin='0' aria-valuemax='100'"
    return (
        f"<div class='bar' role='{role}' {attributes} aria-valuenow='{share * 100:.0f}'>"
        f"<div style='width:{share * 100:.1f}%'></div></div>"
    )


def gauges(measured: Iterable[Gauge]) -> str:
    """Return a bar per gauge."""
    return "".join(_gauge(gauge) for gauge in measured)


def _gauge(gauge: Gauge) -> str:
    busy = "" if gauge.utilisation is None else f", {gauge.utilisation}% busy"
    used = f"{readable_bytes(gauge.used)} of {readable_bytes(gauge.total)}{busy}"
    drawn = bar(gauge.label, gauge.share, role="meter")
    return f"<div class='gauge'><span>{escape(gauge.label)}</span><span>{used}</span>{drawn}</div>"


def figures(status: Mapping[str, Any], *, is_running: bool) -> str:
    """Return the progress and throughput of a run.

    Parameters
    ----------
    status
        Fields of :class:`actkit.store.run_folder.Status`.
    is_running
        Whether the run is in progress, so that its estimate of the remaining time is still valid.
    """
    shown = []
    if total := status.get("total_samples"):
        shown.append(f"{status.get('samples', 0):,} of {total:,} samples")
    if total := status.get("total_steps"):
        shown.append(f"{status.get('step', 0):,} of {total:,} steps")
    if is_running and status.get("state") != "running":
        shown.append(str(status.get("state")))
    if status.get("samples_per_second"):
        shown.append(f"{status['samples_per_second']:,.1f} samples/s")
    if status.get("tokens_per_second"):
        shown.append(f"{status['tokens_per_second']:,.0f} tokens/s")
    if is_running and status.get("eta_seconds") is not None:
        shown.append(f"{readable_seconds(status['eta_seconds'])} left")
    for name in ("allocated", "reserved"):
        if size := (status.get("device_bytes") or {}).get(name):
            shown.append(f"{readable_bytes(size)} {name} on device")
    known = [name for name in _MEASURES if status.get(name) is not None]
    shown += [f"{_MEASURES[name][0]} {status[name]:{_MEASURES[name][1]}}" for name in known]
    if known:
        shown.append(f"{status.get('n_dead', 0):,} dead")
    if updated := status.get("updated"):
        shown.append(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(updated)))
    return f"<span class='figures'>{escape(' · '.join(shown))}</span>"


def counts(samples: Mapping[str, int]) -> str:
    """Return the number of samples of each kind."""
    listed = " · ".join(f"{name} {count:,}" for name, count in samples.items())
    return f"<div class='figures'>{escape(listed)}</div>"


def pairs(lines: Iterable[tuple[str, str]]) -> str:
    """Return a table of named values."""
    rows = (f"<tr><th scope='row'>{escape(name)}</th><td>{escape(what)}</td></tr>" for name, what in lines)
    return f"<table>{''.join(rows)}</table>"


def faults(reported: Iterable[Fault], heading: str) -> str:
    """Return a list of faults, each with its hint."""
    listed = "".join(f"<li>{escape(str(fault))}</li>" for fault in reported)
    return f"<div role='alert'><p>{escape(heading)}</p><ul>{listed}</ul></div>"


def short_model(name: object) -> str:
    """Return the last two parts of a model's id or path."""
    return "/".join(str(name).split("/")[-2:])


def call_arguments(*names: str, **options: Any) -> str:
    """Return the arguments of a call as Python code."""
    return ", ".join([*names, *(f"{name}={value!r}" for name, value in options.items())])


def language_dims(statistic: str) -> tuple[str, ...]:
    """Return the dimensions of a statistic that are languages, of which some can be selected."""
    return ("train", "test") if statistic == "transfer" else ("language",)


def statistic_code(
    draw: str,
    statistics: Sequence[str],
    options: Mapping[str, Any],
    how: Mapping[str, Any],
    languages: list[str],
) -> str:
    """Return Python code that computes statistics of ``cube`` and draws them.

    Parameters
    ----------
    draw
        Name of the plotting function.
    statistics
        Names of the statistics, which share their options.
    options, how
        Options of the statistics, and of the plotting function.
    languages
        The languages to show; all if empty.
    """
    lines = []
    for statistic in statistics:
        lines.append(f"{statistic} = actkit.{statistic}({call_arguments('cube', **options)})\n")
        if languages:
            selection = call_arguments(**dict.fromkeys(language_dims(statistic), languages))
            lines.append(f"{statistic} = {statistic}.sel({selection})\n")
    return "".join(lines) + f"actkit.plots.{draw}({call_arguments(*statistics, **how)})\n"
