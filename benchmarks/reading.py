"""Benchmark of reading: layers, samples, means and batches of tokens, against decoding the same bytes.

python -m benchmarks.reading [--limit 400] [--rounds 3]

The cube comes from a random Gemma 3 of 12 × 512 on sentences of up to 128 tokens, in bfloat16, in windows of
100 sentences. It is read through `open_cube` with each of dask's schedulers, through xarray's engine `actkit`
and through `LayerTokens`; and without actkit, by zarr and, if it is installed, the codec pipeline of zarrs.
The processes alternate; each reads everything once before it is timed, so that all files are in the page
cache.

In the same process, the same chunks are decoded from memory: one after the other by `numcodecs`, in one
thread, without comparing checksums, either each into new memory, or all into the memory of one chunk.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import numpy as np
import xarray as xr
import zarr
from numcodecs import blosc

from actkit import extract, open_cube, verify
from actkit.errors import CorruptError
from actkit.store.xarray_backend import CubeBackend
from actkit.testing import flip_bit

from .subjects import SENTENCES, save_gemma
from .timing import MB, bytes_below, in_child, megabytes, parser, print_table, ratio, seconds, spread

READERS = {
    "`open_cube`, threads": ("threads", ""),
    "`open_cube`, synchronous": ("synchronous", ""),
    "engine `actkit`, without dask": ("engine", ""),
    "`LayerTokens`": ("tokens", ""),
    "zarr alone": ("", "zarr.core.codec_pipeline.BatchedCodecPipeline"),
    "zarr alone, pipeline of zarrs": ("", "zarrs.ZarrsCodecPipeline"),
}
if importlib.util.find_spec("zarrs") is None:
    del READERS["zarr alone, pipeline of zarrs"]
SMALL = ("pooled", "last", "norm")
# what is decoded for each read: variables, and whether only the layer in the middle
DECODED = {
    "one layer": (("residual",), True),
    "one sample": (("residual",), None),
    "`pooled`, `last`, `norm`": (SMALL, False),
    "mean over tokens, by sample": (("residual",), False),
    "mean over all tokens": (("residual",), False),
    "shuffled batches of one layer": (("residual",), True),
    "shuffled batches of all layers": (("residual",), False),
}
Reads = dict[str, Callable[[], object]]


def make_cube(model: Path, limit: int, run: Path) -> None:
    extract(
        model=str(model),
        data=str(SENTENCES),
        out=str(run),
        limit=limit,
        max_tokens=128,
        window_samples=100,
        save=("residual", *SMALL),
        storage="bfloat16",
        listeners=[],
    )


def files_of(run: Path, name: str = "residual") -> list[Path]:
    return sorted((run / "cube.zarr" / name).glob("c.*"))


def labelled(cube: xr.Dataset) -> Reads:
    residual = cube.residual
    reads: Reads = {
        "one layer": lambda: residual.isel(layer=residual.sizes["layer"] // 2).values,
        "one sample": lambda: residual.isel(sample=residual.sizes["sample"] // 2).values,
        "`pooled`, `last`, `norm`": lambda: [cube[name].values for name in SMALL],
    }
    if residual.chunks:
        reads["mean over tokens, by sample"] = lambda: residual.mean("token").values
    return reads


def batched(run: Path) -> Reads:
    from actkit.exporters.torch_dataset import LayerTokens

    layers = open_cube(run).layer.values.tolist()
    middle = LayerTokens(run, layer=layers[len(layers) // 2])
    everything = LayerTokens(run, layer=layers)
    in_order = LayerTokens(run, layer=layers, shuffle=False)

    def mean() -> np.ndarray:
        total, count = np.zeros((len(layers), 512)), 0
        for batch in in_order:
            total += batch.sum(0).numpy()
            count += len(batch)
        return total / count

    return {
        "mean over all tokens": mean,
        "shuffled batches of one layer": lambda: sum(len(batch) for batch in middle),
        "shuffled batches of all layers": lambda: sum(len(batch) for batch in everything),
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
        "mean over tokens, by sample": means,
    }


def bytes_read() -> int:
    """Return the bytes that this process has read so far, including from the page cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def chunks_of(path: Path, layer: int | None) -> Iterator[bytes]:
    """Return the chunks of all layers or of one, without their checksums."""
    array = zarr.open_array(path, mode="r")
    assert isinstance(array, zarr.Array)
    assert array.shards is not None
    grid = [whole // part for whole, part in zip(array.shards, array.chunks, strict=True)]
    for file in sorted(path.glob("c.*")):
        content = file.read_bytes()
        index = np.frombuffer(content[-16 * int(np.prod(grid)) - 4 : -4], "<u8").reshape(*grid, 2)
        for start, size in (index if layer is None else index[layer]).reshape(-1, 2).tolist():
            if start != 2**64 - 1:
                yield content[start : start + size - 4]


def decode(chunks: list[bytes]) -> None:
    kept = [blosc.decompress(chunk) for chunk in chunks]
    del kept


def decode_over(chunks: list[bytes]) -> None:
    memory = np.empty(len(blosc.decompress(chunks[0])), dtype=np.uint8)
    for chunk in chunks:
        blosc.decompress(chunk, memory)


def timed(action: Callable[..., object], *arguments: object) -> np.ndarray:
    """Return seconds, and seconds of all cores: medians of three repetitions."""
    times = []
    for _ in range(3):
        busy = time.process_time()
        took = seconds(action, *arguments)
        times.append([took, time.process_time() - busy])
    return np.median(times, axis=0)


def decoding(run: Path, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of decoding into new memory, and into the same memory again and again."""
    names, one_layer = DECODED[what]
    if one_layer is None:
        return np.full(2, np.nan), np.full(2, np.nan)
    layer = open_cube(run).sizes["layer"] // 2 if one_layer else None
    chunks = [list(chunks_of(run / "cube.zarr" / name, layer)) for name in names]
    for each in chunks:
        decode(each)
    new = np.sum([timed(decode, each) for each in chunks], axis=0)
    return new, np.sum([timed(decode_over, each) for each in chunks], axis=0)


def actions(run: Path, reader: str, pipeline: str) -> Reads:
    if pipeline:
        zarr.config.set({"codec_pipeline.path": pipeline})
        return plain_zarr(run)
    if reader == "tokens":
        return batched(run)
    return labelled(
        open_cube(run) if reader != "engine" else xr.open_dataset(run, engine=CubeBackend, cache=False)
    )


def read(run: Path, reader: str, pipeline: str) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Return the times of each read and of decoding, twice, and the bytes read."""
    found = {}
    with dask.config.set(scheduler=reader if reader in ("threads", "synchronous") else "threads"):
        for name, action in actions(run, reader, pipeline).items():
            before = bytes_read()
            action()
            size = bytes_read() - before
            found[name] = timed(action), *decoding(run, name), size
    return found


def check_checksums(run: Path) -> None:
    """Check that a flipped bit is noticed by what was measured."""
    (damaged, *_) = files_of(run)
    flip_bit(damaged, 8 * 1000)
    try:
        open_cube(run).residual[0].load()
    except CorruptError:
        return
    raise AssertionError("a flipped bit was not noticed")


def open_and_verify(run: Path) -> tuple[float, float]:
    open_cube(run)
    return seconds(open_cube, run), seconds(verify, run)


def main() -> None:
    chosen = parser(__doc__, limit=400, rounds=3).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary, "run")
        in_child(make_cube, save_gemma(Path(temporary, "model")), chosen.limit, run)
        cube = open_cube(run)
        layer, sample = cube.residual[0].nbytes, cube.residual[:, 0].nbytes
        dense = dict.fromkeys(DECODED, cube.residual.nbytes)
        dense |= {"one layer": layer, "shuffled batches of one layer": layer, "one sample": sample}
        dense["`pooled`, `last`, `norm`"] = sum(cube[name].nbytes for name in SMALL)
        disk = sum(path.stat().st_size for path in files_of(run))
        print(
            f"\n### Reading {dict(cube.residual.sizes)}: {megabytes(cube.residual.nbytes)} MB dense,", end=" "
        )
        print(f"{megabytes(disk)} MB in {len(files_of(run))} files; page cache warm", flush=True)
        rounds = [
            {name: in_child(read, run, *reader).value for name, reader in READERS.items()}
            for _ in range(chosen.rounds)
        ]
        rows = []
        for what, size in dense.items():
            for name in READERS:
                if what not in rounds[0][name]:
                    continue
                *times, read_bytes = zip(*(one[name][what] for one in rounds), strict=True)
                (took, new, same), cpu = (np.transpose(times, (2, 0, 1))[which].tolist() for which in (0, 1))
                rows.append(
                    {
                        "": f"{what}, {name}",
                        "seconds: median (least to most)": spread(took, 3),
                        "dense, MB/s": f"{size / MB / float(np.median(took)):,.0f}",
                        "files, MB": f"{read_bytes[0] / MB:.1f}",
                        "to decoding": f"{ratio(took, new):.2f}",
                        "to decoding in place": f"{ratio(took, same):.2f}",
                        "in time of all cores": f"{ratio(cpu[0], cpu[1]):.2f}; {ratio(cpu[0], cpu[2]):.2f}",
                    }
                )
        print_table(rows)
        opening, verifying = in_child(open_and_verify, run).value
        print(f"\n`open_cube`: {opening:.3f} s; `actkit verify`: {verifying:.2f} s,", end=" ")
        print(f"{bytes_below(run) / MB / verifying:,.0f} MB/s")
        check_checksums(run)


if __name__ == "__main__":
    main()
