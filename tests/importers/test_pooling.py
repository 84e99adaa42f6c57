"""What an import computes is what an extraction computes."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from actkit.extraction.capture.packing import pack
from actkit.extraction.capture.pooling import last_of, means_of, norms_of, wide
from actkit.extraction.capture.spec import Rules
from actkit.extraction.prompts.encoder import Prompt
from actkit.importers.cube_output import reduce
from actkit.schema import TokenKind


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans(), st.integers(0, 99))
def test_it_agrees_with_an_extraction(lengths: list[int], first: bool, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((2, sum(lengths), 5)).astype(np.float32)
    values[seed % 2, seed % sum(lengths), seed % 5] = [np.nan, np.inf, 3e38, 1][seed % 4]
    reduced = reduce(values, np.array(lengths), first_is_content=first)
    kinds = [np.full(length, TokenKind.TEXT, dtype=np.int8) for length in lengths]
    prompts = [Prompt(np.zeros(len(sample), dtype=np.int32), sample) for sample in kinds]
    packing = pack(prompts, Rules({"residual": (0,)}, (0,), "all", "exact", "keep", first))
    for layer, rows in enumerate(values):
        exact = wide(torch.from_numpy(rows))
        np.testing.assert_allclose(reduced["norm"][layer], norms_of(exact).numpy(), rtol=1e-6)
        np.testing.assert_allclose(reduced["pooled"][layer], means_of(exact, packing).numpy(), rtol=1e-6)
        np.testing.assert_array_equal(reduced["last"][layer], last_of(exact, packing).float().numpy())
        owners = np.repeat(np.arange(len(lengths)), lengths)
        bad = [int((~np.isfinite(rows[owners == sample])).sum()) for sample in range(len(lengths))]
        assert reduced["nonfinite"][layer].tolist() == bad


def test_samples_without_tokens() -> None:
    reduced = reduce(np.ones((1, 2, 3), dtype=np.float32), np.array([0, 2, 0]), first_is_content=True)
    assert np.isnan(reduced["last"][0, [0, 2]]).all()
    assert reduced["last"][0, 1].tolist() == [1, 1, 1]
