"""Tokenizers without tokenizer.json are loaded, or the package for their vocabulary is reported missing."""

import base64
import importlib.util
import io
import json
from pathlib import Path

import pytest
import sentencepiece
import tiktoken

import actkit
from actkit.errors import InputError
from actkit.extraction.models.checkpoint import Checkpoint
from actkit.extraction.prompts.processor import load_tokenizer
from actkit.extraction.prompts.vocabulary_files import named_package

TEXTS = ["a doctor reads a book", "he waits in the old library", "a letter to his sister"] * 20
# transformers classes and the file names of their sentencepiece vocabularies
CLASSES = {
    "LlamaTokenizer": "tokenizer.model",
    "GemmaTokenizer": "tokenizer.model",
    "T5Tokenizer": "spiece.model",
    "XLMRobertaTokenizer": "sentencepiece.bpe.model",
    "XGLMTokenizer": "sentencepiece.bpe.model",
}


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """A small sentencepiece vocabulary."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=file, vocab_size=60, model_type="bpe", minloglevel=2
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def ranks() -> bytes:
    """A small tiktoken vocabulary."""
    tokens = [bytes([code]) for code in range(256)] + [b"do", b"doc"]
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))
    return b"".join(lines)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without packages for reading vocabularies."""
    find, blocked = importlib.util.find_spec, ("sentencepiece", "tiktoken", "google.protobuf")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in blocked else find(name, *a)
    )


def write(folder: Path, cls: str, file: str, content: bytes) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls}))
    (folder / file).write_bytes(content)
    return Checkpoint("m", folder, "")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.usefixtures("nothing_installed")
def test_a_vocabulary_of_sentencepiece_names_its_packages(cls: str, pieces: bytes, tmp_path: Path) -> None:
    tokenizer, faults = load_tokenizer(write(tmp_path, cls, CLASSES[cls], pieces))
    assert tokenizer is None
    needs = "sentencepiece and protobuf (pip install sentencepiece protobuf)"
    assert [str(fault) for fault in faults] == [f"model m: its tokenizer ({CLASSES[cls]}) needs {needs}"]


@pytest.mark.parametrize("file", ["tokenizer.model", "tiktoken.model"])
@pytest.mark.usefixtures("nothing_installed")
def test_a_vocabulary_of_tiktoken_names_its_package(file: str, ranks: bytes, tmp_path: Path) -> None:
    _, faults = load_tokenizer(write(tmp_path, "GPT2Tokenizer", file, ranks))
    assert [str(fault) for fault in faults] == [
        f"model m: its tokenizer ({file}) needs tiktoken (pip install tiktoken)"
    ]


@pytest.mark.usefixtures("nothing_installed", "no_weights")
def test_the_package_is_named_before_anything_is_loaded(
    model_copy: Path, prompts: Path, pieces: bytes, tmp_path: Path
) -> None:
    (model_copy / "tokenizer.json").unlink()
    (model_copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    (model_copy / "tokenizer.model").write_bytes(pieces)
    with pytest.raises(InputError) as caught:
        actkit.plan(model=str(model_copy), data=str(prompts), out=str(tmp_path / "run"))
    (fault,) = caught.value.faults
    assert fault.hint == "pip install sentencepiece protobuf"


@pytest.mark.usefixtures("nothing_installed")
def test_tokenizer_json_needs_no_package(tiny_model: Path, model_copy: Path, pieces: bytes) -> None:
    (model_copy / "tokenizer.model").write_bytes(pieces)
    assert load_tokenizer(Checkpoint("m", model_copy, ""))[1] == []


def test_sentencepiece_vocabularies_are_loaded_correctly(pieces: bytes, tmp_path: Path) -> None:
    tokenizer, faults = load_tokenizer(write(tmp_path, "LlamaTokenizer", "tokenizer.model", pieces))
    assert (faults, tokenizer is None) == ([], False)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    for text in TEXTS[:3]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)  # type: ignore[misc]


def test_tiktoken_vocabularies_are_loaded_correctly(ranks: bytes, tmp_path: Path) -> None:
    tokenizer, faults = load_tokenizer(write(tmp_path, "GPT2Tokenizer", "tiktoken.model", ranks))
    assert (faults, tokenizer is None) == ([], False)
    pairs = (line.split() for line in ranks.splitlines())
    theirs = tiktoken.Encoding(
        "small",
        pat_str=r"\w+|\s",
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in pairs},
        special_tokens={},
    )
    ids = tokenizer("doctor", add_special_tokens=False)["input_ids"]  # type: ignore[misc]
    assert tokenizer.decode(ids) == "doctor"  # type: ignore[union-attr]
    assert len(ids) == len(theirs.encode("doctor")) == 4


def test_classes_that_ignore_the_vocabulary_are_refused(pieces: bytes, tmp_path: Path) -> None:
    # transformers 5.23 gives XGLM another vocabulary, in which nearly every word is unknown
    tokenizer, (fault,) = load_tokenizer(write(tmp_path, "XGLMTokenizer", "sentencepiece.bpe.model", pieces))
    assert tokenizer is None
    assert fault.what == "XGLMTokenizer reads 11 of the 60 tokens in sentencepiece.bpe.model"


def test_a_damaged_vocabulary_is_one_fault(pieces: bytes, tmp_path: Path) -> None:
    tokenizer, faults = load_tokenizer(
        write(tmp_path, "XGLMTokenizer", "sentencepiece.bpe.model", pieces[:-200])
    )
    assert tokenizer is None
    assert len(faults) == 1


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("MarianTokenizer requires the SentencePiece library but it was not found", "sentencepiece"),
        ("`tiktoken` is required to read a `tiktoken` file", "tiktoken"),
        ("requires the protobuf library", "protobuf"),
        ("You need to have sentencepiece or tiktoken: couldn't instantiate the backend tokenizer", ""),
        ("no such file", ""),
    ],
)
@pytest.mark.usefixtures("nothing_installed")
def test_missing_packages_are_found_in_transformers_errors(message: str, package: str) -> None:
    assert named_package(ImportError(message)) == package
