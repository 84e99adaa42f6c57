"""Prompts of similar length are batched together, within the token limit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actkit.batch_plan import AUTO_PROMPTS, AUTO_TOKENS, Plan
from tests.plans import many_lengths, many_plans, plan_of


@given(many_lengths, st.integers(1, 20))
def test_batches_of_a_given_size_are_full_but_for_the_last(lengths: list[int], size: int) -> None:
    plan = plan_of(lengths, batch_size=size, window_samples=len(lengths))
    sizes = [len(batch) for window in range(plan.n_windows) for batch in plan.batches_of(window)]
    full, rest = divmod(plan.window, size)
    per_window = [size] * full + [rest] * (rest > 0)
    assert sizes[: len(per_window)] == per_window


@given(many_lengths, st.sampled_from([64, AUTO_TOKENS, 2**15]))
def test_batches_of_automatic_size_stay_within_their_tokens(lengths: list[int], batch_tokens: int) -> None:
    plan = plan_of(lengths, batch_tokens=batch_tokens)
    for window in range(plan.n_windows):
        for batch in plan.batches_of(window):
            positions = len(batch) * plan.lengths[batch].max()
            assert len(batch) == 1 or positions <= batch_tokens
            assert len(batch) <= AUTO_PROMPTS * max(1, batch_tokens // AUTO_TOKENS)


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
    assert (one.window, one.window_bytes, one.shape) == (two.window, two.window_bytes, two.shape)
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


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40), boundary=st.integers(1, 60))
def test_prompts_on_both_sides_of_a_boundary_share_no_batch(lengths: list[int], boundary: int) -> None:
    for batch_size in ("auto", 7):
        plan = plan_of(lengths, batch_size=batch_size, boundary=boundary)
        for window in range(plan.n_windows):
            for batch in plan.batches_of(window):
                assert len(set(np.array(lengths)[batch] > boundary)) == 1


def test_tokens_to_come_count_for_automatic_batches() -> None:
    sizes = [int(np.bincount(plan_of([24] * 64, new_tokens=new).batches).max()) for new in (0, 400)]
    assert sizes == [AUTO_TOKENS // 24, AUTO_TOKENS // 424]


def test_larger_batches_have_more_prompts() -> None:
    for tokens, prompts in ((512, 64), (1024, 64), (8192, 512)):
        plan = plan_of([1] * 2000, batch_tokens=tokens)
        assert np.bincount(plan.batches).max() == prompts


@given(many_plans)
def test_the_order_of_a_window_is_that_of_its_batches(plan: Plan) -> None:
    for window in range(plan.n_windows):
        batches = np.concatenate(list(plan.batches_of(window)))
        assert (plan.order_of(window) + plan.samples_of(window).start).tolist() == batches.tolist()
