"""Files, requests and network of runs in parts."""

import importlib
import math
import re
from pathlib import Path

import pytest

from actkit import plan
from actkit.errors import InputError
from actkit.shared_estimates import FileCounts, SharedTime, count_files
from actkit.store.layout import CUBE
from actkit.testing import synthetic
from tests.plans import plan_of

ROOT = Path(__file__).parents[1]


def test_files_are_those_that_are_written(tmp_path: Path) -> None:
    numbers = synthetic(n_samples=10, window=4)
    writer = numbers.create(tmp_path)
    before = {path for path in (tmp_path / CUBE).rglob("*") if path.is_file()}
    for window in range(numbers.plan.n_windows):
        writer.write(window, numbers.part(window))
    written = {path for path in (tmp_path / CUBE).rglob("*") if path.is_file()} - before
    counts = count_files(numbers.plan, tuple(numbers.values), layers={"residual": 3}, value_bytes=4)
    assert counts.files == len(written)
    assert counts.requests == len(written)  # none of them is large


def test_large_files_take_several_requests() -> None:
    shape = plan_of([10_000], layers=34, hidden=2560)
    counts = count_files(shape, ["residual", "norm"], layers={"residual": 34}, value_bytes=2)
    assert counts.windows == 1
    assert counts.largest == pytest.approx(10_000 * 34 * 2560 * 2 * 0.75)
    assert counts.requests_per_window == math.ceil(counts.largest / 2**25) + 2 + 1 + 2
    assert str(counts).startswith("4, 4 a window, the largest about 1.3 GB; as objects")


@pytest.mark.parametrize(
    ("seconds", "network", "binds", "total"),
    [
        (6400.0, 200.0, "computing", 100.0),
        (6400.0, 1.0, "network", 800.0),
        (6400.0, None, "", 100.0),
        (None, 1.0, "", 800.0),
        (None, None, "", None),
    ],
)
def test_the_slower_of_computing_and_network_binds(
    seconds: float | None, network: float | None, binds: str, total: float | None
) -> None:
    time = SharedTime(64, 10**11, 8000, seconds, network)
    assert (time.binds, time.total) == (binds, total)
    assert ("bottleneck" in str(time)) == bool(binds)
    assert total is None or time.requests_per_second == 8000 / total


def test_unknown_times_are_said_to_be_unknown() -> None:
    assert str(SharedTime(4, 10**9, 100)) == "unknown without a trial"
    assert FileCounts(0, 3, 3, 0).files == 0


@pytest.mark.slow
def test_a_plan_says_what_binds(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    asked = {"model": str(tiny_model), "data": str(prompts), "out": str(tmp_path / "run")}
    lines = dict(plan(**asked, trial=False, parts=4, network=0.5).lines())
    assert re.match(r"[\d,]+, 12 a window, the largest about", lines["files"])
    assert lines["parts"].startswith("4: the network of 0.5 Gbit/s takes")
    assert "parts" not in dict(plan(**asked, trial=False).lines())
    with pytest.raises(InputError, match="parts: is 0"):
        plan(**asked, trial=False, parts=0, network=float("nan"))


def test_the_table_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    table = importlib.import_module("generated").machines()
    (windows,) = re.findall(r"windows \| ([\d,]+) of 16 prompts", table)
    # by hand: 174,080 bytes of values a token, windows of 512 MiB of about 2,990 tokens
    assert int(windows.replace(",", "")) == pytest.approx(33_400, rel=0.05)
    (size,) = re.findall(r"cube \| ([\d.]+) TB", table)
    assert float(size) == pytest.approx((17.4 + 0.5 + 0.4) * 0.75, rel=0.03)
    rows = [line for line in table.splitlines() if "Gbit/s |" in line]
    assert [row.split(" | ")[3] for row in rows] == ["network", "network", "computing"]
