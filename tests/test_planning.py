"""Samples are cut into windows and batches: each once, in bounds, the same way every time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import actkit
from actkit.config import MB, Config
from actkit.planning import AUTO_PROMPTS, AUTO_TOKENS, Plan, estimate, make_plan
from actkit.schema import SAVABLE
from actkit.testing import write_cube


def plan_of(lengths: Any, *, layers: int = 2, hidden: int = 8, **options: Any) -> Plan:
    config = Config(model="m", data="d", out="o", **options)
    return make_plan(config, np.array(lengths, dtype=np.int32), layers=layers, hidden=hidden)


many_lengths = st.lists(st.integers(1, 300) | st.integers(1, 5000), min_size=1, max_size=60)
many_plans = st.builds(
    plan_of,
    many_lengths,
    layers=st.integers(1, 48),
    hidden=st.sampled_from([16, 768, 5376]),
    batch_size=st.just("auto") | st.integers(1, 20),
    window_samples=st.integers(1, 80),
    window_mb=st.sampled_from([1, 16, 512]),
)


@given(many_plans)
def test_every_sample_is_in_one_batch_of_one_window(plan: Plan) -> None:
    windows = [list(plan.batches_of(window)) for window in range(plan.n_windows)]
    for window, batches in enumerate(windows):
        assert sorted(np.concatenate(batches)) == list(plan.samples_of(window))
    everything = np.concatenate([batch for batches in windows for batch in batches])
    assert sorted(everything) == list(range(plan.shape.sample))
    assert sum(len(batches) for batches in windows) == plan.n_batches
    assert set(plan.batches) == set(range(plan.n_batches))


@given(many_plans)
def test_chunks_divide_windows_that_divide_the_samples(plan: Plan) -> None:
    sizes = [len(plan.samples_of(window)) for window in range(plan.n_windows)]
    assert plan.window % plan.chunk == 0
    assert set(sizes[:-1]) <= {plan.window}
    assert 1 <= sizes[-1] <= plan.window
    assert sum(sizes) == plan.shape.sample


@given(
    many_lengths, st.integers(1, 48), st.sampled_from([16, 768, 5376]), st.integers(1, 80), st.integers(1, 64)
)
def test_windows_stay_within_their_memory(
    lengths: list[int], layers: int, hidden: int, window_samples: int, window_mb: int
) -> None:
    plan = plan_of(lengths, layers=layers, hidden=hidden, window_samples=window_samples, window_mb=window_mb)
    assert plan.window_bytes == np.empty((layers, plan.window, max(lengths), hidden), np.float32).nbytes
    assert plan.window_bytes <= window_mb * MB or plan.window == 1
    assert plan.window <= window_samples
    # no smaller than need be
    allowed = min(window_mb * MB * plan.window // plan.window_bytes, window_samples, len(lengths))
    assert plan.window > allowed // 2


@given(many_lengths, st.integers(1, 20))
def test_batches_of_a_given_size_are_full_but_for_the_last(lengths: list[int], size: int) -> None:
    plan = plan_of(lengths, batch_size=size, window_samples=len(lengths))
    sizes = [len(batch) for window in range(plan.n_windows) for batch in plan.batches_of(window)]
    full, rest = divmod(plan.window, size)
    per_window = [size] * full + [rest] * (rest > 0)
    assert sizes[: len(per_window)] == per_window


@given(many_lengths)
def test_batches_of_automatic_size_stay_within_their_tokens(lengths: list[int]) -> None:
    plan = plan_of(lengths)
    for window in range(plan.n_windows):
        for batch in plan.batches_of(window):
            positions = len(batch) * plan.lengths[batch].max()
            assert len(batch) == 1 or positions <= AUTO_TOKENS
            assert len(batch) <= AUTO_PROMPTS


@given(many_plans)
def test_padded_tokens_are_those_of_the_batches(plan: Plan) -> None:
    batches = [batch for window in range(plan.n_windows) for batch in plan.batches_of(window)]
    assert plan.padded_tokens == sum(len(batch) * plan.lengths[batch].max() for batch in batches)
    assert plan.tokens == sum(plan.lengths.tolist())
    assert plan.tokens <= plan.padded_tokens


@given(size=st.sampled_from([1, 2, 4, 8]), batches=st.sampled_from([1, 2, 4, 8]), data=st.data())
def test_full_batches_by_length_pad_no_more_than_those_in_file_order(
    size: int, batches: int, data: st.DataObject
) -> None:
    # with a smaller last batch, the best order is not always the sorted one
    count = size * batches
    lengths = np.array(data.draw(st.lists(st.integers(1, 100), min_size=count, max_size=count)))
    plan = plan_of(lengths, batch_size=size)
    assert plan.n_windows == 1
    assert plan.padded_tokens <= lengths.reshape(batches, size).max(axis=1).sum() * size


def test_the_same_prompts_give_the_same_plan() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 500)
    one, two = plan_of(lengths), plan_of(lengths)
    assert (one.window, one.chunk, one.shape) == (two.window, two.chunk, two.shape)
    np.testing.assert_array_equal(one.batches, two.batches)


def test_prompts_of_one_length_keep_the_order_of_the_file() -> None:
    plan = plan_of([5, 7] * 50, batch_size=40)
    batches = [sorted(batch.tolist()) for batch in plan.batches_of(0)]
    assert batches == [
        [*range(1, 81, 2)],
        sorted([*range(81, 100, 2), *range(0, 60, 2)]),
        [*range(60, 100, 2)],
    ]


def test_batches_of_short_prompts_are_bounded_too() -> None:
    plan = plan_of([1] * 100)
    assert [len(batch) for batch in plan.batches_of(0)] == [AUTO_PROMPTS, 100 - AUTO_PROMPTS]


def test_dense_bytes_are_those_of_the_arrays() -> None:
    cube = actkit.open_cube(write_cube(n_samples=12, window=4))
    variables = (*SAVABLE, "nonfinite")
    plan = plan_of(cube.n_tokens.values, layers=3, hidden=16, window_samples=4)
    found = estimate(plan, variables, value_bytes=4, weights_bytes=0)
    assert found.dense == sum(cube[name].nbytes for name in variables)


@pytest.mark.parametrize(("value_bytes", "left"), [(2, 0.75), (4, 0.9)])
def test_estimates_grow_with_what_is_stored(value_bytes: int, left: float) -> None:
    plan = plan_of([10, 20, 30], layers=4, hidden=64)
    small = estimate(plan, ["norm"], value_bytes=value_bytes, weights_bytes=10**6)
    large = estimate(plan, ["norm", "residual"], value_bytes=value_bytes, weights_bytes=10**6)
    assert small.disk < large.disk < large.dense
    # pads take no disk: 60 of 90 positions are tokens
    assert large.disk - small.disk == int(4 * 60 * 64 * value_bytes * left)
    assert large.host - small.host == 2 * plan.window_bytes
    assert estimate(plan, ["norm"], value_bytes=value_bytes, weights_bytes=0).host == small.host - 10**6
