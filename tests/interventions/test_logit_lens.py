"""The logit lens: against the logits of transformers, and its refusals."""

from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pytest
import torch
import transformers as tf

import actkit
from actkit.errors import InputError
from tests.models.architectures import build

TEXTS = ["The house by the river", "She went to town", "A"]
# each has a final norm, a scale or a cap of its own
FAST = ("GPT-2",)
SLOW = (
    "Llama", "Gemma 2", "Qwen3", "Phi-3", "GPT-NeoX (parallel)", "OPT", "BLOOM", "MPT", "Cohere", "Granite",
    "Gemma 3",
)  # fmt: skip
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def extracted(model: Path, folder: Path, **options: Any) -> Path:
    (folder / "data.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    chosen: Any = {
        "layers": "all",
        "listeners": [],
        "save": ["residual", "last"],
        "dtype": "float32",
        **options,
    }
    actkit.extract(model=str(model), data=str(folder / "data.csv"), out=str(folder / "run"), **chosen)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extracted(tiny_model, tmp_path_factory.mktemp("lens"))


@pytest.mark.parametrize("name", NAMES)
def test_the_last_layer_predicts_what_the_model_predicts(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / "model")
    cube = actkit.open_cube(extracted(folder, tmp_path))
    lens = actkit.logit_lens(
        cube, metric=lambda logits: logits[:, 7], vectors="tokens", tokens="all", progress=False
    )
    model = tf.AutoModelForCausalLM.from_pretrained(folder).eval()
    for sample, (ids, length) in enumerate(zip(cube.token_id.values, cube.n_tokens.values, strict=True)):
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids[None, :length].astype(np.int64))).logits[0].double()
        own = lens.isel(layer=-1, sample=sample, token=slice(int(length)))
        np.testing.assert_allclose(own["value"], logits[:, 7], atol=1e-4 * float(logits.abs().max()))
        p = logits.softmax(dim=-1)
        np.testing.assert_allclose(own.top_probability, p.topk(5).values, atol=1e-4)
        np.testing.assert_allclose(own.entropy, torch.special.entr(p).sum(dim=-1), atol=1e-3)
        np.testing.assert_allclose(own["kl"], 0, atol=1e-6)
        assert np.isnan(lens["value"][-1, sample, int(length) :]).all()
        assert set(lens.top_text[-1, sample, int(length) :].values.ravel()) <= {""}


def test_earlier_layers_pass_through_the_final_norm_and_the_head(run: Path, tiny_model: Path) -> None:
    cube = actkit.open_cube(run)
    lens = actkit.logit_lens(cube, metric=lambda logits: logits[:, 3], layers=[1, 0], top=2, progress=False)
    assert lens.layer.values.tolist() == [1, 0]
    assert "kl" not in lens  # without the last layer there is nothing to compare with
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_model)
    with torch.inference_mode():
        logits = model.lm_head(model.model.norm(torch.from_numpy(cube["last"].sel(layer=[1, 0]).values)))
    np.testing.assert_allclose(lens["value"], logits[..., 3], atol=1e-5)
    best = logits.topk(2).indices
    assert lens.top_text.values.tolist() == [
        [[tokenizer.decode([token]) for token in tokens] for tokens in samples] for samples in best.tolist()
    ]


def test_the_divergence_is_from_the_last_layer(run: Path) -> None:
    lens = actkit.logit_lens(run, progress=False)
    assert "value" not in lens
    assert (lens["kl"].isel(layer=slice(-1)) > 0).all()
    np.testing.assert_allclose(lens["kl"].isel(layer=-1), 0, atol=1e-6)


def test_what_does_not_fit_is_refused_before_the_model_is_loaded(run: Path, tmp_path: Path) -> None:
    cube = actkit.open_cube(run)
    with pytest.raises(InputError, match=r"the cube lacks \[99\]"):
        actkit.logit_lens(cube, layers=[99])
    with pytest.raises(InputError, match="'mean' is not one of last, tokens"):
        actkit.logit_lens(cube, vectors="mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"is \d+ tokens"):
        actkit.logit_lens(cube, metric=actkit.LogitDifference("a very long phrase", "x"), progress=False)
    other = build("Gemma", tmp_path / "other")
    with pytest.raises(InputError, match=r"has \d+ (dimensions|layers), the cube"):
        actkit.logit_lens(cube, model=other)


def test_it_is_drawn_over_the_tokens_of_a_sample(run: Path) -> None:
    lens = actkit.logit_lens(run, vectors="tokens", tokens="all", progress=False)
    table = actkit.plots.logit_lens(lens.isel(sample=0))
    for backend in ("bokeh", "matplotlib"):
        hv.render(table, backend=backend)
