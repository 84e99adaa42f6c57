"""Extractions on a CUDA device: the cube is that of the CPU, and a rerun has the same bytes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
import xarray as xr

import actkit
from actkit.demo import draw_scenes
from actkit.extraction.monitoring.progress import Progress
from actkit.store.layout import CUBE
from actkit.testing import contents
from actkit.widgets.gauges import measure
from tests.gpu.conftest import Extract

pytestmark = pytest.mark.gpu

SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "components": {"layers": "all attention_all mlp_all"},
    "content": {"keep_tokens": "content", "layers": "0 2"},
    "last": {"keep_tokens": "last"},
    "mean": {"keep_tokens": "mean"},
    "half": {"storage": "float16"},
    "small": {"save": ("pooled", "last", "norm")},
}


def assert_close(cube: xr.Dataset, expected: xr.Dataset, **tolerances: float) -> None:
    xr.testing.assert_allclose(
        cube.drop_attrs().drop_vars("batch"), expected.drop_attrs().drop_vars("batch"), **tolerances
    )


@pytest.mark.parametrize("options", SELECTIONS.values(), ids=SELECTIONS)
def test_the_cube_is_that_of_the_cpu(device: str, extract: Extract, options: dict[str, Any]) -> None:
    cube = extract("device", device=device, **options).load()
    expected = extract("cpu", device="cpu", **options).load()
    assert cube.attrs["device"] == device
    assert_close(cube, expected, rtol=1e-3, atol=1e-4)


def test_blocks_are_those_of_transformers(
    device: str, extract: Extract, tiny_model: Path, prompts: Path
) -> None:
    """Prompt by prompt, on the same device, to the last bit."""
    cube = extract("run", device=device, batch_size=1).load()
    model = tf.AutoModel.from_pretrained(tiny_model).to(device).eval()
    for sample in range(cube.sizes["sample"]):
        ids = cube.token_id[sample, : int(cube.prompt_tokens[sample])].values.astype(np.int64)
        with torch.inference_mode():
            states = model(torch.from_numpy(ids[None]).to(device), output_hidden_states=True).hidden_states
        kept = cube.residual[:, sample, : len(ids)].values
        assert np.array_equal(cube.embedding[sample, : len(ids)].values, states[0][0].cpu().numpy())
        for layer in range(cube.sizes["layer"] - 1):  # the last state is normalised
            assert np.array_equal(kept[layer], states[layer + 1][0].cpu().numpy())


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"generate": {"max_new_tokens": 5}}])
def test_a_rerun_has_the_same_bytes(
    device: str, extract: Extract, tmp_path: Path, options: dict[str, Any]
) -> None:
    for name in ("first", "second"):
        extract(name, device=device, **options)
    assert contents(tmp_path / "first" / CUBE) == contents(tmp_path / "second" / CUBE)


def test_sampled_text_depends_on_the_seed_alone(device: str, extract: Extract) -> None:
    """The generator of the device is put back, so that nothing else draws other numbers."""
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5, "seed": 3}
    torch.manual_seed(0)
    drawn = torch.rand(3, device=device)
    torch.manual_seed(0)
    first = extract("first", device=device, generate=options).load()
    assert torch.equal(torch.rand(3, device=device), drawn)
    again = extract("again", device=device, generate=options).load()
    other = extract("other", device=device, generate={**options, "seed": 4}).load()
    assert (first.generated == again.generated).all()
    assert (first.generated != other.generated).any()


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_images(device: str, name: str, vlm: Callable[[str], Path], extract: Extract, tmp_path: Path) -> None:
    options = {
        "model": str(vlm(name)),
        "data": str(draw_scenes(tmp_path / "scenes", 2)),
        "layers": "all vision_all",
        "image_column": "image",
    }
    cube = extract("device", device=device, **options)
    expected = extract("cpu", device="cpu", **options)
    assert_close(cube.load(), expected.load(), rtol=1e-3, atol=1e-4)
    runs = [actkit.open_cube(tmp_path / run, group="vision").load() for run in ("device", "cpu")]
    assert_close(*runs, rtol=1e-3, atol=1e-4)


def test_moments(device: str, extract: Extract, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    moments = []
    for number, name in enumerate((device, "cpu")):
        extract(str(number), device=name, whiten=True, dtype="float32")
        moments.append(load_file(tmp_path / str(number) / "moments.safetensors"))
    assert moments[0].keys() == moments[1].keys()
    for name, values in moments[0].items():
        np.testing.assert_allclose(values, moments[1][name], rtol=1e-3, atol=1e-3)


class Interrupted(Exception):  # noqa: N818 - what a test does to a run
    """The run was interrupted."""


def test_an_interrupted_run_continues(device: str, extract: Extract, tmp_path: Path) -> None:
    def interrupt(event: Progress) -> None:
        if event.committed:
            raise Interrupted

    extract("whole", device=device, window_samples=2)
    with pytest.raises(Interrupted):
        extract("run", device=device, window_samples=2, listeners=[interrupt])
    extract("run", device=device, window_samples=2)
    assert contents(tmp_path / "run" / CUBE) == contents(tmp_path / "whole" / CUBE)


def test_parts_and_a_cluster_have_the_same_bytes(device: str, extract: Extract, tmp_path: Path) -> None:
    extract("whole", device=device, window_samples=2)
    for part in ("2/2", "1/2"):
        extract("parts", device=device, window_samples=2, part=part)
    actkit.seal(tmp_path / "parts")
    assert contents(tmp_path / "parts" / CUBE) == contents(tmp_path / "whole" / CUBE)


@pytest.mark.slow
def test_workers_of_a_cluster_use_the_device(device: str, extract: Extract, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed")
    extract("whole", device=device, window_samples=2)
    extract("cluster", device=device, window_samples=2, cluster="local:1")
    assert contents(tmp_path / "cluster" / CUBE) == contents(tmp_path / "whole" / CUBE)


def test_each_local_worker_sees_one_device(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = pytest.importorskip("actkit.extraction.cluster.connection")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert connection._gpus() == [str(index) for index in range(torch.cuda.device_count())]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert connection._gpus() == ["GPU-a", "GPU-b"]


def test_accelerate_places_the_model(device: str, extract: Extract) -> None:
    cube = extract("placed", device_map="auto").load()
    assert_close(cube, extract("run", device=device).load(), rtol=1e-3, atol=1e-4)


def test_a_batch_that_does_not_fit_is_halved(
    cuda: torch.device, extract: Extract, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PyTorch's allocator refuses memory, as it does when the device is full."""
    table = tmp_path / "long.csv"
    table.write_text("text\n" + f"{' '.join(['The doctor reads a book.'] * 60)}\n" * 64)
    data = {"data": str(table), "batch_size": 64, "save": ("pooled",), "window_samples": 64}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = extract("whole", device="cuda", **data).load()
    most, total = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * most / total)
    try:
        cube = extract("halved", device="cuda", **data).load()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "did not fit into memory" in caplog.text
    assert_close(cube, whole, rtol=1e-3, atol=1e-4)


def test_gauges_show_what_the_driver_says(cuda: torch.device, extract: Extract) -> None:
    seen: list[tuple[Progress, int, int]] = []

    def look(event: Progress) -> None:
        if event.state == "running":
            free, total = torch.cuda.mem_get_info()
            seen.append((event, measure()[0].used, total - free))

    extract("run", device="cuda", batch_size=1, listeners=[look])
    assert seen
    for event, gauge, used in seen:
        assert gauge == pytest.approx(used, rel=0.05)
        held = event.device_bytes
        assert 0 < held["allocated"] <= held["reserved"] <= used
        assert held["total"] == torch.cuda.mem_get_info()[1]


def test_host_memory_is_trimmed_on_the_cpu_alone(device: str, extract: Extract, monkeypatch: Any) -> None:
    trims: list[float] = []
    module = "actkit.extraction.loop.pipeline"
    monkeypatch.setattr(f"{module}.trim_heap", lambda: trims.append(time.monotonic()))
    monkeypatch.setattr(f"{module}._TRIM_EVERY", 1)
    extract("run", device=device)
    assert bool(trims) == (device == "cpu")
