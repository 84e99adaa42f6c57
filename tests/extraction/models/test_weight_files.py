"""Float8 weights in safetensors files that transformers would scale wrongly are refused."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import torch as torch_file

from actkit.extraction.models.checkpoint import find_checkpoint
from tests.extraction.models.test_checkpoint import edit_json, stored_as

UNEVEN = "cannot be divided into whole blocks of 128 × 128, which transformers assumes (use the unquantized checkpoint)"


def blocks(
    folder: Path,
    shape: tuple[int, ...],
    scale: tuple[int, ...],
    *,
    name: str = "w.weight",
    end: str = "_scale_inv",
    method: str = "fp8",
    **declared: Any,
) -> None:
    """Add a float8 weight with its scales and declare it."""
    path = folder / "model.safetensors"
    added = {
        name: torch.ones(shape).to(torch.float8_e4m3fn),
        name.removesuffix(".weight" if end[0] == "." else "") + end: torch.ones(scale),
    }
    torch_file.save_file({**torch_file.load_file(path), **added}, path)
    edit_json(folder / "config.json", quantization_config={"quant_method": method, **declared})


FAULTY: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "blocks of float8 that are not whole": (
        lambda folder: (stored_as(folder, torch.float8_e4m3fn, scale=(3, 2)), edit_json(folder / "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})),
        ["model {}: model.layers.0.mlp.up_proj.weight cannot be divided into whole blocks of 128 × 128, which transformers assumes (use the unquantized checkpoint)"],
    ),
    "stacked blocks that are not whole": (
        lambda folder: blocks(folder, (4, 192, 256), (4, 2, 2)),
        [f"model {{}}: w.weight {UNEVEN}"],
    ),
    "stacked experts of blocks that are not whole": (
        lambda folder: blocks(folder, (4, 192, 256), (4, 2, 2), name="mlp.experts.gate_up_proj"),
        [f"model {{}}: mlp.experts.gate_up_proj {UNEVEN}"],
    ),
    "blocks that are not whole, by the other names of their scales": (
        lambda folder: blocks(folder, (192, 256), (2, 2), end=".scale"),
        [f"model {{}}: w.weight {UNEVEN}"],
    ),
    "bytes with scales": (
        lambda folder: (stored_as(folder, torch.uint8, scale=(1, 1)), edit_json(folder / "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": None})),
        ["model {}: holds model.layers.0.mlp.up_proj.weight with scales, in a type other than float8 (use the unquantized checkpoint)"],
    ),
    "blocks of mxfp8 that are not whole": (
        lambda folder: blocks(folder, (128, 256), (128, 4), method="mxfp8"),
        [f"model {{}}: w.weight {UNEVEN}".replace("128 × 128", "1 × 32")],
    ),
    **{
        f"blocks of {size!r}": (
            lambda folder, size=size: blocks(folder, (128, 128), (1, 1), weight_block_size=size),
            [f"model {{}}: weight_block_size in config.json is {size!r}, not two positive integers (use the unquantized checkpoint)"],
        )
        for size in (128, [128], [1, 128, 128], "x", [0, 128], [128.0, 128], [True, 128], [])
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_float8_weights_that_would_be_scaled_wrongly_are_refused(name: str, model_copy: Path) -> None:
    damage, messages = FAULTY[name]
    damage(model_copy)
    _, faults = find_checkpoint(str(model_copy), None)
    assert [str(fault) for fault in faults] == [message.format(model_copy) for message in messages]


@pytest.mark.parametrize(
    "weight",
    [
        {"shape": (4, 256, 256), "scale": (4, 2, 2)},
        {"shape": (128, 256), "scale": (128, 8), "method": "mxfp8"},
        {"shape": (64, 256), "scale": (1, 2)},
        {"shape": (192, 256), "scale": (1,), "weight_block_size": None},
        {"shape": (192, 256), "scale": (), "weight_block_size": None},
    ],
)
def test_whole_blocks_of_float8_are_accepted(weight: dict[str, Any], model_copy: Path) -> None:
    blocks(model_copy, **weight)
    _, faults = find_checkpoint(str(model_copy), None)
    assert faults == []
