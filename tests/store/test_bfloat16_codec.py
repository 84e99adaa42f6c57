"""Frames of bfloat16 bits against those of Blosc for float32 values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.blosc import BITSHUFFLE, Blosc

from actkit.store.bfloat16_codec import Bfloat16Codec, bits_of
from actkit.store.layout import BLOSC_LEVEL, BLOSC_NAME

ORACLE = Blosc(BLOSC_NAME, BLOSC_LEVEL, BITSHUFFLE)


def values_of(bits: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(bits), bits], axis=-1).view(np.float32)[..., 0]  # little-endian


def drawn(kind: str, size: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if kind == "random bits":
        return generator.integers(0, 2**16, size).astype(np.uint16)
    if kind == "constant":
        return np.full(size, generator.integers(0, 2**16), dtype=np.uint16)
    values = generator.standard_normal(size) * 10.0 ** generator.integers(-3, 4)
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if kind == "half padding":
        bits[size // 2 :] = bits_of(np.nan)
    return bits


KINDS = ("random bits", "constant", "activations", "half padding")


@given(
    size=st.integers(1, 80_000) | st.sampled_from([2**10, 2**14, 2**16, 2**17]),
    arrays=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32)), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_frames_are_those_of_blosc_for_float32(size: int, arrays: list[tuple[str, int]]) -> None:
    codec = Bfloat16Codec(BLOSC_NAME, BLOSC_LEVEL)
    for kind, seed in arrays:
        bits = drawn(kind, size, seed)
        assert codec.encode(bits) == ORACLE.encode(values_of(bits))


@pytest.mark.parametrize("hidden", [160, 576, 2560, 4096, 5120, 8192])
def test_chunks_of_all_widths_are_those_of_blosc(hidden: int) -> None:
    codec = Bfloat16Codec(BLOSC_NAME, BLOSC_LEVEL)
    for kind in KINDS:
        bits = drawn(kind, 32 * hidden, 0).reshape(32, hidden)
        assert codec.encode(bits) == ORACLE.encode(values_of(bits))


def test_chunks_of_one_block_are_compressed_as_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Bfloat16Codec(BLOSC_NAME, BLOSC_LEVEL)
    codec.encode(drawn("activations", 2 * 32 * 576, 0))
    monkeypatch.setattr(codec, "_encode_float32", None)
    bits = drawn("activations", 2 * 32 * 576, 1)
    assert codec.encode(bits) == ORACLE.encode(values_of(bits))


def test_another_form_of_frames_is_left_to_blosc() -> None:
    # zstd has no stream for each byte of a value
    codec, oracle = Bfloat16Codec("zstd", 3), Blosc("zstd", 3, BITSHUFFLE)
    for seed in range(2):
        bits = drawn("activations", 4096, seed)
        assert codec.encode(bits) == oracle.encode(values_of(bits))
