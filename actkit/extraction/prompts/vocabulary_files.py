"""Vocabulary files of tokenizers: required packages, and checks that a vocabulary was actually loaded."""

import base64
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ...errors import Fault
from ...regular_files import MOST_JSON, open_regular, read_regular

# a tokenizer with one of these files needs no other, or reports missing packages itself
_SELF_CONTAINED = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "merges.txt")
_SENTENCEPIECE, _TIKTOKEN = ("sentencepiece", "protobuf"), ("tiktoken",)
_MODULES = {"protobuf": "google.protobuf"}
# packages by their spelling in error messages of transformers
_SPELLINGS = {
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "protobuf": "protobuf",
    "mistral-common": "mistral-common",
    "mistral_common": "mistral-common",
    "jieba": "jieba",
    "fugashi": "fugashi",
    "sacremoses": "sacremoses",
}


def check_packages(folder: Path, where: str) -> list[Fault]:
    """Find packages that a tokenizer needs but that are not installed.

    Parameters
    ----------
    folder
        Folder of the model.
    where
        Name of the model, for the fault.

    Notes
    -----
    transformers asks for tiktoken if it cannot read a sentencepiece file, and silently skips the vocabularies
    of some classes if a package is missing. This check therefore looks at the content of the file.
    """
    faults = []
    for path in _vocabularies(folder):
        missing = [name for name in _packages(path) if not _is_installed(name)]
        if missing:
            problem = f"its tokenizer ({path.name}) needs {' and '.join(missing)}"
            faults.append(Fault(where, problem, f"pip install {' '.join(missing)}"))
    return faults[:1]


def named_package(error: Exception) -> str:
    """Return the missing package that an error of transformers names, or an empty string.

    Parameters
    ----------
    error
        Error raised by a tokenizer or a processor.
    """
    message = str(error).lower()
    if "backend tokenizer" in message:  # lists packages although the files are missing
        return ""
    return next(
        (name for spelling, name in _SPELLINGS.items() if spelling in message and not _is_installed(name)), ""
    )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path, where: str) -> list[Fault]:
    """Check that a tokenizer has loaded the vocabulary of its file.

    Parameters
    ----------
    tokenizer
        The loaded tokenizer.
    folder
        Folder of the model.
    where
        Name of the model, for the fault.
    """
    for path in _vocabularies(folder):
        try:
            count = _count(path)
        except (OSError, RuntimeError) as error:
            return [Fault(str(path), f"cannot be read: {str(error).strip()}", "download it again")]
        # some classes drop a few control tokens and renumber the others
        if 2 * len(tokenizer) < count:
            problem = (
                f"{type(tokenizer).__name__} reads {len(tokenizer)} of the {count} tokens in {path.name}"
            )
            return [Fault(where, problem, "convert the tokenizer to tokenizer.json")]
    return []


def _vocabularies(folder: Path) -> list[Path]:
    if any((folder / name).is_file() for name in _SELF_CONTAINED):
        return []
    return sorted(path for pattern in ("*.model", "*.spm") for path in folder.glob(pattern))


def _packages(path: Path) -> Sequence[str]:
    """Return the packages that read a vocabulary: tiktoken for lines of base64, otherwise sentencepiece."""
    with open_regular(path, MOST_JSON) as file:
        start = file.readline(1024).split()
    try:
        base64.b64decode(start[0], validate=True)
        int(start[1])
    except (ValueError, IndexError):
        return _SENTENCEPIECE
    return _TIKTOKEN


def _count(path: Path) -> int:
    if _packages(path) == _TIKTOKEN:
        return sum(1 for line in read_regular(path, MOST_JSON).splitlines() if line.strip())
    from sentencepiece import SentencePieceProcessor

    return int(SentencePieceProcessor(model_file=str(path)).get_piece_size())


def _is_installed(package: str) -> bool:
    name = _MODULES.get(package, package.replace("-", "_"))
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # raised if the parent package `google` is missing
        return False
