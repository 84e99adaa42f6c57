"""Samples are divided into windows and batches: each once, within bounds, reproducibly."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.batch_plan import CHUNK_BYTES, CHUNK_TOKENS, Plan, Shape, footprint, make_plan
from actkit.config import Config
from actkit.regular_files import MB
from actkit.schema import VARIABLES, VISION, component_of
from actkit.testing import synthetic
from tests.plans import many_lengths, many_plans, many_towers, plan_of


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
def test_windows_divide_the_samples(plan: Plan) -> None:
    sizes = [len(plan.samples_of(window)) for window in range(plan.n_windows)]
    assert set(sizes[:-1]) <= {plan.window}
    assert 1 <= sizes[-1] <= plan.window
    assert sum(sizes) == plan.shape.sample


# inner chunks

# samples of 32 tokens × 512 values × 4 bytes, which are 64 kB
FOUR = CHUNK_BYTES // 2**16
FULL = [variable for variable in VARIABLES.values() if variable.is_full]


@given(many_plans)
def test_chunks_divide_windows_and_are_about_as_large_as_they_should_be(plan: Plan) -> None:
    for variable in FULL:
        if variable.group and plan.vision is None:
            continue
        samples, tokens = plan.chunk_of(variable)
        assert plan.window % samples == 0
        one = 4 * tokens * plan.shape_of(variable)[variable.dims[-1]]
        assert samples == 1 or samples * one <= CHUNK_BYTES
        # no smaller than necessary
        assert 2 * samples * one > CHUNK_BYTES or plan.window % (2 * samples)


@given(many_plans)
def test_tiles_of_tokens_are_of_one_size_and_as_few_as_can_be(plan: Plan) -> None:
    for variable in FULL:
        if variable.group and plan.vision is None:
            continue
        _, tokens = plan.chunk_of(variable)
        axis = plan.shape_of(variable).token
        assert 1 <= tokens <= CHUNK_TOKENS
        tiles = -(-axis // tokens)
        assert tiles == -(-axis // CHUNK_TOKENS)
        # equal chunks add less than one position each
        assert tokens * tiles - axis < tiles


@pytest.mark.parametrize(
    ("tokens", "hidden", "chunk"),
    [
        (64, 512, (FOUR, 32)),
        (32, 512, (FOUR, 32)),
        # two chunks of 17 rather than one of 32 and one of 1
        (33, 512, (FOUR, 17)),
        (33, 1024, (FOUR // 2, 17)),
        (1, 16, (16, 1)),
        (300, 512, (FOUR, 30)),
        # a single sample exceeds the intended size of a chunk
        (64, 2**15, (1, 32)),
    ],
)
def test_chunks_by_example(tokens: int, hidden: int, chunk: tuple[int, int]) -> None:
    plan = plan_of([tokens] * 16, hidden=hidden)
    assert plan.chunk_of(VARIABLES["residual"]) == chunk


def test_chunks_of_patches_divide_a_window_that_is_no_power_of_two() -> None:
    # a window of three, one of six without the tower
    options: Any = {"layers": 64, "hidden": 64, "tower": (64, 64, 64), "window_samples": 6}
    plan = plan_of([1] * 20, memory_budget=6, **options)
    assert plan.window == 2
    assert plan.chunk_of(VARIABLES["vision/residual"]) == (2, 32)
    assert plan.chunk_of(VARIABLES["residual"]) == (2, 1)


# windows and memory


def parts_of(plan: Plan, layers: int, hidden: int, arrays: int, tower: Any) -> list[int]:
    """Return the bytes of each window without padding, as NumPy counts them."""
    sizes = []
    for window in range(plan.n_windows):
        samples = plan.samples_of(window)
        kept = int(plan.stored[samples.start : samples.stop].sum())
        size = arrays * np.empty((layers, kept, hidden), np.float32).nbytes
        if tower is not None:
            size += np.empty((len(samples), *tower), np.float32).nbytes
        sizes.append(size)
    return sizes


@given(
    many_lengths,
    st.integers(1, 48),
    st.sampled_from([16, 768, 5376]),
    st.integers(1, 80),
    st.integers(2, 128),
    st.integers(1, 3),
    many_towers,
)
def test_two_windows_stay_within_their_memory(
    lengths: list[int],
    layers: int,
    hidden: int,
    window_samples: int,
    memory_budget: int,
    arrays: int,
    tower: tuple[int, int, int] | None,
) -> None:
    plan = plan_of(
        lengths,
        layers=layers,
        hidden=hidden,
        arrays=arrays,
        tower=tower,
        window_samples=window_samples,
        memory_budget=memory_budget,
    )
    assert plan.shape == Shape(layers, len(lengths), max(lengths), hidden)
    assert plan.window_bytes == max(parts_of(plan, layers, hidden, arrays, tower))
    assert 2 * plan.window_bytes <= memory_budget * MB or plan.window == 1
    assert 1 <= plan.window <= window_samples


@given(
    length=st.integers(1, 500),
    count=st.integers(1, 200),
    window_samples=st.integers(1, 600),
    memory_budget=st.integers(2, 64),
)
def test_windows_of_equal_prompts_are_no_smaller_than_need_be(
    length: int, count: int, window_samples: int, memory_budget: int
) -> None:
    plan = plan_of([length] * count, hidden=256, window_samples=window_samples, memory_budget=memory_budget)
    fits = memory_budget * MB // 2 // (4 * 2 * 256 * length)
    most = max(1, min(fits, window_samples, count))
    assert plan.window > most - min(16, most / 2 + 1)
    # so that chunks can hold several samples
    assert plan.window % min(16, 1 << (most.bit_length() - 1)) == 0


@given(
    place=st.integers(0, 511),
    short=st.integers(4, 12),
    long=st.integers(100, 300),
)
def test_one_long_prompt_takes_its_own_memory_and_no_one_elses(place: int, short: int, long: int) -> None:
    # 8 kB per token, so half of 16 MB holds 1,024 tokens
    options: Any = {"layers": 8, "hidden": 256, "memory_budget": 16}
    lengths = [short] * 512
    lengths[place] = long
    plan = plan_of(lengths, **options)
    fits = (1024 - long + short) // short  # samples of its window, itself among them
    assert plan.window > fits - 16
    assert plan.window_bytes <= 8 * MB
    # as if all were as long
    assert plan_of([long] * 512, **options).window <= 1024 // long < plan.window / 3


def test_a_300_token_prompt_among_short_ones() -> None:
    # 34 layers × 2560 values of float32: 340 kB a token, 102 MB for the long one
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 20, 1000)
    options: Any = {"layers": 34, "hidden": 2560, "window_samples": 128}
    without = plan_of(lengths, **options)
    lengths[500] = 300
    outlier = plan_of(lengths, **options)
    assert without.window >= 96
    assert outlier.window >= 80
    assert plan_of([300] * 1000, **options).window == 4


def test_more_arrays_and_a_vision_tower_make_windows_smaller() -> None:
    # 2 layers × 64 tokens × 256 values × 4 bytes: 128 kB a sample
    options: Any = {"layers": 2, "hidden": 256, "memory_budget": 4, "window_samples": 100}
    lengths = [64] * 100
    assert plan_of(lengths, **options).window == 16
    assert plan_of(lengths, arrays=2, **options).window == 8
    assert plan_of(lengths, tower=(2, 64, 256), **options).window == 8
    assert plan_of(lengths, arrays=3, tower=(2, 64, 256), **options).window == 4


@given(many_plans)
def test_positions_of_a_window_are_those_of_its_samples(plan: Plan) -> None:
    kept = [plan.stored_in(window) for window in range(plan.n_windows)]
    assert sum(kept) == plan.stored.sum()
    assert kept[-1] == sum(plan.stored[(plan.n_windows - 1) * plan.window :].tolist())


@pytest.mark.parametrize("value_bytes", [2, 4])
def test_the_footprint_is_what_numpy_says(value_bytes: int) -> None:
    numbers = synthetic(n_layers=4, n_samples=6, n_tokens=5, hidden=32, everything=True)
    layers = {"residual": 4, "attention": 4, "mlp": 3}
    token = sample = 0
    for name, values in numbers.values.items():
        variable = VARIABLES[name]
        kept = values[1:] if component_of(name) == "mlp" else values
        if variable.dtype == "str":
            size = 60 * kept.size
        else:
            is_value = variable.is_full and variable.dtype == "float32"
            size = kept.nbytes * value_bytes // 4 if is_value else kept.nbytes
        if variable.group or "token" not in variable.dims:
            sample += size // 6
        else:
            token += size // (6 * 5)
    shape, vision = numbers.plan.shape, numbers.plan.vision
    assert footprint(tuple(numbers.values), layers, shape, vision, value_bytes) == (token, sample)
    # half of the bytes make windows of twice the samples
    one = Shape(4, 1, 1, 32)
    assert footprint(["residual"], {"residual": 4}, one, None, value_bytes) == (4 * 32 * value_bytes, 0)


# cases in which not every token is kept, or more than the prompt has


@given(many_lengths, st.data())
def test_what_is_kept_sets_the_token_axis_and_the_prompts_set_the_batches(
    lengths: list[int], data: st.DataObject
) -> None:
    stored = data.draw(st.lists(st.integers(0, 600), min_size=len(lengths), max_size=len(lengths)))
    plan, plain = plan_of(lengths, stored=stored, window_samples=8), plan_of(lengths, window_samples=8)
    assert plan.shape.token == max(1, *stored)
    assert (plan.tokens, plan.lengths.tolist(), plan.stored.tolist()) == (sum(lengths), lengths, stored)
    # the model computes the same prompts, whatever is kept of them
    if plan.window == plain.window:
        np.testing.assert_array_equal(plan.batches, plain.batches)


def test_prompts_of_which_nothing_can_be_kept_still_have_a_plan() -> None:
    plan = plan_of([1, 1, 1], stored=[0, 0, 0])
    assert (plan.shape.token, plan.n_windows) == (1, 1)


def test_one_token_a_prompt_takes_larger_windows_than_all_of_them() -> None:
    options: Any = {"layers": 4, "hidden": 1024, "memory_budget": 2, "window_samples": 64}
    assert plan_of([16] * 64, **options).window == 4
    assert plan_of([16] * 64, stored=[1] * 64, **options).window == 64


def test_every_token_is_kept_unless_something_else_is_said() -> None:
    plan = plan_of([3, 9, 4])
    assert (plan.shape.token, plan.stored.tolist(), plan.vision) == (9, [3, 9, 4], None)


def test_a_group_has_its_own_shape() -> None:
    plan = plan_of([3, 9, 4], tower=(5, 256, 64))
    assert plan.shape_of(VARIABLES["residual"]) == plan.shape_of(VARIABLES["text"]) == Shape(2, 3, 9, 8)
    for variable in VARIABLES.values():
        expected = Shape(5, 3, 256, 64) if variable.group == VISION else Shape(2, 3, 9, 8)
        assert plan.shape_of(variable) == expected


# contents of windows


@given(many_plans)
def test_windows_hold_what_their_samples_and_batches_are(plan: Plan) -> None:
    positions, samples, stored = plan.by_window()
    for window in range(plan.n_windows):
        batches = list(plan.batches_of(window))
        assert positions[window] == sum(len(batch) * plan.lengths[batch].max() for batch in batches)
        assert samples[window] == len(plan.samples_of(window))
        assert stored[window] == plan.stored_in(window)


@pytest.mark.parametrize(
    ("lengths", "held"),
    [
        ([9], [9]),
        ([9, 5], [9, 5]),
        ([9, 5, 7], [9, 5]),
        ([2, 5, 7], [7, 5]),
        # one buffer is filled by the first, third and fifth
        ([1, 2, 8, 1, 9, 3], [9, 3]),
    ],
)
def test_two_buffers_hold_the_largest_windows_of_either(lengths: list[int], held: list[int]) -> None:
    plan = plan_of(lengths, layers=2, hidden=8, window_samples=1)
    assert plan.held_bytes == sum(held) * 4 * 2 * 8


def test_a_device_that_takes_large_batches_gets_windows_that_hold_them() -> None:
    config, lengths = Config(model="m", data="d", out="o"), np.full(1000, 16, dtype=np.int32)
    options: Any = {"layers": 2, "hidden": 8, "token_bytes": MB}
    assert make_plan(config, lengths, **options, batch_tokens=256).window == 512 // 16
    assert make_plan(config, lengths, **options, batch_tokens=2048).window == 2048 // 16
    # unless the budget is set
    explicit = config.model_copy(update={"memory_budget": 64})
    assert make_plan(explicit, lengths, **options, batch_tokens=2048).window == 2
