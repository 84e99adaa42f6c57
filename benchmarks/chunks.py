"""Benchmark of inner chunk shapes and codecs: writing speed, reading speed and size.

python -m benchmarks.chunks [--limit 64] [--rounds 3]

One shard of 12 layers × 512 hidden, with the lengths of the MT-GenEval sentences, NaN where there is no
token, and bfloat16-representable numbers, is written by zarr and read back from the page cache by zarr. The
limit is the number of samples in the shard. The payload is two bytes for each value of a real token.
"""

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from transformers import AutoTokenizer
from zarr.codecs import BloscCodec, Crc32cCodec

from actkit.demo import MODEL

from .subjects import texts
from .timing import MB, bytes_below, parser, print_table, seconds

LAYERS, HIDDEN, MAX_TOKENS = 12, 512, 256
TILES = (32, 64, MAX_TOKENS)
CHUNK_KB = (128, 512, 2048)
CODECS = (("lz4", 1, "bitshuffle"), ("lz4", 5, "bitshuffle"), ("zstd", 3, "shuffle"))


def window(samples: int) -> tuple[np.ndarray, int]:
    """Return the values of a window, and the number that belong to real tokens."""
    ids = AutoTokenizer.from_pretrained(MODEL)(texts(samples))["input_ids"]
    lengths = np.minimum([len(row) for row in ids], MAX_TOKENS)
    rng = np.random.default_rng(0)
    # channels of very different magnitudes, as in trained models
    scale = rng.lognormal(0, 1, HIDDEN).astype(np.float32)
    values = rng.standard_normal((LAYERS, samples, MAX_TOKENS, HIDDEN), dtype=np.float32)
    values *= scale
    values.view(np.uint32)[:] &= 0xFFFF0000
    values[:, np.arange(MAX_TOKENS) >= lengths[:, None]] = np.nan
    return values, LAYERS * HIDDEN * int(lengths.sum())


def chunks(samples: int) -> Iterator[tuple[int, int]]:
    """Yield samples and tokens of the inner chunks to try, once each."""
    seen = set()
    for tokens, size in product(TILES, CHUNK_KB):
        rows = size * 1024 // (4 * tokens * HIDDEN)
        if 0 < rows <= samples and samples % rows == 0 and (rows, tokens) not in seen:
            seen.add((rows, tokens))
            yield rows, tokens


def write(path: Path, values: np.ndarray, chunk: tuple[int, int], codec: Any, empty: bool) -> None:
    array = zarr.create_array(
        path,
        shape=values.shape,
        shards=values.shape,
        chunks=(1, *chunk, HIDDEN),
        dtype=values.dtype,
        compressors=[codec, Crc32cCodec()],
        filters=None,
        fill_value=np.nan,
        config={"write_empty_chunks": empty},
    )
    array[...] = values
    for file in path.rglob("c/*/*/*/*"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def read(array: Any, layers: slice, samples: slice) -> None:
    array[layers, samples]


def measure(folder: Path, values: np.ndarray, chunk: tuple[int, int], codec: Any, empty: bool) -> list[float]:
    """Return the seconds to write, to read one layer, and to read one sample; and the size."""
    shutil.rmtree(folder, ignore_errors=True)
    writing = seconds(write, folder, values, chunk, codec, empty)
    array = zarr.open_array(folder, mode="r")
    middle = LAYERS // 2, values.shape[1] // 2
    assert np.array_equal(array[middle], values[middle], equal_nan=True)
    layer = seconds(read, array, slice(middle[0], middle[0] + 1), slice(None))
    sample = seconds(read, array, slice(None), slice(middle[1], middle[1] + 1))
    return [writing, layer, sample, bytes_below(folder)]


def main() -> None:
    chosen = parser(__doc__, limit=64, rounds=3).parse_args()
    values, real = window(chosen.limit)
    settings = list(product(chunks(chosen.limit), CODECS, (False, True)))
    found: dict[Any, list[list[float]]] = {setting: [] for setting in settings}
    print(f"\n### Chunks and codecs: {values.shape}, {values.nbytes / MB:,.0f} MB dense", end="")
    print(f", {2 * real / MB:.0f} MB payload", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(chosen.rounds + 1):
            for chunk, codec, empty in settings[: None if turn else 1]:  # the first round warms up
                blosc = BloscCodec(cname=codec[0], clevel=codec[1], shuffle=codec[2])  # type: ignore[arg-type]
                taken = measure(Path(temporary, "array"), values, chunk, blosc, empty)
                if turn:
                    found[chunk, codec, empty].append(taken)
    rows = []
    for (chunk, codec, empty), rounds in found.items():
        writing, layer, sample, size = (statistics.median(column) for column in zip(*rounds, strict=True))
        rows.append(
            {
                "samples × tokens": f"{chunk[0]} × {chunk[1]}",
                "kB": 4 * chunk[0] * chunk[1] * HIDDEN // 1024,
                "codec": " ".join(map(str, codec)),
                "empty chunks": "written" if empty else "left out",
                "disk, of payload": f"{size / (2 * real):.3f}",
                "write, payload MB/s": f"{2 * real / MB / writing:.0f}",
                "write, dense MB/s": f"{values.nbytes / MB / writing:.0f}",
                "one layer, dense MB/s": f"{values.nbytes / LAYERS / MB / layer:.0f}",
                "one sample, ms": f"{1000 * sample:.1f}",
            }
        )
    print_table(rows)


if __name__ == "__main__":
    main()
