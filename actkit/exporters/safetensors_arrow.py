"""One file a layer that is read without loading it: safetensors and Arrow."""

import json
from pathlib import Path

import numpy as np

from .cube_blocks import Selected


def write_safetensors(chosen: Selected, out: Path) -> None:
    """Write `activations`, `attention_mask` and `token_ids` of each layer.

    The library writes from memory alone; its format, a header and the bytes, is written here as it is read.
    """
    rows = chosen.every_row
    held, ids = chosen.tokens(rows, chosen.n_tokens(rows))
    shape = [*held.shape, chosen.hidden]
    for layer in chosen.layers:
        size, header, end = 4 * int(np.prod(shape)), {}, 0
        for name, kind, own, n_bytes in (
            ("activations", "F32", shape, size),
            ("attention_mask", "I64", shape[:2], 8 * held.size),
            ("token_ids", "I64", shape[:2], 8 * held.size),
        ):
            header[name] = {"dtype": kind, "shape": own, "data_offsets": [end, end + n_bytes]}
            end += n_bytes
        encoded = json.dumps({"__metadata__": {"layer": str(layer)}, **header}).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (out / f"layer_{layer}.safetensors").open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for block in chosen.blocks(layer, rows):
                file.write(np.ascontiguousarray(block.values, dtype="<f4").tobytes())
            for array in (held, ids):
                file.write(array.astype("<i8").tobytes())


def write_arrow(chosen: Selected, out: Path) -> None:
    """Write a table of each layer, a row a sample, which `datasets.Dataset.from_file` opens."""
    import pyarrow as pa

    rows = chosen.every_row
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
                ends = pa.array(np.concatenate([[0], np.cumsum(block.held.sum(axis=1))]), pa.int32())
                ids = pa.array(block.token_ids[block.held], pa.int32())
                vectors = pa.array(block.values[block.held].ravel())
                columns = [pa.array(chosen.column(name, block.rows), pa.string()) for name in names]
                columns.append(pa.ListArray.from_arrays(ends, ids))
                columns.append(
                    pa.ListArray.from_arrays(ends, pa.FixedSizeListArray.from_arrays(vectors, chosen.hidden))
                )
                writer.write_batch(pa.record_batch(columns, schema=schema))
