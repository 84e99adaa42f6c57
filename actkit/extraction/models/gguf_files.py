"""GGUF files: validation of header and contents, and an isolated folder for transformers to read from."""

import importlib.util
import mmap
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from ...errors import Fault, listed
from ...regular_files import open_regular

SUFFIX = ".gguf"
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_VERSIONS = (2, 3)
# limits above what any model has, but small enough to read at once
_MAX_ENTRIES = 2**16
_MAX_VALUES = 2**23  # in arrays; a vocabulary with its merges has less than a tenth
_MAX_DIMENSIONS = 4  # limit of ggml
_MAX_DEPTH = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# rope entries that have no effect: those with these values, and those in _NO_EFFECT with any value
_UNSCALED: dict[str, tuple[Any, ...]] = {
    "scaling.type": ("none", "linear"),  # llama.cpp assumes linear scaling by the factor
    "scaling.factor": (0, 1),
    "scaling.attn_factor": (1,),
    "scale_linear": (0, 1),
}
_NO_EFFECT = ("scaling.original_context_length", "scaling.finetuned")
_UNQUANTIZED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file as described by its header.

    Parameters
    ----------
    path
        Path of the file.
    architecture
        Name of the architecture in llama.cpp.
    quantization
        Storage of the weights: the file type, then the number of tensors of each type.
    dtype
        Dtype of the weights if the file is not quantized; otherwise bfloat16, in which most models were
        trained.
    elements
        Number of values of each tensor, by name.
    is_plain
        Whether no tensor is quantized.
    rope_scaling
        Scaling of the rotary positions, as written in the file; empty if they are not scaled.
    """

    path: Path
    architecture: str
    quantization: str
    dtype: str
    elements: dict[str, int]
    is_plain: bool
    rope_scaling: str = ""

    @property
    def description(self) -> str:
        """Storage of the weights, for the attributes of a cube."""
        return f"gguf {self.quantization}" + ("" if self.is_plain else ", dequantized")


def find_gguf(name: str) -> tuple[Path | None, list[Fault]]:
    """Find the GGUF file that a path refers to.

    Parameters
    ----------
    name
        Path of a file or a folder.

    Returns
    -------
    path : Path or None
        None if the path refers to no GGUF file.
    faults : list of Fault
        Folder with more than one GGUF file.
    """
    path = Path(name)
    if path.is_file():
        return (path if path.suffix.lower() == SUFFIX else None), []
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())
    whole = [file for file in files if not _SHARD.search(file.name)]
    if not files or next(path.glob("*.safetensors"), None) is not None:
        return None, []
    if len(whole) > 1:
        problem = f"holds several GGUF files: {', '.join(file.name for file in whole)}"
        return None, [Fault(f"model {name}", problem, f"choose one, such as {whole[0]}")]
    return (whole or files)[0], []


def read_gguf(path: Path) -> tuple[GgufFile | None, list[Fault]]:
    """Read and check the header of a GGUF file, with limits on all declared sizes.

    Returns
    -------
    file : GgufFile or None
    faults : list of Fault
        Missing package, or a file that is a shard, damaged or not a GGUF file.
    """
    where = f"model {path}"
    if shard := _SHARD.search(path.name):
        problem = f"is one of {int(shard[1])} shards"
        return None, [Fault(where, problem, "merge them with llama.cpp's `llama-gguf-split --merge`")]
    if importlib.util.find_spec("gguf") is None:
        return None, [Fault(where, "GGUF files need gguf", "pip install gguf")]
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Header(content).describe(path), []
    except (OSError, ValueError, OverflowError, struct.error) as error:
        reason = "it ends too early" if isinstance(error, struct.error) else str(error)
        return None, [Fault(where, f"is not a valid GGUF file: {reason}", "download it again")]


class _Header:
    """Parser of the header of a GGUF file, which never reads past the end of the file."""

    def __init__(self, content: Any) -> None:
        self._content, self._at, self._count = content, 0, 0
        if content[:4] != b"GGUF":
            raise ValueError("it does not start with GGUF")
        self._at = 4
        version, tensors, entries = self._take("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not supported")
        for count, noun in ((tensors, "tensors"), (entries, "entries")):
            if count > _MAX_ENTRIES:
                raise ValueError(f"it declares {count:,} {noun}")
        self.entries = dict(self._entry() for _ in range(entries))
        self.tensors = [self._tensor() for _ in range(tensors)]

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._content, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        if length > len(self._content) - self._at:
            raise struct.error
        self._at += length
        return str(self._content[self._at - length : self._at], "utf-8")

    def _entry(self) -> tuple[str, Any]:
        name, (kind,) = self._string(), self._take("I")
        return name, self._value(kind)

    def _value(self, kind: int, depth: int = 0) -> Any:
        """Return a value, or the length of an array."""
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and depth < _MAX_DEPTH:
            element_kind, count = self._take("IQ")
            if count > len(self._content) - self._at:
                raise struct.error
            self._count += count if element_kind not in _SCALARS else 0
            if self._count > _MAX_VALUES:
                raise ValueError(f"it declares more than {_MAX_VALUES:,} strings and arrays")
            if element_kind in _SCALARS:
                self._at += count * struct.calcsize(f"<{_SCALARS[element_kind]}")
            else:
                for _ in range(count):
                    self._value(element_kind, depth + 1)
            return count
        if kind not in _SCALARS:
            raise ValueError(f"it holds a value of unknown type {kind}")
        return self._take(_SCALARS[kind])[0]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, (dimensions,) = self._string(), self._take("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"`{name}` has {dimensions:,} dimensions")
        shape = self._take(f"{dimensions}Q")
        kind, offset = self._take("IQ")
        return name, shape, kind, offset

    def describe(self, path: Path) -> GgufFile:
        """Return the content of the header, after checking that the file is long enough for its tensors."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

        architecture = self.entries.get("general.architecture")
        if not isinstance(architecture, str):
            raise ValueError("it declares no architecture")
        if not self.tensors:
            raise ValueError("it holds no tensors")
        alignment = self.entries.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}")
        start = -(-self._at // alignment) * alignment
        kinds: Counter[str] = Counter()
        for name, shape, number, offset in self.tensors:
            kind = GGMLQuantizationType(number)  # raises ValueError with the number
            block, size = GGML_QUANT_SIZES[kind]
            kinds[kind.name] += 1
            if start + offset + prod(shape) // block * size > len(self._content):
                raise ValueError(f"it ends before the end of `{name}`")
        stored = self.entries.get("general.file_type")
        known = {
            int(member): member.name.removeprefix("MOSTLY_").removeprefix("ALL_") for member in LlamaFileType
        }
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        label = known.get(stored, "") if isinstance(stored, int) else ""
        plain = [kind for kind in ("BF16", "F16", "F32") if kind in kinds]
        is_plain = set(kinds) <= set(_UNQUANTIZED)
        return GgufFile(
            path=path,
            architecture=architecture,
            quantization=f"{label} ({counted})" if label else counted,
            dtype=_UNQUANTIZED[plain[0]] if is_plain else "bfloat16",
            elements={name: prod(shape) for name, shape, *_ in self.tensors},
            is_plain=is_plain,
            rope_scaling=self._rope_scaling(f"{architecture}.rope."),
        )

    def _rope_scaling(self, prefix: str) -> str:
        """Return the entries that scale rotary positions, as llama.cpp interprets them."""
        rope = {key.removeprefix(prefix): value for key, value in self.entries.items()}
        scaling = {
            key: value
            for key, value in rope.items()
            if key.startswith(("scaling.", "scale_"))
            and key not in _NO_EFFECT
            and value not in _UNSCALED.get(key, ())
        }
        if rope.get("scaling.type") == "none":
            scaling = {key: value for key, value in scaling.items() if key == "scaling.attn_factor"}
        return ", ".join(f"rope.{key} = {value}" for key, value in scaling.items())


@contextmanager
def isolate(folder: Path, file: GgufFile | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder that transformers reads a model from, and the options that select the file.

    For a GGUF file, this is a temporary folder with nothing else in it: transformers would also read
    tokenizers, templates and generation configs that happen to be in the same folder.
    """
    if file is None:
        yield folder, {}
        return
    with tempfile.TemporaryDirectory(prefix="actkit-gguf-") as isolated, _shared_tensor_names():
        (Path(isolated) / "model.gguf").symlink_to(file.path.resolve())
        yield Path(isolated), {"gguf_file": "model.gguf"}


@contextmanager
def _shared_tensor_names() -> Iterator[None]:
    """Build the table of tensor names once within the context.

    transformers builds the same table for every module of a model, in which it spends half of the time that
    it takes to load one.
    """
    import gguf

    original = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(original)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = original


def check_contents(file: GgufFile, skeleton: Any) -> list[Fault]:
    """Find parts of a GGUF file that transformers would silently ignore.

    Parameters
    ----------
    file
        The file.
    skeleton
        The model that transformers builds for it, without weights but with its head.
    """
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    where, hint = f"model {file.path}", "use the model's safetensors"
    if file.rope_scaling:
        problem = (
            f"scales its rotary positions ({file.rope_scaling}), which transformers does not read from GGUF"
        )
        return [Fault(where, problem, hint)]
    if file.architecture in GGUF_CONFIG_ARCHS:  # read by another code path, which reports unused tensors
        return []
    kind: Any = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)
    with _shared_tensor_names():
        mapped = get_gguf_hf_weights_map(skeleton, kind(config={}))
    # stacked experts are split by the processor
    unused = [name for name in file.elements if name not in mapped and "_exps" not in name]
    if "gpt2" in file.architecture:  # its processor assigns the head itself
        unused = [name for name in unused if name != "output.weight"]
    if not unused:
        return []
    problem = f"holds tensors that transformers does not read: {listed(unused)}"
    return [Fault(where, problem, hint)]
