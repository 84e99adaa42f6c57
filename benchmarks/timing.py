"""Time actions in turns, in this process or in children of their own, and print tables."""

import argparse
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

MB = 10**6


@dataclass(frozen=True)
class Child:
    """What a function did in a process of its own: what it returned, its time, and the most memory held."""

    value: Any
    seconds: float
    peak: int


def seconds(function: Callable[..., object], *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def interleaved(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    between: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time each action once a round, one after the other; a first round warms up and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            gc.collect()
            took = seconds(action)
            between()
            if turn:
                times[name].append(took)
    return times


def in_child(function: Callable[..., Any], *arguments: Any, **options: Any) -> Child:
    """Run a function in a new process, in which nothing but its module has been imported."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, function, arguments, options).result()


def _measured(function: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> Child:
    started = time.perf_counter()
    value = function(*arguments, **options)
    took = time.perf_counter() - started
    # not getrusage: its maximum is that of the parent, where the parent was larger when it forked
    return Child(value, took, memory("VmHWM"))


def memory(field: str = "VmRSS") -> int:
    """Return what Linux says of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def spread(times: Sequence[float], digits: int = 2) -> str:
    """Show a median, and the least and the most."""
    middle, least, most = statistics.median(times), min(times), max(times)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def ratio(times: Sequence[float], to: Sequence[float]) -> float:
    """Return the ratio of two medians."""
    return statistics.median(times) / statistics.median(to)


def megabytes(size: float) -> str:
    return f"{size / MB:,.0f}"


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a Markdown table; all have the columns of the first."""
    print()
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in rows[0]) + " |", flush=True)


def print_machine() -> None:
    """Print what the figures depend on; the load tells whether anything else is running."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    packages = ("torch", "transformers", "zarr", "numcodecs", "dask", "xarray")
    print(f"{os.cpu_count()} cores of {names[0].split(':')[1].strip()}, {host:.0f} GB")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print(f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}, load average {os.getloadavg()[0]:.2f}")


def parser(description: str | None, *, limit: int | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Return the options that the programs share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--limit", type=int, default=limit, help=f"samples; {limit or 'by model'} by default")
    made.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds; {rounds} by default")
    return made
