"""Vision-language models: cubes match what transformers computes for each image and text."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import actkit
from actkit.demo import draw_scenes
from actkit.errors import InputError
from actkit.schema import TokenKind
from actkit.testing import contents
from tests.models.vlms import VISION_LAYERS, VLMS, ask

# square, wide, tall, small: Qwen2.5-VL uses a different number of tokens for each
SIZES = [(96, 96), (140, 56), (56, 168), (60, 64)]
SCENES = 2


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes drawn by the demo, resized to different sizes."""
    table = draw_scenes(tmp_path_factory.mktemp("scenes") / "drawn", SCENES)
    for number, path in enumerate(sorted((table.parent / "images").iterdir())):
        with Image.open(path) as image:
            image.resize(SIZES[number % len(SIZES)]).save(path)
    return table


@pytest.fixture(scope="module")
def seen(vlm: Any, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], xr.Dataset]:
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"run-{name}") / "run"
            actkit.extract(
                model=str(vlm(name)),
                data=str(scenes),
                out=str(made[name]),
                layers="all attention_1 mlp_2-3 vision_all",
                image_column="image",
                system="You describe pictures.",
                batch_size=5,
                window_samples=8,
                listeners=[],
            )
        return made[name]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", VLMS)
def test_text_and_vision_are_those_of_transformers(name: str, seen: Any, vlm: Any, scenes: Path) -> None:
    cube = actkit.open_cube(seen(name)).load()
    vision = actkit.open_cube(seen(name), group="vision").load()
    assert cube.sizes["sample"] == 4 * SCENES
    assert vision.layer.values.tolist() == list(range(VISION_LAYERS))
    errors = []
    for sample in range(1, 4 * SCENES, 3):
        one, patches = cube.isel(sample=sample), vision.isel(sample=sample)
        with Image.open(scenes.parent / one.image.item()) as image:
            expected = ask(name, vlm(name), one.text.item(), image, "You describe pictures.")
        length = int(one.n_tokens)
        assert one.token_id.values[:length].tolist() == expected["ids"].tolist()
        kinds = one.token_kind.values[:length]
        assert np.array_equal(kinds == TokenKind.IMAGE, expected["image"])
        count = int(patches.n_tokens)
        assert patches.residual[:, :count].shape == expected["vision"].shape
        for ours, theirs in (
            (one.residual[:, :length], expected["residual"]),
            (one.embedding[:length], expected["embedding"]),
            (patches.residual[:, :count], expected["vision"]),
        ):
            errors.append(float(np.abs(ours.values - theirs).max() / np.abs(theirs).max()))
        assert patches.residual[:, count:].isnull().all()
        np.testing.assert_allclose(patches.pooled, expected["vision"].mean(axis=1), rtol=1e-3, atol=1e-5)
    print(f"{name}: largest relative error {max(errors):.1e}")
    assert max(errors) < 1e-5


@pytest.mark.slow
def test_image_tokens_are_counted_right(seen: Any, scenes: Path) -> None:
    def counts(name: str) -> np.ndarray:
        return (actkit.open_cube(seen(name)).token_kind == TokenKind.IMAGE).sum("token").values

    assert (counts("gemma3") == 4).all()  # mm_tokens_per_image
    assert (counts("llava") == 9).all()  # (42 / 14)²
    grids = []
    with scenes.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            with Image.open(scenes.parent / row["image"]) as image:
                grids.append(round(image.width / 28) * round(image.height / 28))
    assert counts("qwen2_5_vl").tolist() == grids  # two by two patches of 14 make a token
    assert len(set(grids)) > 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gemma3" else pytest.mark.slow) for name in VLMS]
)
def test_template_tokens_are_not_content(name: str, seen: Any) -> None:
    cube = actkit.open_cube(seen(name)).load()
    assert cube.attrs["sum_rule"] == "holds"
    for sample in (0, 5):
        pieces = np.array(actkit.token_strings(cube, sample), dtype=object)
        kinds = cube.token_kind.values[sample, : len(pieces)]
        assert "".join(pieces[kinds == TokenKind.TEXT]).strip() == cube.text.values[sample]
        assert "You describe pictures." in "".join(pieces[kinds != TokenKind.TEXT])
        assert (kinds == TokenKind.TEMPLATE).any()


def test_the_vision_group_knows_its_samples(seen: Any) -> None:
    vision = actkit.open_cube(seen("gemma3"), group="vision")
    assert vision.residual.dims == ("layer", "sample", "token", "hidden")
    assert (vision.sizes["token"], vision.sizes["hidden"]) == (16, 24)
    by_gender = vision.pooled.groupby("gender").mean()
    assert by_gender.gender.values.tolist() == ["female", "male"]
    assert not vision.nonfinite.any()


@pytest.mark.slow
def test_only_what_is_saved_of_the_tower_is_stored(vlm: Any, scenes: Path, tmp_path: Path) -> None:
    actkit.extract(
        model=str(vlm("gemma3")),
        data=str(scenes),
        out=str(tmp_path / "run"),
        layers="0 vision_1-2",
        save=["pooled"],
        image_column="image",
        listeners=[],
    )
    vision = actkit.open_cube(tmp_path / "run", group="vision")
    assert set(vision.data_vars) == {"pooled", "nonfinite"}
    assert np.isfinite(vision.pooled).all()


def test_norms_of_patches_can_be_summarised(seen: Any) -> None:
    vision = actkit.open_cube(seen("gemma3"), group="vision")
    norms = actkit.layer_norms(vision, resamples=10).load()
    assert norms.attrs["tokens"] == "patches"
    assert int(norms.n_tokens.isel(layer=0).sum()) == int(vision.n_tokens.sum())
    ours = norms["mean"].sel(language="english")
    english = vision.norm.where(vision.language == "english", drop=True)
    np.testing.assert_allclose(ours, english.mean(["sample", "token"]), rtol=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bytes(vlm: Any, scenes: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": str(vlm("qwen2_5_vl")),
        "data": str(scenes),
        "layers": "0 vision_1",
        "image_column": "image",
        "generate": {"max_new_tokens": 3},
        "window_samples": 4,
    }

    def stop(event: Any) -> None:
        if event.state == "running" and event.samples > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        actkit.extract(**options, out=str(tmp_path / "run"), listeners=[stop])
    actkit.extract(**options, out=str(tmp_path / "run"), listeners=[])
    actkit.extract(**options, out=str(tmp_path / "whole"), listeners=[])
    assert contents(tmp_path / "run" / "cube.zarr") == contents(tmp_path / "whole" / "cube.zarr")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "qwen2_5_vl" else pytest.mark.nightly) for name in VLMS]
)
def test_generated_text_about_an_image_matches_transformers(
    name: str, vlm: Any, scenes: Path, tmp_path: Path
) -> None:
    """Greedy tokens of a left-padded batch, and the states of a pass over prompt and answer."""
    import torch
    import transformers as tf

    cube = actkit.extract(
        model=str(vlm(name)),
        data=str(scenes),
        out=str(tmp_path / "run"),
        image_column="image",
        generate={"max_new_tokens": 4},
        limit=6,
        batch_size=6,
        listeners=[],
    ).load()
    model: Any = getattr(tf, VLMS[name].model).from_pretrained(vlm(name)).eval()
    alone = actkit.plan(
        model=str(vlm(name)), data=str(scenes), out=str(tmp_path / "no"), image_column="image", trial=False
    )
    from actkit.extraction.prompts.encoder import collate

    for sample in (0, 3):
        with Image.open(scenes.parent / cube.image.values[sample]) as image:
            (prompt,) = alone.spec.encoder.encode([cube.text.values[sample]], [image.convert("RGB")])
        with torch.inference_mode():
            answer = model.generate(**collate([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0)
        length = int(cube.n_tokens[sample])
        assert cube.token_id.values[sample, :length].tolist() == answer[0].tolist()
        assert (cube.token_kind.values[sample, len(prompt.ids) : length] == TokenKind.GENERATED).all()
        assert np.isfinite(cube.residual.values[:, sample, :length]).all()


def _rows(folder: Path, *images: str) -> Path:
    path = folder / "rows.jsonl"
    rows = [{"text": f"picture {i}", "image": image} for i, image in enumerate(images)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _broken(folder: Path) -> list[str]:
    Image.new("RGB", (64, 64), "red").save(folder / "good.png")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "words.png").write_text("no picture")
    return ["good.png", "empty.png", "cut.png", "words.png", "none.png", "../out.png", "good.png"]


def test_broken_images_are_faults_before_the_model_loads(
    vlm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel

    monkeypatch.setattr(AutoModel, "from_pretrained", None)
    data = _rows(tmp_path, *_broken(tmp_path))
    with pytest.raises(InputError) as caught:
        actkit.extract(
            model=str(vlm("gemma3")), data=str(data), out=str(tmp_path / "run"), image_column="image"
        )
    assert [str(fault).removesuffix(" (correct or remove the row)") for fault in caught.value.faults] == [
        "row 2 (line 2): `image` has zero bytes",
        "row 3 (line 3): `image` is truncated",
        "row 4 (line 4): `image` is not an image (PNG, JPEG, WebP, BMP, GIF or TIFF)",
        "row 5 (line 5): `image` is missing: none.png",
        f"row 6 (line 6): `image` lies outside {tmp_path}",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_broken_images_can_be_skipped_and_are_listed(vlm: Any, tmp_path: Path) -> None:
    cube = actkit.extract(
        model=str(vlm("gemma3")),
        data=str(_rows(tmp_path, *_broken(tmp_path))),
        out=str(tmp_path / "run"),
        image_column="image",
        on_bad_row="skip",
        listeners=[],
    )
    assert cube.text.values.tolist() == ["picture 0", "picture 6"]
    assert cube.attrs["skipped_rows"] == 5
    skipped = json.loads(cube.attrs["skipped"])
    assert [where for where, _ in skipped] == [f"row {n} (line {n})" for n in range(2, 7)]
    assert skipped[0][1] == "`image` has zero bytes"


def test_an_image_that_changes_during_a_run_is_noticed(vlm: Any, tmp_path: Path) -> None:
    from actkit.errors import ChangedError

    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")

    def repaint(event: Any) -> None:
        if event.state == "loading":
            Image.new("RGB", (64, 64), "blue").save(tmp_path / "a.png")

    with pytest.raises(ChangedError, match="sample 0: is another image"):
        actkit.extract(
            model=str(vlm("gemma3")),
            data=str(_rows(tmp_path, "a.png")),
            out=str(tmp_path / "run"),
            image_column="image",
            listeners=[repaint],
        )


@pytest.mark.slow
def test_an_unsupported_tower_is_a_fault(vlm: Any, scenes: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from actkit.extraction.capture import vision

    monkeypatch.delitem(vision._TOWERS, ("llava", "clip_vision_model"))
    options = {"model": str(vlm("llava")), "data": str(scenes), "image_column": "image", "listeners": []}
    with pytest.raises(InputError, match="the vision tower of `llava` cannot be captured yet"):
        actkit.extract(**options, layers="all vision_all", out=str(tmp_path / "run"))
    assert actkit.extract(**options, limit=2, layers="all", out=str(tmp_path / "run")).sizes["sample"] == 2


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("tiny_model", {}, "image_column: the model takes no images (`llama` has no image processor)"),
        ("gemma3", {"layers": "vision_all"}, "layers: selects only blocks of the vision tower"),
        ("gemma3", {"layers": "0 vision_3"}, "the vision tower has no layer 3 (it has 3 layers, 0–2)"),
        ("gemma3", {"image_column": None, "layers": "0 vision_0"}, "the vision tower needs images"),
    ],
)
def test_faults_of_vision_options(
    model: str,
    options: dict[str, Any],
    message: str,
    vlm: Any,
    tiny_model: Path,
    scenes: Path,
    tmp_path: Path,
) -> None:
    folder = tiny_model if model == "tiny_model" else vlm(model)
    asked = {"model": str(folder), "data": str(scenes), "out": str(tmp_path / "run"), "image_column": "image"}
    with pytest.raises(InputError) as caught:
        actkit.extract(**{**asked, **options})
    assert message in str(caught.value)
