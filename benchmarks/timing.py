"""Timing of alternating actions, in this process or in child processes, and printing of tables."""

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
    """Result of a function in a separate process: its return value, duration and peak memory."""

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
    """Time each action once per round, one after the other; a first warm-up round is not counted."""
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
    """Run a function in a new process that has imported only its module."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, function, arguments, options).result()


def _measured(function: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> Child:
    started = time.perf_counter()
    value = function(*arguments, **options)
    took = time.perf_counter() - started
    # not getrusage, whose maximum includes the parent at the time of the fork
    return Child(value, took, memory("VmHWM"))


def memory(field: str = "VmRSS") -> int:
    """Return this process's memory according to Linux, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def spread(times: Sequence[float], digits: int = 2) -> str:
    """Format a median with the minimum and maximum."""
    middle, least, most = statistics.median(times), min(times), max(times)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def ratio(times: Sequence[float], to: Sequence[float]) -> float:
    """Return the ratio of two medians."""
    return statistics.median(times) / statistics.median(to)


def megabytes(size: float) -> str:
    return f"{size / MB:,.0f}"


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a Markdown table with the columns of the first row."""
    print()
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in rows[0]) + " |", flush=True)


def print_machine() -> None:
    """Print the conditions of the measurement; the load shows whether anything else is running."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    packages = ("torch", "transformers", "zarr", "numcodecs", "dask", "xarray")
    print(f"{os.cpu_count()} cores of {names[0].split(':')[1].strip()}, {host:.0f} GB")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print(f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}, load average {os.getloadavg()[0]:.2f}")


def parser(description: str | None, *, limit: int | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Return the options that the programs share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument(
        "--limit", type=int, default=limit, help=f"number of samples (default: {limit or 'by model'})"
    )
    made.add_argument(
        "--rounds", type=int, default=rounds, help=f"number of timed rounds (default: {rounds})"
    )
    return made
