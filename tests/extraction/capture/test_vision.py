"""Batches of images of several sizes have the same states as single images in transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actkit.config import Config
from actkit.extraction.capture.vision import check_vision, lay_out, split, vision_hidden, vision_lengths
from actkit.extraction.models.architecture import Architecture, read_architecture
from actkit.extraction.models.checkpoint import Checkpoint
from actkit.extraction.models.loader import load_model
from actkit.extraction.prompts.encoder import Encoder, Prompt, collate, load_encoder
from actkit.schema import TokenKind
from tests.models.vlms import PATCH, VISION_LAYERS, VLMS, ask, build_vlm

TEXTS = ["What is this? ما هذا؟", "Who?", "الطبيبُ يقرأ كتابًا طويلًا في المكتبة."]
SIZES = [(70, 120), (60, 56), (200, 150)]  # width, height
TOLERANCE = 1e-5


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).random((height, width, 3)) * 255
    return Image.fromarray(noise.astype(np.uint8))


@dataclass(frozen=True)
class Ours:
    """Outputs that hooks on the blocks record when a batch is run."""

    architecture: Architecture
    encoder: Encoder
    prompts: list[Prompt]
    residual: list[torch.Tensor]
    vision: list[torch.Tensor]


def run(folder: Path, texts: Sequence[str], images: Sequence[Image.Image], **options: Any) -> Ours:
    checkpoint = Checkpoint("m", folder, "")
    architecture, _ = read_architecture(checkpoint)
    assert architecture is not None
    config = Config(model="m", data="d", out="o", image_column="image", **options)
    encoder, faults = load_encoder(checkpoint, architecture, config)
    assert not faults
    assert encoder is not None
    prompts = encoder.encode(texts, images)
    model = load_model(checkpoint, architecture, config)
    seen: dict[str, list[torch.Tensor]] = {"residual": [], "vision": []}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, out: seen[name].append(out[0] if isinstance(out, tuple) else out)

    for name, blocks in (("residual", model.hook_points.blocks), ("vision", model.vision)):
        for block in blocks:
            block.register_forward_hook(keep(name))
    with torch.inference_mode():
        model.base(**collate(prompts), use_cache=False)  # type: ignore[arg-type]
    return Ours(architecture, encoder, prompts, seen["residual"], seen["vision"])  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=VLMS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vlm(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Ours:
    return run(folder, TEXTS, [picture(*size) for size in SIZES])


@pytest.fixture(scope="module")
def theirs(name: str, folder: Path) -> list[dict[str, Any]]:
    return [ask(name, folder, text, picture(*size)) for text, size in zip(TEXTS, SIZES, strict=True)]


def difference(ours: torch.Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())


@pytest.mark.slow
def test_tokens_are_those_of_transformers(ours: Ours, theirs: list[dict[str, Any]]) -> None:
    for prompt, alone in zip(ours.prompts, theirs, strict=True):
        assert prompt.ids.tolist() == alone["ids"].tolist()
        assert ((prompt.kinds == TokenKind.IMAGE) == alone["image"]).all()


def test_image_tokens_are_counted_right(name: str, ours: Ours) -> None:
    counts = [int((prompt.kinds == TokenKind.IMAGE).sum()) for prompt in ours.prompts]
    if name == "qwen2_5_vl":  # one for each 2 × 2 patches of an image that is scaled to whole ones
        side = 2 * PATCH
        assert counts == [round(width / side) * round(height / side) for width, height in SIZES[:2]] + [20]
        grids = [prompt.features["image_grid_thw"].prod().item() for prompt in ours.prompts]
        assert counts == [grid / 4 for grid in grids]
    else:  # mm_tokens_per_image; (42 / 14)² patches
        assert counts == [{"gemma3": 4, "llava": 9}[name]] * 3


def test_a_batch_gives_the_states_of_each_sample_alone(ours: Ours, theirs: list[dict[str, Any]]) -> None:
    for sample, alone in enumerate(theirs):
        length = len(alone["ids"])
        for layer, states in enumerate(alone["residual"]):
            assert difference(ours.residual[layer][sample, :length], states) < TOLERANCE


def test_the_blocks_of_the_vision_tower(ours: Ours, theirs: list[dict[str, Any]]) -> None:
    features = [prompt.features for prompt in ours.prompts]
    assert check_vision(ours.architecture) == []
    assert len(ours.vision) == VISION_LAYERS
    for layer, output in enumerate(ours.vision):
        parts = split(output, lay_out(ours.architecture, features))
        for part, inputs, alone in zip(parts, features, theirs, strict=True):
            assert part.shape == (vision_lengths(ours.architecture, inputs), vision_hidden(ours.architecture))
            assert difference(part, alone["vision"][layer]) < TOLERANCE


def test_windows_are_undone(ours: Ours, name: str) -> None:
    if name != "qwen2_5_vl":
        pytest.skip("has no windows")
    features = [prompt.features for prompt in ours.prompts]
    output = ours.vision[0]
    as_computed = torch.cat(split(output, lay_out(ours.architecture, features)))
    assert sorted(as_computed[:, 0].tolist()) == sorted(output[:, 0].tolist())
    assert not torch.equal(as_computed, output)  # otherwise the test above would be trivial


@pytest.mark.slow
def test_cut_texts_keep_their_images(name: str, folder: Path, ours: Ours) -> None:
    most = len(ours.prompts[0].ids)
    assert most < len(ours.prompts[2].ids)
    cut = run(folder, TEXTS, [picture(*size) for size in SIZES], max_tokens=most)
    assert [prompt.truncated for prompt in cut.prompts] == [False, False, True]
    assert len(cut.prompts[2].ids) == most
    for layer, output in enumerate(ours.vision):
        assert torch.equal(cut.vision[layer], output)
    kept = np.isin(ours.prompts[2].kinds, [TokenKind.TEXT])
    same = int(np.flatnonzero(kept)[0])  # up to the text, nothing knows that it was cut
    for layer, states in enumerate(ours.residual):
        assert difference(cut.residual[layer][2, :same], states[2, :same].numpy()) < TOLERANCE


@pytest.mark.slow
def test_a_system_prompt_before_an_image(name: str, folder: Path) -> None:
    seen = run(folder, TEXTS[:1], [picture(*SIZES[0])], system="Be brief.")
    alone = ask(name, folder, TEXTS[0], picture(*SIZES[0]), system="Be brief.")
    assert seen.prompts[0].ids.tolist() == alone["ids"].tolist()
    pieces = np.array(seen.encoder.pieces(seen.prompts[0].ids), dtype=object)
    assert "".join(pieces[seen.prompts[0].kinds == TokenKind.TEXT]) == TEXTS[0]


def test_images_attend_to_themselves_in_gemma(name: str, ours: Ours, folder: Path) -> None:
    if name != "gemma3":
        pytest.skip("attends to the past alone")
    checkpoint = Checkpoint("m", folder, "")
    model = load_model(checkpoint, ours.architecture, Config(model="m", data="d", out="o", image_column="i"))
    inputs = collate(ours.prompts)
    last: list[torch.Tensor] = []
    model.hook_points.blocks[-1].register_forward_hook(
        lambda _m, _a, out: last.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        model.base(**{**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])})
    image = torch.from_numpy(ours.prompts[0].kinds == TokenKind.IMAGE)
    with_types = ours.residual[-1][0, : len(image)][image]
    assert (last[0][0, : len(image)][image] - with_types).abs().max() > 1e-2


def test_a_tower_that_is_not_known() -> None:
    class Full:
        model_type = "pixelnet"

    architecture = Architecture(None, Full(), 1, 1, None, None, {}, False)  # type: ignore[arg-type]
    (fault,) = check_vision(architecture)
    assert str(fault) == (
        "layers: the vision tower of `pixelnet` cannot be captured yet "
        "(leave out vision; known: gemma3, llava, qwen2_5_vl)"
    )
