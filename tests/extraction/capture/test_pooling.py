"""Means, last values and norms of packed positions, compared with loops over padded arrays."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actkit.extraction.capture.packing import Packing, pack, pack_whole
from actkit.extraction.capture.pooling import last_of, means_of_runs, means_of_slices, norms_of, wide
from actkit.extraction.capture.spec import Rules
from actkit.extraction.prompts.encoder import Prompt
from actkit.schema import CONTENT_KINDS, TokenKind

KINDS = [TokenKind.SPECIAL, TokenKind.TEMPLATE, TokenKind.TEXT, TokenKind.IMAGE, TokenKind.GENERATED]
many_kinds = st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12), min_size=1, max_size=6)


def rules(tokens: str = "all", *, first_is_content: bool = True) -> Rules:
    return Rules({"residual": (0,)}, (0,), tokens, "exact", "keep", first_is_content)


def prompts(kinds: list[list[int]]) -> list[Prompt]:
    return [
        Prompt(np.arange(len(sample_kinds), dtype=np.int32), np.array(sample_kinds, dtype=np.int8))
        for sample_kinds in kinds
    ]


def batch(kinds: list[list[int]], packing: Packing) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch padded with NaN, and its packed real positions."""
    longest = max(map(len, kinds))
    padded = torch.randn(len(kinds), longest, 3, generator=torch.Generator().manual_seed(0))
    for row, sample_kinds in zip(padded, kinds, strict=True):
        row[len(sample_kinds) :] = torch.nan
    flat = padded.reshape(-1, 3)
    return padded, flat if packing.real is None else flat[torch.from_numpy(packing.real)]


@pytest.mark.slow
@given(many_kinds, st.booleans())
def test_means_and_last_values(kinds: list[list[int]], first: bool) -> None:
    packing = pack(prompts(kinds), rules(first_is_content=first))
    padded, real = batch(kinds, packing)
    assert real.isfinite().all()
    means, last = torch.full((2, len(kinds), 3), torch.nan, dtype=torch.float64)
    for sample, sample_kinds in enumerate(kinds):
        content = [
            place for place, kind in enumerate(sample_kinds) if kind in CONTENT_KINDS and (first or place > 0)
        ]
        if content:
            means[sample] = padded[sample, content].double().mean(0)
            last[sample] = padded[sample, content[-1]]
    for ways in (means_of_slices, means_of_runs):
        torch.testing.assert_close(ways(wide(real), packing), means, equal_nan=True)
    torch.testing.assert_close(last_of(real, packing), last.float(), equal_nan=True, rtol=0, atol=0)


@given(many_kinds, st.sampled_from(["all", "last", "content", "mean"]))
def test_indices_of_kept_positions(kinds: list[list[int]], tokens: str) -> None:
    packing = pack(prompts(kinds), rules(tokens))
    ids = np.concatenate([np.arange(len(sample_kinds)) for sample_kinds in kinds])
    assert packing.keeps_all == (tokens != "mean" and len(packing.chosen) == len(ids))
    np.testing.assert_array_equal(packing.owners, np.repeat(np.arange(len(kinds)), [len(k) for k in kinds]))
    if tokens == "mean":
        assert packing.chosen.tolist() == np.flatnonzero(packing.kept_lengths).tolist()
    else:
        np.testing.assert_array_equal(ids[packing.chosen], np.concatenate(packing.kept))


def test_contiguous_sequences_are_kept_whole() -> None:
    packing = pack_whole([2, 3])
    values = torch.arange(10.0).reshape(5, 2)
    assert means_of_slices(wide(values), packing).tolist() == [[1.0, 2.0], [6.0, 7.0]]
    assert means_of_runs(wide(values), packing).tolist() == [[1.0, 2.0], [6.0, 7.0]]
    assert packing.keeps_all
    assert packing.real is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_summed_in_float64(dtype: Any) -> None:
    values = torch.tensor([[3e4, 4e4] + [1e-3] * 1000, [1.0] + [0.0] * 1001]).to(dtype)
    expected = np.sqrt((values.double().numpy() ** 2).sum(axis=1))
    np.testing.assert_allclose(norms_of(wide(values)).numpy(), expected, rtol=1e-13)
