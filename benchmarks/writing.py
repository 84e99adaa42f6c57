"""Benchmark of writing alone: windows of bfloat16 values, including fsync and commit, and its stages.

python -m benchmarks.writing [--limit 160] [--rounds 3]

Windows are compressed with as many threads as in an extraction. For comparison, the bytes that reached the
disk are written again as plain files with fsync, the limit of the disk. The stages are timed one after the
other in one thread, alternating, on the chunks of one window; earlier versions needed those marked "before".
"""

import dataclasses
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc

from actkit.extraction.loop.local_engine import compression_threads
from actkit.schema import VARIABLES
from actkit.store.bfloat16_codec import Bfloat16Codec, bits_of
from actkit.store.layout import BLOSC_LEVEL, BLOSC_NAME, CUBE
from actkit.store.ragged import Ragged
from actkit.store.shard_files import _tasks
from actkit.store.writer import CubeWriter
from actkit.testing import Synthetic, synthetic

from .timing import MB, bytes_below, parser, print_table, seconds

WINDOW = 32
LAYERS, HIDDEN = 12, 512
Part = dict[str, np.ndarray | Ragged]


def write_plainly(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def as_bits(part: Part) -> Part:
    """Return the values as the extraction holds those of a bfloat16 model."""
    for name, values in part.items():
        if isinstance(values, Ragged):
            bits = (values.values.view(np.uint32) >> 16).astype(np.uint16)
            part[name] = dataclasses.replace(values, values=bits)
    return part


def payload_of(part: Part) -> int:
    """Return the bytes of the values of real tokens in bfloat16."""
    ragged = [values for values in part.values() if isinstance(values, Ragged)]
    return sum(2 * len(values.layers) * int(values.lengths.sum()) * HIDDEN for values in ragged)


def stages(values: Ragged, samples: int, tokens: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return the stages that write a variable, each over all chunks; the first two are those of before."""
    blosc, codec = Blosc(BLOSC_NAME, BLOSC_LEVEL, BITSHUFFLE), Bfloat16Codec(BLOSC_NAME, BLOSC_LEVEL)
    shape = samples * tokens, HIDDEN
    chunks = [chunk for task in _tasks(values, samples, tokens, HIDDEN) for chunk in task]

    def dense(row: int, tile: Any, out: np.ndarray) -> np.ndarray:
        values.take(row, tile.positions, out)
        out[tile.empty] = np.nan
        return out

    def narrow(row: int, tile: Any, out: np.ndarray) -> np.ndarray:
        values.take_bits(row, tile.positions, out)
        out[tile.empty] = bits_of(np.nan)
        return out

    scratch, bit_scratch = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.uint16)
    wide = [dense(*chunk, scratch).copy() for chunk in chunks]
    bits = [narrow(*chunk, bit_scratch).copy() for chunk in chunks]
    frames = [codec.encode(part) for part in bits]
    assert frames == [bytes(blosc.encode(part)) for part in wide], "the bytes on disk have changed"
    content = b"".join(frames)
    target = folder / "stage"

    def write() -> None:
        with target.open("wb", 2**20) as file:
            for start in range(0, len(content), MB):
                file.write(content[start : start + MB])

    def sync() -> None:
        with target.open("rb") as file:
            os.fsync(file.fileno())

    return {
        "copy tokens into chunks, as float32 (before)": lambda: [dense(*chunk, scratch) for chunk in chunks],
        "compress float32 (before)": lambda: [blosc.encode(part) for part in wide],
        "copy tokens into chunks, as bits": lambda: [narrow(*chunk, bit_scratch) for chunk in chunks],
        "compress bits": lambda: [codec.encode(part) for part in bits],
        "CRC-32C of chunks": lambda: [google_crc32c.value(frame) for frame in frames],
        "join chunks": lambda: b"".join(frames),
        "SHA-256 of the file": lambda: hashlib.sha256(content).digest(),
        "write": write,
        "fsync": sync,
    }


def print_stages(cube: Synthetic, folder: Path, rounds: int) -> None:
    part = as_bits(cube.part(0))
    values = part["residual"]
    assert isinstance(values, Ragged)
    payload = 2 * LAYERS * int(values.lengths.sum()) * HIDDEN
    samples, tokens = cube.plan.chunk_of(VARIABLES["residual"])
    actions = stages(values, samples, tokens, folder)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            started, busy = time.perf_counter(), time.process_time()
            action()
            spent[name].append((time.process_time() - busy, time.perf_counter() - started))
    rows = []
    for name, times in spent.items():
        busy, took = np.median(times, axis=0) * 1e9 / payload
        rows.append({"stage": name, "CPU s per GB": f"{busy:.2f}", "seconds per GB": f"{took:.2f}"})
    print(f"\n### Stages of writing, per GB of bfloat16 payload, {len(values.lengths)} samples")
    print_table(rows)


def main() -> None:
    chosen = parser(__doc__, limit=5 * WINDOW, rounds=3).parse_args()
    limit = chosen.limit
    # one window more than is timed, for warm-up
    cube = synthetic(n_layers=LAYERS, n_samples=limit + WINDOW, n_tokens=128, hidden=HIDDEN, window=WINDOW)
    for name in ("residual", "embedding"):
        cube.values[name].view(np.uint32)[:] &= 0xFFFF0000
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        cube.create(out).close()
        writer = CubeWriter(out / CUBE, cube.plan, threads=compression_threads())
        for window in range(cube.plan.n_windows):
            before, part = bytes_below(out), as_bits(cube.part(window))
            busy = time.process_time()
            took = seconds(writer.write, window, part)
            busy = time.process_time() - busy
            disk = bytes_below(out) - before
            content = np.random.default_rng(window).bytes(disk)
            plainly = seconds(write_plainly, out / "plain", content)
            if window:
                rows.append((payload_of(part), disk, took, plainly, busy))
        writer.close()
        print(f"\n### Writing windows of {WINDOW} samples, {LAYERS} layers × up to 128 tokens × {HIDDEN}")
        print_table(
            [
                {
                    "bfloat16 payload, MB": f"{payload / MB:.0f}",
                    "disk, MB": f"{disk / MB:.0f}",
                    "payload, MB/s": f"{payload / MB / took:.0f}",
                    "CPU s per GB": f"{busy * 1e9 / payload:.2f}",
                    "disk, MB/s": f"{disk / MB / took:.0f}",
                    "plain file of as many bytes, MB/s": f"{disk / MB / plainly:.0f}",
                }
                for payload, disk, took, plainly, busy in rows
            ]
        )
        total, spent, busy = (sum(row[column] for row in rows) for column in (0, 2, 4))
        print(
            f"\nall windows: {total / MB / spent:.0f} MB/s of payload, {busy * 1e9 / total:.2f} CPU s per GB"
        )
        print_stages(cube, out, chosen.rounds)


if __name__ == "__main__":
    main()
