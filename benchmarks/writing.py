"""Benchmark of writing alone: windows of bfloat16-representable numbers, including fsync and commit.

python -m benchmarks.writing [--limit 160]

For comparison, the bytes that reached the disk are written again as plain files with fsync, the limit of the
disk.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from actkit.testing import synthetic

from .timing import MB, bytes_below, parser, print_table, seconds

WINDOW = 32


def write_plainly(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    limit = parser(__doc__, limit=5 * WINDOW).parse_args().limit
    # one window more than is timed, for warm-up
    cube = synthetic(n_layers=12, n_samples=limit + WINDOW, n_tokens=128, hidden=512, window=WINDOW)
    for name in ("residual", "embedding"):
        cube.values[name].view(np.uint32)[:] &= 0xFFFF0000
    real = cube.values["n_tokens"]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        writer = cube.create(out)
        for window in range(cube.plan.n_windows):
            samples = cube.plan.samples_of(window)
            payload = 2 * (12 + 1) * 512 * int(real[samples.start : samples.stop].sum())
            before, part = bytes_below(out), cube.part(window)
            took = seconds(writer.write, window, part)
            disk = bytes_below(out) - before
            content = np.random.default_rng(window).bytes(disk)
            plainly = seconds(write_plainly, out / "plain", content)
            if window:
                rows.append((payload, disk, took, plainly))
    print(f"\n### Writing windows of {WINDOW} samples, 12 layers × up to 128 tokens × 512")
    print_table(
        [
            {
                "bfloat16 payload, MB": f"{payload / MB:.0f}",
                "disk, MB": f"{disk / MB:.0f}",
                "payload, MB/s": f"{payload / MB / took:.0f}",
                "disk, MB/s": f"{disk / MB / took:.0f}",
                "plain file of as many bytes, MB/s": f"{disk / MB / plainly:.0f}",
            }
            for payload, disk, took, plainly in rows
        ]
    )
    total, spent = sum(row[0] for row in rows), sum(row[2] for row in rows)
    print(f"\nall windows: {total / MB / spent:.0f} MB/s of payload")


if __name__ == "__main__":
    main()
