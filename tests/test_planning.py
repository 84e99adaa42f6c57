"""Samples are cut into windows and batches: each once, in bounds, the same way every time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import actkit
from actkit.config import MB, Config
from actkit.planning import AUTO_PROMPTS, AUTO_TOKENS, CHUNK_BYTES, Plan, Shape, estimate, make_plan
from actkit.schema import SAVABLE, VARIABLES, VISION
from actkit.testing import synthetic, write_cube


def plan_of(
    lengths: Any,
    *,
    layers: int = 2,
    hidden: int = 8,
    stored: Any = None,
    arrays: int = 1,
    tower: tuple[int, int, int] | None = None,
    **options: Any,
) -> Plan:
    """Make a plan; ``tower`` has layers, patches and width."""
    config = Config(model="m", data="d", out="o", **options)
    return make_plan(
        config,
        np.array(lengths, dtype=np.int32),
        layers=layers,
        hidden=hidden,
        stored=None if stored is None else np.array(stored, dtype=np.int32),
        arrays=arrays,
        vision=tower and Shape(tower[0], len(lengths), *tower[1:]),
    )


def window_bytes(plan: Plan, arrays: int = 1) -> int:
    """Return the bytes of the large arrays of one full window, as NumPy counts them."""
    shape = plan.shape
    size = arrays * np.empty((shape.layer, plan.window, shape.token, shape.hidden), np.float32).nbytes
    if plan.vision is not None:
        shape = plan.vision
        size += np.empty((shape.layer, plan.window, shape.token, shape.hidden), np.float32).nbytes
    return size


many_lengths = st.lists(st.integers(1, 300) | st.integers(1, 5000), min_size=1, max_size=60)
many_towers = st.none() | st.tuples(
    st.integers(1, 27), st.sampled_from([1, 64, 256, 4096]), st.sampled_from([4, 1152])
)
many_plans = st.builds(
    plan_of,
    many_lengths,
    layers=st.integers(1, 48),
    arrays=st.integers(1, 3),
    tower=many_towers,
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


@given(many_plans)
def test_chunks_of_every_variable_divide_windows(plan: Plan) -> None:
    for variable in VARIABLES.values():
        if variable.group and plan.vision is None:
            continue
        assert plan.window % plan.chunk_of(variable) == 0, variable.name


@given(many_plans)
def test_chunks_of_patches_are_about_a_megabyte(plan: Plan) -> None:
    if plan.vision is None:
        return
    chunk = plan.chunk_of(VARIABLES["vision/residual"])
    image = 4 * plan.vision.token * plan.vision.hidden
    assert chunk == 1 or chunk * image <= CHUNK_BYTES
    # no smaller than need be
    assert 2 * chunk * image > CHUNK_BYTES or plan.window % (2 * chunk)


def test_chunks_of_patches_divide_a_window_that_is_no_power_of_two() -> None:
    # a prompt is larger than a chunk, so that windows can have any size; four images would fit into one
    options: Any = {"hidden": 4096, "tower": (1, 64, 1024), "window_samples": 6}
    plan = plan_of([100] * 20, **options)
    assert (plan.window, plan.chunk) == (6, 1)
    assert plan.chunk_of(VARIABLES["vision/residual"]) == 2


@given(
    many_lengths,
    st.integers(1, 48),
    st.sampled_from([16, 768, 5376]),
    st.integers(1, 80),
    st.integers(1, 64),
    st.integers(1, 3),
    many_towers,
)
def test_windows_stay_within_their_memory(
    lengths: list[int],
    layers: int,
    hidden: int,
    window_samples: int,
    window_mb: int,
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
        window_mb=window_mb,
    )
    assert plan.shape == Shape(layers, len(lengths), max(lengths), hidden)
    size = window_bytes(plan, arrays)
    assert size <= window_mb * MB or plan.window == 1
    assert plan.window <= window_samples
    # no smaller than need be
    allowed = min(window_mb * MB * plan.window // size, window_samples, len(lengths))
    assert plan.window > allowed // 2


def test_more_arrays_and_a_vision_tower_make_windows_smaller() -> None:
    # 2 layers × 64 tokens × 256 values × 4 bytes: 128 kB a sample
    options: Any = {"layers": 2, "hidden": 256, "window_mb": 2, "window_samples": 100}
    lengths = [64] * 100
    assert plan_of(lengths, **options).window == 16
    assert plan_of(lengths, arrays=2, **options).window == 8
    assert plan_of(lengths, tower=(2, 64, 256), **options).window == 8
    assert plan_of(lengths, arrays=3, tower=(2, 64, 256), **options).window == 4


# where not every token is kept, or more than the prompt has


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
    options: Any = {"layers": 4, "hidden": 1024, "window_mb": 1, "window_samples": 64}
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
    found = estimate(plan, variables, layers={"residual": 3}, value_bytes=4, weights_bytes=0)
    assert found.dense == sum(cube[name].nbytes for name in variables)


def test_dense_bytes_of_everything_are_those_of_the_arrays() -> None:
    # strings have no length that is known before
    numbers = synthetic(n_samples=10, everything=True)
    layers = {"residual": 3, "attention": 3, "mlp": 2}
    found = estimate(numbers.plan, tuple(numbers.values), layers=layers, value_bytes=4, weights_bytes=0)
    assert found.dense == sum(values.nbytes for values in numbers.values.values() if values.dtype != object)


@pytest.mark.parametrize(("value_bytes", "left"), [(2, 0.75), (4, 0.9)])
def test_estimates_grow_with_what_is_stored(value_bytes: int, left: float) -> None:
    plan = plan_of([10, 20, 30], layers=4, hidden=64)
    told: Any = {"layers": {"residual": 4}, "value_bytes": value_bytes}
    small = estimate(plan, ["norm"], weights_bytes=10**6, **told)
    large = estimate(plan, ["norm", "residual"], weights_bytes=10**6, **told)
    assert small.disk < large.disk < large.dense
    # pads take no disk: 60 of 90 positions are tokens
    assert large.disk - small.disk == int(4 * 60 * 64 * value_bytes * left)
    assert large.host - small.host == 2 * window_bytes(plan)
    assert estimate(plan, ["norm"], weights_bytes=0, **told).host == small.host - 10**6


def cost(plan: Plan, *variables: str, **layers: int) -> tuple[int, int]:
    """Return the disk and the dense bytes of some variables."""
    found = estimate(plan, variables, layers=layers, value_bytes=2, weights_bytes=0)
    return found.disk, found.dense


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
    host = [
        estimate(plan, names, layers={}, value_bytes=2, weights_bytes=0).host
        for names in ((), ("vision/residual",))
    ]
    assert host[1] - host[0] == 2 * 4 * 5 * plan.window * 256 * 64


def test_strings_are_not_estimated() -> None:
    assert cost(plan_of([10, 20, 30]), "token_text", "generated") == (0, 0)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), boundary=st.integers(1, 60))
def test_prompts_on_both_sides_of_a_boundary_share_no_batch(lengths: list[int], boundary: int) -> None:
    for batch_size in ("auto", 7):
        config = Config(model="m", data="d", out="o", batch_size=batch_size)
        plan = make_plan(config, np.array(lengths), layers=1, hidden=4, boundary=boundary)
        for window in range(plan.n_windows):
            for batch in plan.batches_of(window):
                assert len(set(np.array(lengths)[batch] > boundary)) == 1


def test_tokens_to_come_count_for_automatic_batches() -> None:
    config = Config(model="m", data="d", out="o")
    lengths = np.full(64, 24)
    sizes = [
        int(np.bincount(make_plan(config, lengths, layers=1, hidden=4, new_tokens=new).batches).max())
        for new in (0, 400)
    ]
    assert sizes == [64, AUTO_TOKENS // 424]
