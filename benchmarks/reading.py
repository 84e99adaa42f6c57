"""Benchmark of reading: one layer, one sample, a mean over tokens, against a plain read of the same bytes.

python -m benchmarks.reading [--limit 400] [--rounds 3]

The cube comes from a random Gemma 3 of 12 × 512 on sentences of up to 128 tokens, with `residual` alone, in
bfloat16. It is read through `open_cube` with each of dask's schedulers; and without actkit, by zarr and by
zarr with the codec pipeline of zarrs. The processes alternate; each reads everything once before it is timed,
so that all files are in the page cache. The plain read goes through the files from the beginning, in blocks
of 1 MB, until it has read the same number of bytes; it neither decompresses nor keeps anything.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import zarr

from actkit import extract, open_cube, verify

from .subjects import SENTENCES, save_gemma
from .timing import MB, bytes_below, in_child, megabytes, parser, print_table, ratio, seconds, spread

PLAIN = "plain read of as many bytes"
READERS = {
    "`open_cube`, threads": ("threads", ""),
    "`open_cube`, synchronous": ("synchronous", ""),
    "zarr alone": ("", "zarr.core.codec_pipeline.BatchedCodecPipeline"),
    "zarr alone, pipeline of zarrs": ("", "zarrs.ZarrsCodecPipeline"),
}
Reads = dict[str, Callable[[], np.ndarray]]


def make_cube(model: Path, limit: int, run: Path) -> None:
    extract(
        model=str(model),
        data=str(SENTENCES),
        out=str(run),
        limit=limit,
        max_tokens=128,
        save=("residual",),
        storage="bfloat16",
        listeners=[],
    )


def files_of(run: Path) -> list[Path]:
    return sorted((run / "cube.zarr" / "residual").glob("c.*"))


def labelled(run: Path) -> Reads:
    residual = open_cube(run).residual
    return {
        "one layer": lambda: residual.isel(layer=residual.sizes["layer"] // 2).values,
        "one sample": lambda: residual.isel(sample=residual.sizes["sample"] // 2).values,
        "mean over tokens": lambda: residual.mean("token").values,
    }


def plain_zarr(run: Path) -> Reads:
    array = zarr.open_array(run / "cube.zarr" / "residual", mode="r")
    assert isinstance(array, zarr.Array)
    # zarr silently falls back to its own pipeline if zarrs cannot read an array
    used, asked = type(array.async_array.codec_pipeline), zarr.config.get("codec_pipeline.path")
    assert used.__name__ == asked.rsplit(".", 1)[-1]
    layers, samples = array.shape[:2]

    def part(layer: slice, sample: slice) -> np.ndarray:
        return np.asarray(array[layer, sample])  # slices, because zarrs is not used for integer indices

    def means() -> np.ndarray:
        each = [np.nanmean(part(slice(row, row + 1), slice(None)), axis=2) for row in range(layers)]
        return np.concatenate(each)

    return {
        "one layer": lambda: part(slice(layers // 2, layers // 2 + 1), slice(None)),
        "one sample": lambda: part(slice(None), slice(samples // 2, samples // 2 + 1)),
        "mean over tokens": means,
    }


def bytes_read() -> int:
    """Return the bytes that this process has read so far, including from the page cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def read_plainly(files: list[Path], size: int) -> None:
    block = bytearray(2**20)
    left = size
    while left > 0:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while left > 0 and (got := file.readinto(block)):
                    left -= got


def read(run: Path, scheduler: str, pipeline: str) -> dict[str, tuple[float, float, int, float]]:
    """Return the time of each read, the time of the plain read, the bytes read, and a checksum."""
    if pipeline:
        zarr.config.set({"codec_pipeline.path": pipeline})
    found = {}
    with dask.config.set(scheduler=scheduler or "synchronous"):
        for name, action in (plain_zarr(run) if pipeline else labelled(run)).items():
            before = bytes_read()
            total = float(np.nansum(np.abs(action()), dtype=np.float64))
            size = bytes_read() - before
            took = seconds(action)
            found[name] = took, seconds(read_plainly, files_of(run), size), size, total
    return found


def open_and_verify(run: Path) -> tuple[float, float]:
    open_cube(run)
    return seconds(open_cube, run), seconds(verify, run)


def fresh_memory(size: int) -> float:
    return seconds(np.full, size, 1, np.uint8)


def main() -> None:
    chosen = parser(__doc__, limit=400, rounds=3).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary, "run")
        in_child(make_cube, save_gemma(Path(temporary, "model")), chosen.limit, run)
        residual = open_cube(run).residual
        dense = {"one layer": residual[0].nbytes, "one sample": residual[:, 0].nbytes}
        dense["mean over tokens"] = residual.nbytes
        disk = sum(path.stat().st_size for path in files_of(run))
        print(f"\n### Reading {dict(residual.sizes)}: {megabytes(residual.nbytes)} MB dense,", end=" ")
        print(f"{megabytes(disk)} MB in {len(files_of(run))} files; page cache warm", flush=True)
        rounds = [
            {name: in_child(read, run, *reader).value for name, reader in READERS.items()}
            for _ in range(chosen.rounds)
        ]
        rows = []
        for what, size in dense.items():
            totals = [one[name][what][3] for one in rounds for name in READERS]
            assert np.allclose(totals, totals[0], rtol=1e-5), "not the same numbers"
            for name in READERS:
                times, plain, read_bytes, _ = zip(*(one[name][what] for one in rounds), strict=True)
                middle = float(np.median(times))
                rows.append(
                    {
                        "": f"{what}, {name}",
                        "seconds: median (least to most)": spread(times, 3),
                        "dense, MB/s": f"{size / MB / middle:,.0f}",
                        "files, MB": f"{read_bytes[0] / MB:.1f}",
                        "files, MB/s": f"{read_bytes[0] / MB / middle:,.0f}",
                        f"to a {PLAIN}": f"{ratio(times, plain):.1f}",
                    }
                )
        print_table(rows)
        opening, verifying = in_child(open_and_verify, run).value
        memory = in_child(fresh_memory, dense["one layer"]).value
        print(
            f"\nfilling as much fresh memory as a layer takes: {memory:.3f} s; `open_cube`: {opening:.3f} s;"
        )
        print(f"`actkit verify`: {verifying:.2f} s, {bytes_below(run) / MB / verifying:,.0f} MB/s")


if __name__ == "__main__":
    main()
