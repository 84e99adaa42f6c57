"""Models whose longest prompt determines the rotary frequencies of a batch: Phi-3 with longrope."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actkit
from actkit.errors import InputError

BOUNDARY = 16


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=BOUNDARY,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": BOUNDARY,
        },
    )
    folder = tmp_path_factory.mktemp("phi")
    Phi3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_short_and_long_prompts_never_share_a_batch(phi: Path, prompts: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": str(phi), "data": str(prompts), "dtype": "float32", "listeners": []}
    cubes = [actkit.extract(**options, batch_size=n, out=str(tmp_path / str(n))).load() for n in (1, 6)]
    one, six = cubes
    assert (one.n_tokens <= BOUNDARY).any()
    assert (one.n_tokens > BOUNDARY).any()
    for batch in np.unique(six.batch):
        assert len(set((six.n_tokens > BOUNDARY).values[six.batch == batch])) == 1
    difference = np.abs(six.residual - one.residual).max(["sample", "token", "hidden"])
    assert (difference < 1e-5 * np.abs(one.residual).max(["sample", "token", "hidden"])).all()


@pytest.mark.slow
def test_prompts_that_grow_past_the_boundary_are_continued_alone(
    phi: Path, prompts: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "model": str(phi),
        "data": str(prompts),
        "generate": {"max_new_tokens": 3},
        "listeners": [],
    }
    with pytest.raises(InputError, match="batch_size: some prompts exceed 16 tokens during generation"):
        actkit.extract(**options, out=str(tmp_path / "run"))
    assert actkit.extract(**options, batch_size=1, out=str(tmp_path / "run")).sizes["sample"] == 6
