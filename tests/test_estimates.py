"""Estimates of disk space, memory and time of a run."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import actkit
from actkit.batch_plan import Plan
from actkit.estimates import Estimate, Rates, Time, disk_bytes, estimate
from actkit.schema import SAVED, VARIABLES
from actkit.testing import synthetic, write_cube
from tests.plans import plan_of


def test_dense_bytes_are_those_of_the_arrays() -> None:
    cube = actkit.open_cube(write_cube(n_samples=12, window=4))
    variables = (*SAVED, "nonfinite")
    plan = plan_of(cube.n_tokens.values, layers=3, hidden=16, window_samples=4)
    result = estimate(plan, variables, layers={"residual": 3}, value_bytes=4, host_bytes=0)
    assert result.dense == sum(cube[name].nbytes for name in variables)


def test_dense_bytes_of_everything_are_those_of_the_arrays() -> None:
    # the length of strings is not known in advance
    numbers = synthetic(n_samples=10, everything=True)
    layers = {"residual": 3, "attention": 3, "mlp": 2}
    result = estimate(numbers.plan, tuple(numbers.values), layers=layers, value_bytes=4, host_bytes=0)
    assert result.dense == sum(values.nbytes for values in numbers.values.values() if values.dtype != object)


@pytest.mark.parametrize(("value_bytes", "left"), [(2, 0.75), (4, 0.9)])
def test_estimates_grow_with_what_is_stored(value_bytes: int, left: float) -> None:
    plan = plan_of([10, 20, 30], layers=4, hidden=64)
    keywords: Any = {"layers": {"residual": 4}, "value_bytes": value_bytes}
    small = estimate(plan, ["norm"], host_bytes=10**6, **keywords)
    large = estimate(plan, ["norm", "residual"], host_bytes=10**6, **keywords)
    assert small.disk < large.disk < large.dense
    # padding takes no disk space: 60 of 90 positions are tokens
    assert large.disk - small.disk == int(4 * 60 * 64 * value_bytes * left)
    assert estimate(plan, ["norm"], host_bytes=0, **keywords).host == small.host - 10**6


def test_two_windows_are_in_memory_where_there_are_two() -> None:
    keywords: Any = {"layers": {"residual": 2}, "value_bytes": 4, "host_bytes": 0}
    one, two, many = (plan_of([10, 20, 30], window_samples=size) for size in (4, 2, 1))
    assert (one.n_windows, two.n_windows, many.n_windows) == (1, 2, 3)
    host = [estimate(plan, ["residual"], **keywords).host for plan in (one, two, many)]
    position = 4 * 2 * 8
    rest = host[0] - 60 * position
    # the first and the third of three share a buffer
    assert host[1:] == [rest + 60 * position, rest + (30 + 20) * position]


def test_variables_that_are_padded_are_held_again_while_they_are_written() -> None:
    # 2 layers × 8 values × 4 bytes × 3 samples, and zarr's copies of one of them at a time
    plan, keywords = plan_of([10, 20, 30]), {"layers": {"residual": 2}, "value_bytes": 4, "host_bytes": 0}
    host = [estimate(plan, names, **keywords).host for names in ([], ["pooled"], ["pooled", "last"])]
    assert host[1] - host[0] == 192 + int(2.5 * 192)
    assert host[2] - host[1] == 192


def cost(plan: Plan, *variables: str, **layers: int) -> tuple[int, int]:
    """Return the disk and the dense bytes of some variables."""
    result = estimate(plan, variables, layers=layers, value_bytes=2, host_bytes=0)
    return result.disk, result.dense


def test_layers_at_which_a_component_is_absent_take_no_disk() -> None:
    plan = plan_of([10, 20, 30], layers=4, hidden=64)
    disk, dense = cost(plan, "residual", residual=4)
    assert disk == int(4 * 60 * 64 * 2 * 0.75)
    assert cost(plan, "mlp", residual=4, mlp=1) == (disk // 4, dense)
    assert cost(plan, "attention", "mlp", residual=4, mlp=1, attention=3) == (disk, 2 * dense)


def test_positions_that_are_not_kept_take_no_disk() -> None:
    of_all, of_one = plan_of([10, 20, 30]), plan_of([10, 20, 30], stored=[1, 1, 1])
    disk, dense = cost(of_all, "residual", residual=2)
    assert cost(of_one, "residual", residual=2) == (disk // 20, dense // 30)
    # a sample that may grow by ten tokens is estimated with all ten of them
    grown = plan_of([10, 20, 30], stored=[20, 30, 40])
    assert cost(grown, "residual", residual=2) == (disk * 90 // 60, dense * 40 // 30)


def test_patches_are_counted_by_the_shape_of_their_group() -> None:
    plan = plan_of([10, 20, 30], tower=(5, 256, 64))
    variables = ("vision/residual", "vision/pooled")
    disk, dense = cost(plan, *variables, residual=2)
    assert dense == 4 * 5 * 3 * (256 * 64 + 64)
    # every image has all its patches, and a mean over them carries all bits
    assert disk == int(5 * 3 * 256 * 64 * 2 * 0.75) + int(5 * 3 * 64 * 4 * 0.9)


def test_strings_are_not_estimated() -> None:
    assert cost(plan_of([10, 20, 30]), "token_text", "generated") == (0, 0)


# estimates from the rates of a trial

RATES = Rates(
    starting=0.0,
    reading=0.0,
    computing=1.0,
    at_once=1,
    depth=2,
    crossing=0.0,
    writing=0.0,
    describing=0.0,
    committing=0.0,
    busy=0.0,
    shares_cores=False,
)


def by(rates: Rates, plan: Plan, depth: int = 2, *names: str) -> Estimate:
    return estimate(
        plan,
        names or ["residual"],
        layers={"residual": 2},
        value_bytes=4,
        host_bytes=10**12,
        depth=depth,
        rates=rates,
    )


def time_of(plan: Plan, depth: int = 2, **rates: Any) -> Time:
    result = by(replace(RATES, **rates), plan, depth).time
    assert result is not None
    return result


def test_without_a_trial_nothing_is_known_of_time() -> None:
    keywords: Any = {"layers": {}, "value_bytes": 4, "host_bytes": 0}
    assert estimate(plan_of([10]), ["norm"], **keywords).time is None


def test_a_trial_says_what_compresses_to_what_and_what_is_held() -> None:
    plan = plan_of([10, 20, 30])
    arithmetic = estimate(plan, ["residual", "norm"], layers={"residual": 2}, value_bytes=4, host_bytes=0)
    rates = replace(RATES, compressed={"residual": 0.5, "norm": 2.0}, strings=100.0, host=1000, device=77)
    result = by(rates, plan, 2, "residual", "norm")
    norm = disk_bytes(plan, VARIABLES["norm"], layers={}, value_bytes=4)
    assert result.disk == (arithmetic.disk - norm) // 2 + 2 * norm + 300
    assert result.dense == arithmetic.dense
    assert result.host == 1000 + plan.held_bytes + int(3.5 * 4 * 2 * 3 * 30)
    assert result.device == 77


# windows of one prompt; each of its tokens takes a second
SINGLE: Any = {"window_samples": 1, "batch_size": 1}


def test_one_window_is_computed_and_then_written() -> None:
    plan = plan_of([10, 20, 30], batch_size=1)
    assert time_of(plan) == Time(0, 60, 0, 0, 60)
    assert time_of(plan, starting=5, committing=7).total == 5 + 60 + 7
    assert time_of(plan, describing=2).total == 60 + 3 * 2


def test_windows_are_written_beside_the_next() -> None:
    plan = plan_of([10, 10, 10], **SINGLE)
    assert time_of(plan, committing=4) == Time(0, 30, 0, 12, 34)
    # written at 30, 50 and 70: the third could be computed from 30 on, when the first buffer is free
    assert time_of(plan, committing=20) == Time(0, 30, 0, 60, 70)


def test_a_window_waits_for_its_buffer() -> None:
    plan = plan_of([10, 10, 10, 10], **SINGLE)
    # one is always being written
    assert time_of(plan, committing=30).total == 130
    # the third begins when the first is written, at 40
    slow = plan_of([10, 10, 70, 70], **SINGLE)
    assert time_of(slow, committing=30).total == 40 + 70 + 70 + 30


def test_bytes_take_their_time_to_be_written_and_to_cross() -> None:
    plan = plan_of([10, 20, 30], batch_size=1)
    size = disk_bytes(plan, VARIABLES["residual"], layers={"residual": 2}, value_bytes=4)
    assert time_of(plan, writing=0.5).writing == 0.5 * size
    crossing = time_of(plan, crossing=0.25)
    assert crossing.crossing == 0.25 * 4 * 2 * 8 * 60
    # copies overlap with computing
    assert crossing.total == crossing.crossing
    assert time_of(plan, crossing=1e-6).total == 60


def test_cores_that_compress_compute_less() -> None:
    plan = plan_of([10, 10, 10], **SINGLE)
    keywords: Any = {"committing": 6.0, "reading": 3.0}
    assert time_of(plan, busy=0.5, **keywords).total == 36
    # a second for each that a core reads or compresses; half of one where two batches are computed at once
    shared = time_of(plan, busy=0.5, shares_cores=True, **keywords)
    assert shared.total == pytest.approx(36 + 3 * 3 + 2 * 3)
    shared = time_of(plan, busy=0.5, shares_cores=True, at_once=2, **keywords)
    assert shared.computing == pytest.approx(30 / 2 / 0.87)  # each is slower beside another
    assert shared.total == pytest.approx(shared.computing + 6 + (3 * 3 + 2 * 3) / 2)
    # samples that take no time to read still have to be read
    assert time_of(plan, reading=100.0).total == 300


def test_fewer_blocks_take_less_time() -> None:
    plan = plan_of([10, 20, 30])
    assert time_of(plan, depth=1).computing == time_of(plan).computing / 2


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    window=st.integers(1, 8),
    committing=st.floats(0, 100),
    writing=st.floats(0, 1),
    shares=st.booleans(),
)
def test_a_run_takes_no_less_than_its_parts_and_no_more_than_all_of_them(
    lengths: list[int], window: int, committing: float, writing: float, shares: bool
) -> None:
    plan = plan_of(lengths, window_samples=window)
    result = time_of(plan, committing=committing, writing=writing, shares_cores=shares, busy=1.0)
    assert result.total >= max(result.computing, result.writing) * (1 - 1e-9)
    assert result.total <= (result.computing + result.writing * (2 if shares else 1)) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("parts", "binds", "text"),
    [
        ((12, 230, 0, 40), "computing", "4 min 10 s: 3 min 50 s computing, 40 s writing concurrently"),
        ((12, 30, 0, 240), "writing", "4 min 10 s: 30 s computing, 4 min 0 s writing concurrently"),
        (
            (12, 30, 239, 40),
            "crossing",
            "4 min 10 s: 30 s computing, 3 min 59 s copying to the host, 40 s writing concurrently",
        ),
    ],
)
def test_the_time_says_what_binds(parts: tuple[int, int, int, int], binds: str, text: str) -> None:
    time = Time(*parts, total=250)
    assert time.binds == binds
    bottleneck = "copying" if binds == "crossing" else binds
    assert str(time) == f"{text}; {bottleneck} is the bottleneck"
