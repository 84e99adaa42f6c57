"""Samples without pads give the same numbers as samples with them, bit by bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.store.ragged import Ragged

PAYLOAD = 0x7FC12345  # a NaN that is not the one of the fill value


def bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of float32 numbers: NaN compares equal to itself, and to no other NaN."""
    assert values.dtype == np.float32
    return np.ascontiguousarray(values).view(np.uint32)


def drawn(shape: tuple[int, ...], kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw any bits as numbers of a kind; return them, and the float32 numbers that they stand for."""
    rng = np.random.default_rng(seed)
    if kind == "float32":
        values = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
        return values, values
    half = rng.integers(0, 2**16, shape, dtype=np.uint16)
    if kind == "bfloat16":
        return half, (half.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        return half.view(np.float16), half.view(np.float16).astype(np.float32)


KINDS = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("kind", ["float32", "float16"])
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6),
    gaps=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
    layers=st.sets(st.integers(0, 4), min_size=1, max_size=3),
    hidden=st.integers(1, 5),
)
def test_every_sample_is_where_it_begins_and_as_long_as_it_is(
    kind: str, lengths: list[int], gaps: int, order: object, layers: set[int], hidden: int
) -> None:
    n_layers, n_tokens = 5, 7
    places = list(range(len(lengths)))
    order.shuffle(places)  # type: ignore[attr-defined]
    starts, end = np.zeros(len(lengths), dtype=np.int64), 0
    for sample in places:  # in any order, and apart: what lies between belongs to nobody
        starts[sample] = end + gaps
        end += gaps + lengths[sample]
    values, meant = drawn((len(layers), end + gaps, hidden), kind)
    ragged = Ragged(values, starts, np.array(lengths), tuple(sorted(layers)))

    expected = np.full((n_layers, len(lengths), n_tokens, hidden), np.nan, dtype=np.float32)
    for row, layer in enumerate(sorted(layers)):
        for sample, length in enumerate(lengths):
            begin = starts[sample]
            expected[layer, sample, :length] = meant[row, begin : begin + length]
    np.testing.assert_array_equal(bits(ragged.dense(n_layers, n_tokens)), bits(expected))


@pytest.mark.parametrize("kind", KINDS)
@given(positions=st.lists(st.integers(0, 14), max_size=20), beyond=st.lists(st.integers(15, 99), max_size=3))
def test_positions_are_taken_as_the_numbers_that_they_stand_for(
    kind: str, positions: list[int], beyond: list[int]
) -> None:
    values, meant = drawn((2, 15, 3), kind)
    ragged = Ragged(values, np.array([0, 4]), np.array([4, 11]), (1, 3))
    out = np.empty((len(positions) + len(beyond), 3), dtype=np.float32)
    ragged.take(1, np.array([*positions, *beyond], dtype=np.int64), out)
    np.testing.assert_array_equal(bits(out[: len(positions)]), bits(meant[1, positions]))


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    layers=st.none() | st.sets(st.integers(0, 2), min_size=1),
)
def test_with_pads_and_without_them_is_the_same(lengths: list[int], layers: set[int] | None) -> None:
    dense = np.random.default_rng(0).standard_normal((3, len(lengths), 4, 2)).astype(np.float32)
    dense[:, np.arange(4) >= np.array(lengths)[:, None]] = np.nan
    if layers is not None:
        dense[[layer for layer in range(3) if layer not in layers]] = np.nan
    chosen = None if layers is None else sorted(layers)
    ragged = Ragged.of(dense, np.array(lengths), chosen)
    np.testing.assert_array_equal(bits(ragged.dense(3, 4)), bits(dense))
    # of a variable without layers
    one = Ragged.of(dense[1], np.array(lengths))
    np.testing.assert_array_equal(bits(one.dense(1, 4)), bits(dense[1][None]))


def test_what_lies_at_pads_is_not_read() -> None:
    garbage = np.full((1, 2, 3, 2), 7, dtype=np.float32)
    dense = Ragged.of(garbage, np.array([1, 0])).dense(1, 3)
    assert (dense[0, 0, 0] == 7).all()
    assert np.isnan(dense[0, 0, 1:]).all()
    assert np.isnan(dense[0, 1]).all()


def test_the_payload_of_a_nan_is_kept() -> None:
    values = np.array([[[PAYLOAD, PAYLOAD | 2**31]]], dtype=np.uint32).view(np.float32)
    (read,) = Ragged(values, np.array([0]), np.array([1])).dense(1, 1).reshape(1, -1)
    assert bits(read).tolist() == [PAYLOAD, PAYLOAD | 2**31]


def test_a_number_for_each_token_has_pads_too() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    dense = Ragged(values, np.array([1, 0]), np.array([2, 0]), (0, 2)).dense(3, 4)
    nan = np.nan
    np.testing.assert_array_equal(
        dense, [[[1, 2, nan, nan], [nan] * 4], [[nan] * 4] * 2, [[4, 5, nan, nan], [nan] * 4]]
    )
