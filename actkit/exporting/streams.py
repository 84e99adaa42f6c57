"""One file a layer that is read without loading it: safetensors and Arrow."""

import json
from pathlib import Path

import numpy as np

from ..stats import parts
from .selecting import Selected


def write_safetensors(chosen: Selected, out: Path) -> None:
    """Write `activations`, `attention_mask` and `token_ids` of each layer.

    The library writes from memory alone; its format, a header and the bytes, is written here as it is read.
    """
    rows = chosen.every_row
    lengths = chosen.lengths(rows)
    n_tokens = int(lengths.max(initial=1))
    mask = np.arange(n_tokens) < lengths[:, None]
    ids = np.where(mask, chosen.cube.token_id.values[rows][:, :n_tokens], 0)
    shape = [len(rows), n_tokens, chosen.hidden]
    for layer in chosen.layers:
        size, header, end = 4 * int(np.prod(shape)), {}, 0
        for name, kind, own, n_bytes in (
            ("activations", "F32", shape, size),
            ("attention_mask", "I64", shape[:2], 8 * mask.size),
            ("token_ids", "I64", shape[:2], 8 * mask.size),
        ):
            header[name] = {"dtype": kind, "shape": own, "data_offsets": [end, end + n_bytes]}
            end += n_bytes
        told = json.dumps({"__metadata__": {"layer": str(layer)}, **header}).encode()
        told += b" " * (-len(told) % 8)
        with (out / f"layer_{layer}.safetensors").open("wb") as file:
            file.write(len(told).to_bytes(8, "little") + told)
            for block in chosen.blocks(layer, rows):
                file.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
            for array in (mask, ids):
                file.write(array.astype("<i8").tobytes())


def write_arrow(chosen: Selected, out: Path) -> None:
    """Write a table of each layer, a row a sample, which `datasets.Dataset.from_file` opens."""
    import pyarrow as pa

    rows = chosen.every_row
    names = ["sample_id", "language", "text", *parts.label_names(chosen.cube)]
    vector = pa.list_(pa.float32(), chosen.hidden)
    fields = [*(pa.field(name, pa.string()) for name in names), pa.field("token_ids", pa.list_(pa.int32()))]
    schema = pa.schema([*fields, pa.field("activations", pa.list_(vector))])
    for layer in chosen.layers:
        start = 0
        with (
            pa.OSFile(str(out / f"layer_{layer}.arrow"), "wb") as file,
            pa.ipc.new_stream(file, schema) as writer,
        ):
            for block in chosen.blocks(layer, rows):
                own = rows[start : start + len(block)]
                start += len(block)
                lengths = chosen.lengths(own)
                held = np.arange(block.shape[1]) < lengths[:, None]
                ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
                ids = chosen.cube.token_id.values[own][:, : block.shape[1]][held]
                flat = pa.FixedSizeListArray.from_arrays(pa.array(block[held].ravel()), chosen.hidden)
                columns = [pa.array(chosen.column(name, own), pa.string()) for name in names]
                columns.append(pa.ListArray.from_arrays(ends, pa.array(ids, pa.int32())))
                columns.append(pa.ListArray.from_arrays(ends, flat))
                writer.write_batch(pa.record_batch(columns, schema=schema))
