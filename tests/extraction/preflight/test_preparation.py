"""All inputs are checked before a model is loaded, and one error lists all faults."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from actkit.batch_plan import Shape
from actkit.config import Config
from actkit.errors import InputError
from actkit.extraction.capture.spec import content_positions
from actkit.extraction.preflight.preparation import prepare
from actkit.extraction.prompts.encoder import Encoder, Prompt
from actkit.schema import TokenKind

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = AutoModel.from_pretrained


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModel, "from_pretrained", load)


@pytest.fixture
def asked(tiny_model: Path, prompts: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a run without a fault."""
    return {"model": tiny_model, "data": prompts, "out": tmp_path / "run"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write texts as a CSV."""

    def csv(*texts: str) -> Path:
        path = tmp_path / "texts.csv"
        path.write_text("\n".join(["text,n", *(f'"{text}",0' for text in texts)]) + "\n", encoding="utf-8")
        return path

    return csv


def faults_of(config: Any = None, **options: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        prepare(config, options)
    return [str(fault) for fault in caught.value.faults]


def edit_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_valid_run_is_prepared_without_writing_files(asked: dict[str, Any], tmp_path: Path) -> None:
    prepared = prepare(None, {**asked, "layers": "0 2", "max_tokens": 4})
    assert prepared.layers == {"residual": (0, 2)}
    assert prepared.plan.shape == Shape(layer=2, sample=6, token=4, hidden=16)
    assert prepared.attrs["layers"] == "0 2"
    assert json.loads(str(prepared.attrs["options"])) == {"max_tokens": 4}
    assert list(tmp_path.iterdir()) == []


def test_every_fault_comes_at_once_and_nothing_is_written(
    model_copy: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    (model_copy / "model.safetensors").unlink()
    (tmp_path / "notes.txt").touch()
    data = write("a", "b", "", "d")
    before = sorted(tmp_path.rglob("*"))
    assert faults_of(model=model_copy, data=data, out=tmp_path, layers="0 9", limt=3, device="cuda:99") == [
        "limt: is not an option (did you mean limit?)",
        "row 3 (line 4): `text` is empty (correct or remove the row)",
        f"out {tmp_path}: holds other files: model, notes.txt, texts.csv (choose an empty or new folder)",
        f"device: there is no `cuda:99` here ({torch.cuda.device_count()} CUDA devices; try auto)",
        f"model {model_copy}: has no weights (model.safetensors) "
        "(download the whole model, or one that has safetensors)",
        "layers: `9`: the model has no layer 9 (it has 3 layers, 0–2)",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_faults_of_a_yaml_file_come_with_the_others(asked: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {asked['model']}\ndata: none.csv\nout: {tmp_path}/run\nlayer: 1\ndtype: int8\n")
    assert faults_of(path, languages="english", layers="7") == [
        "dtype: 'int8' is not possible "
        "(give dtype of the weights: auto (that of the checkpoint), float32, bfloat16 or float16)",
        "layer: is not an option (did you mean layers?)",
        "none.csv: does not exist (check the path)",
        "layers: `7`: the model has no layer 7 (it has 3 layers, 0–2)",
    ]


def test_an_unreadable_yaml_file_is_the_only_fault(asked: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: !!python/name:os.system\n")
    assert faults_of(path, layers="7") == [
        f"{path}, line 1: tag tag:yaml.org,2002:python/name:os.system is refused "
        "(write plain name: value lines)"
    ]


def test_options_override_yaml_and_config(asked: dict[str, Any], tmp_path: Path) -> None:
    config = Config(**asked, limit=2, layers="0")
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    for source in (config, path, str(path)):
        prepared = prepare(source, {"limit": 4, "languages": None})
        assert (len(prepared.scan), prepared.layers) == (4, {"residual": (0,)})


@pytest.mark.parametrize("kind", ["file", "below a file", "NUL", "too long", "foreign files"])
def test_out_that_cannot_be_a_run_folder(kind: str, asked: dict[str, Any], tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    for name in "abcd":
        (folder / name).touch()
    out, message = {
        "file": (f"{file}", f"out {file}: is a file (choose a folder)"),
        "below a file": (
            f"{file}/run",
            f"out {file}/run: {file} cannot be written (choose another folder, or change its permissions)",
        ),
        "NUL": ("a\0b", "out: holds a NUL character (correct the path)"),
        "too long": (
            "x" * 300,
            f"out {'x' * 300}: cannot be used: File name too long (choose another folder)",
        ),
        "foreign files": (
            f"{folder}",
            f"out {folder}: holds other files: a, b, c … (choose an empty or new folder)",
        ),
    }[kind]
    assert faults_of(**{**asked, "out": out}) == [message]


@pytest.fixture
def cached_model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a model in a Hugging Face cache."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tiny_model, repository / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return "someone/tiny"


def test_an_id_is_recorded_with_its_commit(asked: dict[str, Any], cached_model: str) -> None:
    prepared = prepare(None, {**asked, "model": cached_model})
    assert (prepared.attrs["model"], prepared.attrs["model_revision"]) == (cached_model, COMMIT)


def test_weights_are_not_downloaded_if_there_are_faults(
    asked: dict[str, Any], cached_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    fetch = huggingface_hub.snapshot_download

    def spy(*args: Any, allow_patterns: list[str], **kwargs: Any) -> Any:
        fetched.extend(allow_patterns)
        return fetch(*args, allow_patterns=allow_patterns, **kwargs)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", spy)
    assert faults_of(**{**asked, "model": cached_model, "layers": "9"}) == [
        "layers: `9`: the model has no layer 9 (it has 3 layers, 0–2)"
    ]
    assert "*.json" in fetched
    assert "*.safetensors" not in fetched
    prepare(None, {**asked, "model": cached_model})
    assert "*.safetensors" in fetched


@pytest.mark.parametrize(
    ("declared", "stored", "option"),
    [
        ("float32", torch.float32, "auto"),
        ("bfloat16", torch.float32, "auto"),
        (None, torch.bfloat16, "auto"),
        (None, torch.float16, "auto"),
        ("bfloat16", torch.bfloat16, "float32"),
    ],
    ids=str,
)
def test_dtype_of_the_weights_is_the_one_that_transformers_takes(
    declared: str | None, stored: torch.dtype, option: str, asked: dict[str, Any], model_copy: Path
) -> None:
    edit_json(model_copy / "config.json", dtype=declared)
    weights = {
        name: tensor.to(stored) for name, tensor in load_file(model_copy / "model.safetensors").items()
    }
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    prepared = prepare(None, {**asked, "model": model_copy, "dtype": option})
    assert f"torch.{prepared.attrs['weights_dtype']}" == str(LOAD(model_copy, dtype=option).dtype)


def test_prompts_longer_than_the_positions_of_bert(
    asked: dict[str, Any], minilm: Path, write: Callable[..., Path]
) -> None:
    data = write("short", "word " * 510, "word " * 511, "word " * 900)
    options = {**asked, "model": minilm, "data": data}
    assert faults_of(**options) == [
        f"row {row} (line {row + 1}): has {count} tokens, but the model takes at most 512: "
        "set max_tokens to 512 or less (correct or remove the row)"
        for row, count in ((3, 513), (4, 902))
    ]
    prepared = prepare(None, {**options, "max_tokens": 512})
    assert prepared.spec.measure.lengths.tolist() == [3, 512, 512, 512]
    assert prepared.spec.measure.truncated.tolist() == [False, False, True, True]
    assert prepared.attrs["truncated_samples"] == 2


def test_prompts_longer_than_the_positions_of_gpt2(
    asked: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    model = tmp_path / "gpt2"
    GPT2Model(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=8,
            n_embd=8,
            n_layer=2,
            n_head=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(model)
    tokenizer.save_pretrained(model)
    counts = [len(tokenizer(text).input_ids) for text in texts_of(asked)]
    assert sum(count > 8 for count in counts) == 4
    assert faults_of(**{**asked, "model": model}) == [
        f"row {row} (line {row + 1}): has {count} tokens, but the model takes at most 8: "
        "set max_tokens to 8 or less (correct or remove the row)"
        for row, count in enumerate(counts, start=1)
        if count > 8
    ]
    assert prepare(None, {**asked, "model": model, "max_tokens": 8}).attrs["truncated_samples"] == 4


def test_prompts_are_cut_and_counted(asked: dict[str, Any], tokenizer: Any) -> None:
    prepared = prepare(None, {**asked, "max_tokens": 10})
    texts = texts_of(asked)
    whole = [tokenizer(text).input_ids for text in texts]
    assert prepared.spec.measure.lengths.tolist() == [min(len(ids), 10) for ids in whole]
    assert prepared.spec.measure.truncated.tolist() == [len(ids) > 10 for ids in whole]
    assert 0 < prepared.attrs["truncated_samples"] == sum(len(ids) > 10 for ids in whole) < 6
    for prompt, ids in zip(prepared.spec.encoder.encode(texts), whole, strict=True):
        assert isinstance(prompt, Prompt)
        assert prompt.ids.tolist() == ids[:10]


@pytest.mark.parametrize(("model", "added"), [("tiny_model", 1), ("minilm", 2)])
def test_max_tokens_leaves_room_for_text(
    model: str, added: int, asked: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    options = {**asked, "model": request.getfixturevalue(model)}
    for too_few in range(1, added + 1):
        assert faults_of(**options, max_tokens=too_few) == [
            f"max_tokens: {too_few} leaves no room for text: the tokenizer adds {added} tokens "
            f"(set max_tokens to {added + 1} or more)"
        ]
    encoder = prepare(None, {**options, "max_tokens": added + 1}).spec.encoder
    for prompt in encoder.encode(texts_of(asked)):
        assert isinstance(prompt, Prompt)
        assert content_positions(prompt.kinds, first_is_content=True).sum() == 1


def test_a_tokenizer_of_another_model_is_a_fault(
    asked: dict[str, Any], model_copy: Path, tokenizer: Any
) -> None:
    highest = [max(tokenizer(text).input_ids) for text in texts_of(asked)]
    edit_json(model_copy / "config.json", vocab_size=max(highest))
    row = highest.index(max(highest)) + 1
    assert faults_of(**{**asked, "model": model_copy})[0] == (
        f"row {row} (line {row + 1}): has token {max(highest)}, but the model's embedding has only "
        f"{max(highest)} rows: use the tokenizer that belongs to the model (correct or remove the row)"
    )


def texts_of(asked: dict[str, Any]) -> list[str]:
    return [str(text) for block in prepare(None, asked).rows() for text in block["text"]]


def encode(tokenizer: Any, *texts: str) -> list[Prompt | str]:
    return Encoder(tokenizer).encode(texts)


def kinds_of(prompts: list[Prompt | str]) -> list[list[int]]:
    assert not any(isinstance(prompt, str) for prompt in prompts)
    return [prompt.kinds.tolist() for prompt in prompts if isinstance(prompt, Prompt)]


def test_token_kinds_distinguish_text_from_added_tokens(tokenizer: Any) -> None:
    assert kinds_of(encode(tokenizer, "a", "a</s>b", "<s>")) == [
        [TokenKind.SPECIAL, TokenKind.TEXT],
        [TokenKind.SPECIAL, TokenKind.TEXT, TokenKind.SPECIAL, TokenKind.TEXT],
        [TokenKind.SPECIAL, TokenKind.SPECIAL],
    ]


def test_unknown_words_are_text(minilm: Path) -> None:
    (prompt,) = encode(AutoTokenizer.from_pretrained(minilm), "word 🦄")
    assert isinstance(prompt, Prompt)
    assert prompt.ids.tolist() == [101, 2773, 100, 102]
    assert prompt.kinds.tolist() == [TokenKind.SPECIAL, TokenKind.TEXT, TokenKind.TEXT, TokenKind.SPECIAL]


def with_parts(tokenizer: Any, **parts: Any) -> Any:
    """Return the tokenizer with some components replaced, named as in tokenizer.json."""
    described = {**json.loads(tokenizer.backend_tokenizer.to_str()), **parts}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))


def test_without_a_leading_special_token_position_0_is_not_content(
    tokenizer: Any, asked: dict[str, Any], model_copy: Path
) -> None:
    assert prepare(None, asked).spec.measure.first_is_content
    with_parts(tokenizer, post_processor=None).save_pretrained(model_copy)
    prepared = prepare(None, {**asked, "model": model_copy})
    assert not prepared.spec.measure.first_is_content
    assert prepared.attrs["first_is_content"] is False
    assert str(prepared.attrs["content_rule"]).endswith("; not position 0")


def test_prompts_without_any_token_are_a_fault(
    tokenizer: Any, asked: dict[str, Any], model_copy: Path, write: Callable[..., Path]
) -> None:
    silent = with_parts(
        tokenizer,
        post_processor=None,
        normalizer={"type": "Replace", "pattern": {"String": "\u200f"}, "content": ""},
    )
    silent.save_pretrained(model_copy)
    data = write("a", "\u200f", "b", "\u200f\u200f")
    assert faults_of(**{**asked, "model": model_copy, "data": data}) == [
        "row 2 (line 3): has no tokens (correct or remove the row)",
        "row 4 (line 5): has no tokens (correct or remove the row)",
    ]
