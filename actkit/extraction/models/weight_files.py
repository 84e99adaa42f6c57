"""Safetensors files of a checkpoint, and the tensors that their headers declare."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import Fault, listed

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# floating-point types that need no dequantization
FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
}
_BITS |= {"BF16": 16, "F16": 16, "I16": 16, "U16": 16}
# default rows and columns of a weight that share a scale
_BLOCKS = {"fp8": (128, 128), "mxfp8": (1, 32)}
# suffixes of the names of scales, and of the weights that they belong to
_SCALES = {"_scale_inv": "", ".scale": ".weight", ".qscale_weight": ".weight"}
# parts of a config in which transformers looks for a text model
_TEXT_PARTS = ("decoder", "generator", "text_config")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as declared by the header of a file.

    Parameters
    ----------
    name
        Key of the tensor.
    dtype
        Safetensors name of the dtype, such as ``BF16`` or ``F8_E4M3``.
    shape
        Shape of the tensor.
    file
        File that holds the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def is_float(self) -> bool:
        """Whether the values need no dequantization."""
        return self.dtype in FLOATS

    @property
    def n_values(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def n_bytes(self) -> int:
        """Number of bytes in the file."""
        return self.n_values * _BITS.get(self.dtype, 8) // 8


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads, which may be a subset of those in the folder.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(shards.values()))]


def stored_tensors(files: list[Path]) -> Iterator[StoredTensor]:
    """Yield the tensors of safetensors files without reading their values.

    Parameters
    ----------
    files
        Paths of validated files.
    """
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield StoredTensor(name, tensor["dtype"], tuple(tensor["shape"]), file)


def check_tensors(folder: Path, config: Mapping[str, Any]) -> list[Fault]:
    """Check the tensors of a checkpoint before reading their values.

    Parameters
    ----------
    folder
        Folder of the checkpoint, whose files have been validated individually.
    config
        Content of its ``config.json``.

    Returns
    -------
    list of Fault
        Tensors that are in more than one shard, or in the index but in no shard; quantized weights that the
        config does not declare, or declared ones that are missing; blocks of float8 weights that transformers
        would scale wrongly.
    """
    tensors: dict[str, StoredTensor] = {}
    duplicates = []
    for tensor in stored_tensors(weight_files(folder)):
        if tensor.name in tensors:
            duplicates.append(tensor.name)
        tensors[tensor.name] = tensor
    faults = []
    if duplicates:
        problem = f"more than one of its shards holds {listed(duplicates)}"
        faults.append(Fault(str(folder / INDEX), problem, "download the model again"))
    if not (folder / WEIGHTS).is_file():
        indexed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if missing := sorted(indexed.keys() - tensors.keys()):
            problem = f"lists weights that its shards lack: {listed(missing)}"
            faults.append(Fault(str(folder / INDEX), problem, "download the model again"))
    declared = declared_quantization(config)
    if declared is None:
        faults += _check_undeclared(folder, tensors)
    elif all(tensor.is_float for tensor in tensors.values()):
        problem = "declares quantized weights in config.json (quantization_config), but holds none"
        faults.append(Fault(f"model {folder}", problem, "remove that entry if the weights are not quantized"))
    elif (method := str(declared.get("quant_method"))) in _BLOCKS:
        faults += _check_blocks(folder, tensors, declared.get("weight_block_size", _BLOCKS[method]))
    return faults


def declared_quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the ``quantization_config`` of a config, or None if it declares no quantization.

    Parameters
    ----------
    config
        Content of a ``config.json``.
    """
    part = declaring_part(config)
    entry = None if part is None else part["quantization_config"]
    return entry if isinstance(entry, Mapping) else None


def declaring_part(config: Any) -> Any:
    """Return the part of a config that declares a quantization, or None.

    Like transformers, look first at the full config, then at its text model.

    Parameters
    ----------
    config
        Content of a ``config.json``, or the config that transformers reads from it.
    """

    def read(part: Any, name: str) -> Any:
        return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)

    parts = (config, *(read(config, name) for name in _TEXT_PARTS))
    return next((part for part in parts if part is not None and read(part, "quantization_config")), None)


def _check_undeclared(folder: Path, tensors: Mapping[str, StoredTensor]) -> list[Fault]:
    # integer tensors that are not weights are buffers: position ids, masks, counts
    quantized = [
        tensor
        for tensor in tensors.values()
        if not tensor.is_float and (tensor.dtype[0] == "F" or tensor.name.endswith("weight"))
    ]
    if not quantized:
        return []
    names = listed([tensor.name for tensor in quantized])
    problem = (
        f"holds weights of type {quantized[0].dtype} ({names}), but config.json has no quantization_config"
    )
    return [Fault(f"model {folder}", problem, "use the unquantized checkpoint")]


def _check_blocks(folder: Path, tensors: Mapping[str, StoredTensor], block: Any) -> list[Fault]:
    where, hint = f"model {folder}", "use the unquantized checkpoint"
    scaled = list(_scaled_weights(tensors))
    # bytes may hold two values or one float8 value: transformers would have to guess
    if others := [weight.name for weight, _ in scaled if not weight.dtype.startswith("F8")]:
        return [Fault(where, f"holds {listed(others)} with scales, in a type other than float8", hint)]
    if block is None:  # one scale per weight
        return []
    if not _is_block(block):
        problem = f"weight_block_size in config.json is {block!r}, not two positive integers"
        return [Fault(where, problem, hint)]
    # transformers divides a weight, or each one of a stack, into as many equal parts as there are scales
    indivisible = [
        weight.name
        for weight, scale in scaled
        if min(len(scale.shape), len(weight.shape)) >= 2
        and any(
            scales > 1 and scales * size != whole
            for scales, size, whole in zip(scale.shape[-2:], block, weight.shape[-2:], strict=True)
        )
    ]
    if not indivisible:
        return []
    size = " × ".join(map(str, block))
    problem = (
        f"{listed(indivisible)} cannot be divided into whole blocks of {size}, which transformers assumes"
    )
    return [Fault(where, problem, hint)]


def _scaled_weights(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[StoredTensor, StoredTensor]]:
    """Yield each quantized weight that has a scale, with its scale."""
    for name, scale in tensors.items():
        for suffix, replacement in _SCALES.items():
            weight = tensors.get(name.removesuffix(suffix) + replacement) if name.endswith(suffix) else None
            if weight is not None and not weight.is_float:
                yield weight, scale


def _is_block(block: Any) -> bool:
    sizes = block if isinstance(block, list | tuple) else ()
    return len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes)
