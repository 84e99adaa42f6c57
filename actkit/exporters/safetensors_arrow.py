"""Safetensors and Arrow files, one per layer, which can be memory-mapped."""

import json
from pathlib import Path

import numpy as np

from .cube_blocks import Selected


def write_safetensors(chosen: Selected, out: Path) -> None:
    """Write `activations`, `attention_mask` and `token_ids` of each layer.

    The safetensors library can only write whole tensors from memory, so this function writes the header and
    then the values block by block.
    """
    rows = chosen.all_rows
    is_token, ids = chosen.tokens(rows, chosen.n_tokens(rows))
    shape = [*is_token.shape, chosen.hidden]
    for layer in chosen.layers:
        size, header, end = 4 * int(np.prod(shape)), {}, 0
        for name, dtype, array_shape, n_bytes in (
            ("activations", "F32", shape, size),
            ("attention_mask", "I64", shape[:2], 8 * is_token.size),
            ("token_ids", "I64", shape[:2], 8 * is_token.size),
        ):
            header[name] = {"dtype": dtype, "shape": array_shape, "data_offsets": [end, end + n_bytes]}
            end += n_bytes
        encoded = json.dumps({"__metadata__": {"layer": str(layer)}, **header}).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (out / f"layer_{layer}.safetensors").open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for block in chosen.blocks(layer, rows):
                file.write(np.ascontiguousarray(block.values, dtype="<f4").tobytes())
            for array in (is_token, ids):
                file.write(array.astype("<i8").tobytes())


def write_arrow(chosen: Selected, out: Path) -> None:
    """Write one table per layer with one row per sample, which `datasets.Dataset.from_file` can open."""
    import pyarrow as pa

    rows = chosen.all_rows
    names = chosen.row_names
    vector = pa.list_(pa.float32(), chosen.hidden)
    fields = [
        *(pa.field(name, pa.string()) for name in chosen.column_names),
        pa.field("token_ids", pa.list_(pa.int32())),
    ]
    schema = pa.schema([*fields, pa.field("activations", pa.list_(vector))])
    for layer in chosen.layers:
        with (
            pa.OSFile(str(out / f"layer_{layer}.arrow"), "wb") as file,
            pa.ipc.new_stream(file, schema) as writer,
        ):
            for block in chosen.blocks(layer, rows):
                ends = pa.array(np.concatenate([[0], np.cumsum(block.is_token.sum(axis=1))]), pa.int32())
                ids = pa.array(block.token_ids[block.is_token], pa.int32())
                vectors = pa.array(block.values[block.is_token].ravel())
                columns = [pa.array(chosen.column(name, block.rows), pa.string()) for name in names]
                columns.append(pa.ListArray.from_arrays(ends, ids))
                columns.append(
                    pa.ListArray.from_arrays(ends, pa.FixedSizeListArray.from_arrays(vectors, chosen.hidden))
                )
                writer.write_batch(pa.record_batch(columns, schema=schema))
