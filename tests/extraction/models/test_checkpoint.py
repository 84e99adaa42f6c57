"""Model folders and ids: valid ones are found, all others are refused before anything is loaded."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch as torch_file
import torch
from safetensors.numpy import load_file, save_file

from actkit.extraction.models.architecture import read_architecture
from actkit.extraction.models.checkpoint import find_checkpoint
from actkit.extraction.prompts.processor import load_tokenizer

INDEX = "model.safetensors.index.json"
WHOLE: dict[str, str] = {}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mknod, (str(self.path),)


def edit_json(path: Path, **entries: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **entries}))


def only_pickle(folder: Path, name: str = "pytorch_model.bin") -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Touch(folder / "marker")))


def sharded(folder: Path, index: Any) -> None:
    """Rename the weights to a first shard and write an index."""
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / INDEX).write_text(json.dumps(index))


def whole(folder: Path) -> None:
    """Rename the weights to a single shard with a valid index."""
    WHOLE.update(dict.fromkeys(load_file(folder / "model.safetensors"), "model-1.safetensors"))
    sharded(folder, {"weight_map": WHOLE})


def stored_as(folder: Path, dtype: torch.dtype, *, scale: tuple[int, int] | None = None) -> None:
    """Store one weight with another dtype."""
    path, name = folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    tensors = torch_file.load_file(path)
    tensors[name] = tensors[name].to(dtype)
    if scale:
        tensors[f"{name}_scale_inv"] = torch.ones(scale)
    torch_file.save_file(tensors, path)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


CODE = "use a checkpoint that transformers supports itself; actkit never runs code from a model"
BESIDE = "(shards must be safetensors files in the same folder as their index)"

FAULTY: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        ["model {}: has no config.json (download the whole model)"],
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["model {}: has no weights (model.safetensors) (download the whole model, or one that has safetensors)"],
    ),
    "empty folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        [
            "model {}: has no config.json (download the whole model)",
            "model {}: has no weights (model.safetensors) (download the whole model, or one that has safetensors)",
        ],
    ),
    "only a pickle": (
        only_pickle,
        ["model {}: has only pickled weights (pytorch_model.bin) (a pickle can run code when it is read: convert the weights to safetensors)"],
    ),
    "only sharded pickles": (
        lambda folder: only_pickle(folder, "pytorch_model.bin.index.json"),
        ["model {}: has only pickled weights (pytorch_model.bin.index.json) (a pickle can run code when it is read: convert the weights to safetensors)"],
    ),
    "pickle named by the index": (
        lambda folder: (only_pickle(folder), edit_json(folder / INDEX, weight_map={"a": "pytorch_model.bin"})),
        [f"{{}}/{INDEX}: lists `pytorch_model.bin` {BESIDE}"],
    ),
    "code in the config": (
        lambda folder: edit_json(folder / "config.json", auto_map={"AutoModel": "evil.Model"}),
        [f"model {{}}: config.json refers to custom code (auto_map) ({CODE})"],
    ),
    "code in the tokenizer's config": (
        lambda folder: edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        [f"model {{}}: tokenizer_config.json refers to custom code (auto_map) ({CODE})"],
    ),
    "adapter": (
        lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path="/elsewhere"),
        ["model {}: holds an adapter (adapter_config.json) (set `adapter`, not `model`, to this folder)"],
    ),
    "nothing but an adapter": (
        lambda folder: ([path.unlink() for path in folder.iterdir()], edit_json(folder / "adapter_config.json")),
        ["adapter {}: has no weights (adapter_model.safetensors) (download the whole adapter)"],
    ),
    "missing shard": (
        lambda folder: sharded(folder, {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}),
        ["{}/model-2.safetensors: is missing (download the whole model)"],
    ),
    "shards elsewhere": (
        lambda folder: sharded(
            folder, {"weight_map": dict(enumerate(["../evil.safetensors", "/evil.safetensors", "..", "", "a/b.safetensors", 3]))}
        ),
        [f"{{}}/{INDEX}: lists `{name}` {BESIDE}" for name in ("", "..", "../evil.safetensors", "/evil.safetensors", "3", "a/b.safetensors")],
    ),
    "index without shards": (
        lambda folder: sharded(folder, {"metadata": {}}),
        [f"{{}}/{INDEX}: lists no shards (download it again)"],
    ),
    "index of another shape": (
        lambda folder: sharded(folder, {"weight_map": ["model-1.safetensors"]}),
        [f"{{}}/{INDEX}: lists no shards (download it again)"],
    ),
    "index that is a list": (
        lambda folder: sharded(folder, []),
        [f"{{}}/{INDEX}: is not a JSON object"],
    ),
    "truncated weights": (
        lambda folder: cut(folder / "model.safetensors", -10),
        ["{}/model.safetensors: is not a valid safetensors file: Error while deserializing header: incomplete metadata, file not fully covered (download it again)"],
    ),
    "empty weights": (
        lambda folder: cut(folder / "model.safetensors", 0),
        ["{}/model.safetensors: is not a valid safetensors file: Error while deserializing header: header too small (download it again)"],
    ),
    "pointer instead of weights": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        ["{}/model.safetensors: is not a valid safetensors file: Error while deserializing header: header too large (download it again)"],
    ),
    "no JSON": (
        lambda folder: (folder / "config.json").write_text("{model_type: llama}"),
        ["{}/config.json: cannot be read: Expecting property name enclosed in double quotes: line 1 column 2 (char 1) (download it again)"],
    ),
    "endless JSON": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        ["{}/config.json: cannot be read: maximum recursion depth exceeded while decoding a JSON array from a unicode string (download it again)"],
    ),
    "config that is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        ["{}/config.json: is not a JSON object"],
    ),
    "other weights named by the config": (
        lambda folder: edit_json(folder / "config.json", transformers_weights="other.safetensors"),
        ["model {}: config.json names weights other than model.safetensors (transformers_weights: 'other.safetensors') (remove that entry and give the file the usual name)"],
    ),
    "kernels of the hub": (
        lambda folder: edit_json(folder / "config.json", text_config={"_attn_implementation": "someone/kernels"}),
        ["model {}: config.json requests attention kernels from the Hugging Face Hub (someone/kernels) (remove that entry; actkit never runs code from the Hub)"],
    ),
    "tensor in two shards": (
        lambda folder: (whole(folder), save_file({"model.norm.weight": np.ones(160)}, folder / "model-2.safetensors"), edit_json(folder / INDEX, weight_map={**WHOLE, "more": "model-2.safetensors"})),
        [
            f"{{}}/{INDEX}: more than one of its shards holds model.norm.weight (download the model again)",
            f"{{}}/{INDEX}: lists weights that its shards lack: more (download the model again)",
        ],
    ),
    "float8 that the config does not declare": (
        lambda folder: stored_as(folder, torch.float8_e4m3fn),
        ["model {}: holds weights of type F8_E4M3 (model.layers.0.mlp.up_proj.weight), but config.json has no quantization_config (use the unquantized checkpoint)"],
    ),
    "integers that the config does not declare": (
        lambda folder: stored_as(folder, torch.int8),
        ["model {}: holds weights of type I8 (model.layers.0.mlp.up_proj.weight), but config.json has no quantization_config (use the unquantized checkpoint)"],
    ),
    "quantized weights that are declared and not there": (
        lambda folder: edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ["model {}: declares quantized weights in config.json (quantization_config), but holds none (remove that entry if the weights are not quantized)"],
    ),
    "entry of quantization that is no object": (
        lambda folder: edit_json(folder / "config.json", quantization_config="fp8"),
        ["model {}: config.json has a quantization_config that is not an object (download it again)"],
    ),
    "several at once": (
        lambda folder: (only_pickle(folder), edit_json(folder / "config.json", auto_map={}), (folder / "tokenizer_config.json").write_bytes(b"\xff")),
        [
            f"model {{}}: config.json refers to custom code (auto_map) ({CODE})",
            "{}/tokenizer_config.json: cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte (download it again)",
            "model {}: has only pickled weights (pytorch_model.bin) (a pickle can run code when it is read: convert the weights to safetensors)",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_folders_are_refused(name: str, model_copy: Path) -> None:
    damage, messages = FAULTY[name]
    damage(model_copy)
    _, faults = find_checkpoint(str(model_copy), None)
    assert [str(fault) for fault in faults] == [message.format(model_copy) for message in messages]
    assert not (model_copy / "marker").exists(), "a pickle was read"


def test_the_config_can_be_read_unless_it_is_at_fault(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    checkpoint, _ = find_checkpoint(str(model_copy), None)
    assert checkpoint is not None
    assert read_architecture(checkpoint)[1] == []
    edit_json(model_copy / "config.json", auto_map={"AutoConfig": "evil.Config"})
    assert find_checkpoint(str(model_copy), None)[0] is None


def test_the_pickle_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_a_valid_folder_is_found(tiny_model: Path) -> None:
    checkpoint, faults = find_checkpoint(str(tiny_model), None)
    assert faults == []
    assert checkpoint is not None
    assert (checkpoint.name, checkpoint.folder) == (str(tiny_model), tiny_model)
    assert read_architecture(checkpoint)[1] == []
    assert load_tokenizer(checkpoint)[1] == []


def test_a_pickle_beside_safetensors_is_never_read(model_copy: Path) -> None:
    (model_copy / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(model_copy / "marker")))
    checkpoint, faults = find_checkpoint(str(model_copy), None)
    assert faults == []
    assert checkpoint is not None
    assert not (model_copy / "marker").exists()


def test_shards_are_found(model_copy: Path) -> None:
    whole(model_copy)
    checkpoint, faults = find_checkpoint(str(model_copy), None)
    assert faults == []
    assert checkpoint is not None


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_revision_of_a_folder_follows_its_files(file: str, model_copy: Path) -> None:
    def revision() -> str:
        checkpoint, _ = find_checkpoint(str(model_copy), None)
        assert checkpoint is not None
        return checkpoint.revision

    before = revision()
    assert revision() == before
    content = (model_copy / file).read_bytes()
    (model_copy / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if file == "config.json":  # still JSON
        (model_copy / file).write_bytes(content + b"\n")
    assert revision() != before
    (model_copy / file).write_bytes(content)
    assert revision() == before


def test_a_folder_has_no_revision(tiny_model: Path) -> None:
    _, faults = find_checkpoint(str(tiny_model), "main")
    assert [str(fault) for fault in faults] == [
        "revision: cannot be used with a folder (leave it out; folders have no revisions)"
    ]


NOT_FOUND = {
    "/no/such/folder": "model '/no/such/folder': is neither a folder nor a Hugging Face id (check the path)",
    "a/b/c": "model 'a/b/c': is neither a folder nor a Hugging Face id (check the path)",
    "a b": "model 'a b': is neither a folder nor a Hugging Face id (check the path)",
    "نموذج/x y": "model 'نموذج/x y': is neither a folder nor a Hugging Face id (check the path)",
    "a\0b": "model 'a\\x00b': is neither a folder nor a Hugging Face id (check the path)",
    "https://huggingface.co/a/b": "model 'https://huggingface.co/a/b': is neither a folder nor a Hugging Face id (check the path)",
    "a..b": "model a..b: is not a folder here and cannot be downloaded: Cannot have -- or .. in repo_id: 'a..b'. (check the name, or download the model to a folder)",
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FOUND)
def test_names_that_are_neither_a_folder_nor_an_id(name: str) -> None:
    checkpoint, faults = find_checkpoint(name, None)
    assert checkpoint is None
    assert [str(fault) for fault in faults] == [NOT_FOUND[name]]


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/model", "nobody/" + "x" * 300])
def test_impossible_names_are_one_fault(name: str) -> None:
    checkpoint, faults = find_checkpoint(name, None)
    assert checkpoint is None
    assert len(faults) == 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache: Path, model: Path) -> Path:
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(model, repository / "snapshots" / COMMIT))


def test_an_id_that_is_not_in_the_cache_is_one_fault(cache: Path) -> None:
    checkpoint, faults = find_checkpoint("someone/tiny", None)
    assert checkpoint is None
    (fault,) = faults
    assert fault.where == "model someone/tiny"
    assert fault.what.startswith("is not a folder here and cannot be downloaded: Cannot find")
    assert fault.hint == "check the name, or download the model to a folder"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_an_id_in_the_cache_is_found_with_its_commit(
    revision: str | None, cache: Path, tiny_model: Path
) -> None:
    snapshot = cached(cache, tiny_model)
    checkpoint, faults = find_checkpoint("someone/tiny", revision)
    assert faults == []
    assert checkpoint is not None
    assert (checkpoint.name, checkpoint.folder, checkpoint.revision) == ("someone/tiny", snapshot, COMMIT)
    assert find_checkpoint("someone/tiny", revision, weights=False) == (checkpoint, [])
    assert load_tokenizer(checkpoint)[1] == []


def test_an_id_of_another_revision_is_one_fault(cache: Path, tiny_model: Path) -> None:
    cached(cache, tiny_model)
    checkpoint, faults = find_checkpoint("someone/tiny", "v2")
    assert checkpoint is None
    assert len(faults) == 1


def test_an_id_is_checked_as_a_folder_is(cache: Path, tiny_model: Path) -> None:
    snapshot = cached(cache, tiny_model)
    only_pickle(snapshot)
    _, (fault,) = find_checkpoint("someone/tiny", None)
    assert fault.what == "has only pickled weights (pytorch_model.bin)"
    assert not (snapshot / "marker").exists()


def test_a_config_that_transformers_does_not_know(model_copy: Path) -> None:
    edit_json(model_copy / "config.json", model_type="nonesuch")
    checkpoint, _ = find_checkpoint(str(model_copy), None)
    assert checkpoint is not None
    architecture, (fault,) = read_architecture(checkpoint)
    assert architecture is None
    assert fault.where == f"model {model_copy}"
    assert fault.what.startswith(
        "its config cannot be read: The checkpoint you are trying to load has model type `nonesuch`"
    )
    assert fault.hint.startswith("transformers ")


def test_a_folder_without_a_tokenizer(model_copy: Path) -> None:
    (model_copy / "tokenizer.json").unlink()
    checkpoint, _ = find_checkpoint(str(model_copy), None)
    assert checkpoint is not None
    tokenizer, (fault,) = load_tokenizer(checkpoint)
    assert tokenizer is None
    assert fault.what.startswith("its tokenizer cannot be loaded: Couldn't instantiate the backend tokenizer")


def test_a_tokenizer_without_its_vocabulary_is_refused(minilm: Path, tmp_path: Path) -> None:
    # transformers loads it and maps every word to unknown
    model = Path(shutil.copytree(minilm, tmp_path / "model"))
    for name in ("vocab.txt", "tokenizer.json"):
        (model / name).unlink()
    checkpoint, _ = find_checkpoint(str(model), None)
    assert checkpoint is not None
    tokenizer, faults = load_tokenizer(checkpoint)
    assert tokenizer is None
    assert [str(fault) for fault in faults] == [
        f"model {model}: has no tokenizer (tokenizer.json or vocab.txt) (download the whole model)"
    ]


def test_names_of_the_stored_tensors(model_copy: Path) -> None:
    checkpoint, _ = find_checkpoint(str(model_copy), None)
    assert checkpoint is not None
    assert checkpoint.tensor_names == load_file(model_copy / "model.safetensors").keys()
