"""Unusual combinations of options give what each option promises, or an explanation why not."""

import csv
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image, ImageOps

import actkit
from actkit.demo import draw_scenes
from actkit.errors import ChangedError, CorruptError, InputError
from actkit.schema import TokenKind
from actkit.testing import contents
from tests.models.vlms import ask

GENERATE = {"max_new_tokens": 3, "do_sample": True, "seed": 7}
ARABIC = "أنت مساعدٌ مفيد."


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scenes(tmp_path_factory.mktemp("scenes") / "drawn", 2)


@pytest.fixture
def bare_model(model_copy: Path, tokenizer: Any) -> Path:
    """Model whose tokenizer adds no special token at the start."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(model_copy)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    bare.save_pretrained(model_copy)
    return model_copy


@pytest.fixture(scope="module")
def run(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube of several windows, with generated text and a selection of positions."""
    out = tmp_path_factory.mktemp("odd") / "run"
    _extract(tiny_model, prompts, out, **_SELECTED)
    return out


_SELECTED: dict[str, Any] = {
    "generate": GENERATE,
    "keep_tokens": "content",
    "layers": "all mlp_1",
    "window_samples": 2,
    "batch_size": 2,
}


def _extract(model: Path, data: Path, out: Path, **options: Any) -> xr.Dataset:
    keywords = {"model": str(model), "data": str(data), "out": str(out), "listeners": [], **options}
    return actkit.extract(**keywords)


def _texts(folder: Path, *texts: str) -> Path:
    path = folder / "texts.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return path


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_prompts_without_content_keep_nothing(bare_model: Path, tmp_path: Path) -> None:
    data = _texts(tmp_path, "a", "b")  # one token each, at position 0, which is not content
    cube = _extract(bare_model, data, tmp_path / "content", keep_tokens="content")
    assert cube.prompt_tokens.values.tolist() == [1, 1]
    assert cube.n_tokens.values.tolist() == [0, 0]
    assert bool(cube.residual.isnull().all())
    assert bool(cube.pooled.isnull().all())
    assert actkit.token_strings(cube, 0) == []
    continued = _extract(
        bare_model, data, tmp_path / "more", keep_tokens="content", generate={"max_new_tokens": 2}
    )
    assert (continued.position.values[continued.token_kind.values == TokenKind.GENERATED] >= 1).all()
    assert not (continued.token_kind == TokenKind.TEXT).any()
    assert [
        "".join(actkit.token_strings(continued, sample)) for sample in (0, 1)
    ] == continued.generated.values.tolist()


@pytest.mark.slow
def test_a_mean_says_nothing_of_what_was_generated(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    plain = _extract(tiny_model, prompts, tmp_path / "all")
    mean = _extract(
        tiny_model, prompts, tmp_path / "mean", keep_tokens="mean", generate={"max_new_tokens": 2}
    )
    last = _extract(
        tiny_model, prompts, tmp_path / "last", keep_tokens="last", generate={"max_new_tokens": 2}
    )
    assert mean.sizes["token"] == 1
    assert _close(mean.residual.values[:, :, 0], plain.pooled.values)
    assert mean.generated.values.tolist() == last.generated.values.tolist()
    assert (last.token_kind == TokenKind.GENERATED).all()


@pytest.mark.slow
def test_a_component_alone_is_rounded_to_float16(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    exact = _extract(tiny_model, prompts, tmp_path / "exact", layers="mlp_1-2")
    rounded = _extract(tiny_model, prompts, tmp_path / "half", layers="mlp_1-2", storage="float16")
    assert set(exact.data_vars) == {"mlp", "embedding", "nonfinite"}
    assert exact.layer.values.tolist() == [1, 2]
    np.testing.assert_array_equal(rounded.mlp, exact.mlp.values.astype(np.float16).astype(np.float32))


@pytest.mark.slow
def test_windows_of_one_sample_hold_the_same(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    whole = _extract(tiny_model, prompts, tmp_path / "whole", batch_size=1)
    single = _extract(tiny_model, prompts, tmp_path / "single", window_samples=1, batch_size=50)
    np.testing.assert_array_equal(single.residual, whole.residual)
    one = _extract(tiny_model, prompts, tmp_path / "one", limit=1)
    np.testing.assert_array_equal(one.residual[:, 0], whole.residual[:, 0, : one.sizes["token"]])


def test_labels_with_names_of_variables_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    names = ["position", "generated", "vision", "attention", "token_text", "has_mlp", "hidden"]
    path = tmp_path / "table.csv"
    path.write_text("text," + ",".join(names) + "\nA doctor." + ",1" * len(names) + "\n")
    with pytest.raises(InputError) as caught:
        _extract(tiny_model, path, tmp_path / "run")
    assert all(f"column `{name}`" in str(caught.value) for name in names)
    assert _extract(tiny_model, path, tmp_path / "run", labels=[]).sizes["sample"] == 1


def test_control_tokens_in_a_text_are_special(tiny_model: Path, tmp_path: Path) -> None:
    cube = _extract(tiny_model, _texts(tmp_path, "He</s> waits<pad>"), tmp_path / "run")
    pieces = actkit.token_strings(cube, 0)
    special = [piece for piece, kind in zip(pieces, cube.token_kind.values[0], strict=True) if kind == 1]
    assert special == ["<s>", "</s>", "<pad>"]
    assert "".join(pieces) == "<s>He</s> waits<pad>"


@pytest.mark.slow
def test_arabic_templates_and_system_prompts_are_no_content(
    model_copy: Path, prompts: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    template = "السؤال: {text} الجواب:"
    cube = _extract(model_copy, prompts, tmp_path / "template", template=template)
    tokenizer = AutoTokenizer.from_pretrained(model_copy)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer.save_pretrained(model_copy)
    chat = _extract(model_copy, prompts, tmp_path / "chat", system=ARABIC)
    for sample, text in enumerate(cube.text.values.tolist()):
        assert "".join(actkit.token_strings(cube, sample)) == "<s>" + template.format(text=text)
        messages = [{"role": "system", "content": ARABIC}, {"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert chat.token_id.values[sample, : int(chat.n_tokens[sample])].tolist() == ids
        for made in (cube, chat):
            pieces = zip(actkit.token_strings(made, sample), made.token_kind.values[sample], strict=False)
            content = "".join(piece for piece, kind in pieces if kind == TokenKind.TEXT)
            assert content.strip() == text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"generate": {**GENERATE, "seed": 8}}, "generate"),
        ({"generate": None}, "generate"),
        ({"keep_tokens": "all"}, "keep_tokens"),
        ({"on_nonfinite": "zero"}, "on_nonfinite"),
        ({"template": "x {text}"}, "template"),
        ({"layers": "all"}, "layers"),
        ({"on_bad_row": "skip"}, "on_bad_row"),
    ],
)
def test_changed_settings_are_refused_by_name(
    run: Path, tiny_model: Path, prompts: Path, change: dict[str, Any], field: str
) -> None:
    before = contents(run / "cube.zarr")
    with pytest.raises(ChangedError, match=rf"- {field}: was "):
        _extract(tiny_model, prompts, run, **{**_SELECTED, **change})
    assert contents(run / "cube.zarr") == before


def test_the_settings_of_a_run_make_it_again(run: Path, tmp_path: Path) -> None:
    actkit.extract(run / "config.yaml", out=str(tmp_path / "again"), listeners=[])
    assert contents(tmp_path / "again" / "cube.zarr") == contents(run / "cube.zarr")


def test_a_part_of_a_run_has_its_generated_text(run: Path, tmp_path: Path) -> None:
    import zarr

    part = Path(shutil.copytree(run, tmp_path / "part"))
    committed = zarr.open_group(part / "cube.zarr", mode="r+")["committed"]
    committed[2:4] = False
    cube, whole = actkit.open_cube(part, partial=True), actkit.open_cube(run)
    assert cube.sample.values.tolist() == [0, 1, 4, 5]
    assert cube.generated.values.tolist() == whole.generated.values[[0, 1, 4, 5]].tolist()
    assert actkit.token_strings(cube, 4) == actkit.token_strings(whole, 4)
    np.testing.assert_array_equal(cube.residual, whole.residual[:, [0, 1, 4, 5]])


def test_tokens_of_parts_of_a_cube(run: Path) -> None:
    cube = actkit.open_cube(run)
    arabic = cube.where(cube.language == "arabic", drop=True)
    assert actkit.token_strings(arabic, 4) == actkit.token_strings(cube, 4)
    assert actkit.token_strings(cube.isel(sample=[5, 2]), 2) == actkit.token_strings(cube, 2)
    generated = cube.where((cube.token_kind == TokenKind.GENERATED).compute(), drop=True)
    assert (
        actkit.token_strings(generated.isel(token=slice(2)), 0)
        == actkit.token_strings(cube, 0)[int(generated.token[0]) : int(generated.token[0]) + 2]
    )


@pytest.mark.slow
def test_cubes_travel_to_other_processes(run: Path) -> None:
    cube = actkit.open_cube(run)
    xr.testing.assert_identical(pickle.loads(pickle.dumps(cube)).load(), cube.load())
    code = (
        "import sys, actkit\n"
        "if __name__ == '__main__':\n"
        f"    cube = actkit.open_cube({str(run)!r})\n"
        "    print(float(cube.residual.mean().compute(scheduler='processes', num_workers=1)))\n"
    )
    script = run.parent / "script.py"
    script.write_text(code)
    completed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert np.isclose(float(completed.stdout), float(cube.residual.mean()), rtol=1e-6)


@pytest.mark.slow
def test_odd_images_are_those_of_transformers(vlm: Callable[[str], Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((30, 45, 3))
    colour = Image.fromarray((pixels * 255).astype(np.uint8))
    deep = (pixels[..., 0] * 65535).astype(np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg")
    colour.quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    colour.save(tmp_path / "turned.jpg", exif=turned)
    colour.resize((1, 1)).save(tmp_path / "point.png")
    colour.resize((40, 3)).save(tmp_path / "three_rows.png")
    colour.resize((200, 1)).save(tmp_path / "line.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    table = tmp_path / "table.csv"
    table.write_text("text,image\n" + "".join(f"What is {name}?,{name}\n" for name in names))
    cube = _extract(
        vlm("gemma3"), table, tmp_path / "run", image_column="image", layers="all vision_all", batch_size=3
    )
    vision = actkit.open_cube(tmp_path / "run", group="vision")
    for sample, name in enumerate(names):
        with Image.open(tmp_path / name) as opened:
            image = ImageOps.exif_transpose(opened)
            eight = Image.fromarray((deep // 256).astype(np.uint8)) if name == "deep.png" else image
            theirs = ask("gemma3", vlm("gemma3"), f"What is {name}?", eight.convert("RGB"))
        length = int(cube.n_tokens[sample])
        assert cube.token_id.values[sample, :length].tolist() == theirs["ids"].tolist()
        assert _close(cube.residual.values[:, sample, :length], theirs["residual"]), name
        assert _close(vision.residual.values[:, sample], theirs["vision"]), name


@pytest.mark.slow
def test_images_that_are_too_long_are_rows_at_fault(vlm: Callable[[str], Path], tmp_path: Path) -> None:
    Image.new("RGB", (5000, 1)).save(tmp_path / "line.png")
    Image.new("RGB", (50, 60)).save(tmp_path / "sound.png")
    table = tmp_path / "table.csv"
    table.write_text("text,image\nA line,line.png\nA square,sound.png\n")
    with pytest.raises(InputError, match=r"row 1 \(line 2\): `image` is more than 200 times as long as wide"):
        _extract(vlm("qwen2_5_vl"), table, tmp_path / "run", image_column="image")
    cube = _extract(vlm("qwen2_5_vl"), table, tmp_path / "run", image_column="image", on_bad_row="skip")
    assert cube.text.values.tolist() == ["A square"]
    assert cube.attrs["skipped_rows"] == 1


@pytest.mark.slow
def test_encoded_images_are_those_of_the_paths(
    vlm: Callable[[str], Path], scenes: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with scenes.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:4]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": (scenes.parent / row["image"]).read_bytes(), "path": row["image"]} for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("sample_id", "language", "text")}
    for number in (0, 1):
        half = slice(2 * number, 2 * number + 2)
        halves = {name: values[half] for name, values in columns.items()}
        pq.write_table(
            pa.table({**halves, "image": pa.array(cells[half], kind)}), tmp_path / f"{number}.parquet"
        )
    options = {"image_column": "image", "layers": "all vision_all", "batch_size": 2}
    paths = _extract(vlm("gemma3"), scenes, tmp_path / "paths", limit=4, **options)
    streamed = _extract(
        vlm("gemma3"), tmp_path / "*.parquet", tmp_path / "streamed", streaming=True, **options
    )
    np.testing.assert_array_equal(streamed.residual, paths.residual)
    assert streamed.attrs["images_sha256"] == paths.attrs["images_sha256"]
    assert "image" not in streamed.coords
    whole = _extract(vlm("gemma3"), tmp_path / "0.parquet", tmp_path / "whole", **options)
    first, longest = paths.residual.values[:, :1], int(whole.n_tokens[0])
    assert _close(whole.residual.values[:, :1, :longest], first[:, :, :longest])


@pytest.mark.slow
def test_one_image_in_two_languages_is_seen_alike(
    vlm: Callable[[str], Path], scenes: Path, tmp_path: Path
) -> None:
    with scenes.open(encoding="utf-8") as file:
        english, arabic = list(csv.DictReader(file))[:2]
    table = scenes.parent / "wide.csv"
    table.write_text(f'en,ar,image\n"{english["text"]}","{arabic["text"]}",{english["image"]}\n')
    columns = {"english": "en", "arabic": "ar"}
    cube = _extract(
        vlm("llava"),
        table,
        tmp_path / "run",
        text_columns=columns,
        image_column="image",
        layers="all vision_all",
    )
    vision = actkit.open_cube(tmp_path / "run", group="vision")
    assert cube.language.values.tolist() == ["english", "arabic"]
    np.testing.assert_array_equal(vision.residual[:, 0], vision.residual[:, 1])
    assert (cube.token_kind == TokenKind.IMAGE).sum("token").values.tolist() == [9, 9]


@pytest.fixture(scope="module")
def told(vlm: Callable[[str], Path], scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of a vision-language model that continues captions."""
    run = tmp_path_factory.mktemp("told") / "run"
    more: dict[str, Any] = {"layers": "all vision_all", "generate": {"max_new_tokens": 2}}
    _extract(vlm("gemma3"), scenes, run, limit=4, image_column="image", **more)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vision/residual", "vision/n_tokens", "token_text", "generated"])
def test_a_flipped_bit_is_named(name: str, told: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(told, tmp_path / "run"))
    file = next(path for path in (damaged / "cube.zarr" / name).rglob("c.*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))
    (fault,) = actkit.verify(damaged).faults
    assert str(fault).startswith(f"{name}/")
    group, _, short = name.rpartition("/")
    with pytest.raises(CorruptError, match=name):
        actkit.open_cube(damaged, group=group)[short].load()


@pytest.mark.slow
def test_the_vision_group_opens_without_torch_and_without_actkit(told: Path) -> None:
    path = told / "cube.zarr"
    ours = actkit.open_cube(path, group="vision")
    theirs = xr.open_zarr(path, group="vision", consolidated=False)
    np.testing.assert_array_equal(ours.residual, theirs.residual)
    code = (
        "import sys, actkit\n"
        f"cube = actkit.open_cube({str(path)!r}, group='vision')\n"
        "actkit.layer_norms(cube).load()\n"
        f"actkit.token_strings(actkit.open_cube({str(path)!r}), 0)\n"
        "print('torch' in sys.modules)\n"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "False"
