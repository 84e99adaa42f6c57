"""Whole runs of a real chat model: killed and resumed, planned and measured, analysed and reported."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.testing import contents
from tests.runs.extractions import flags
from tests.shared_folders import shared_folder

# in float32: two cores multiply bfloat16 several times slower
IN_A_CHAT = {"dtype": "float32", "chat": True, "id_column": "id"}


def options(model: Path, data: Path, **more: Any) -> dict[str, Any]:
    return {**IN_A_CHAT, "model": str(model), "data": str(data), **more}


# the process kills itself as soon as a window is committed, while the next is computed
KILLED = """
import json, os, signal, sys
import actkit
from actkit.store.writer import CubeWriter

write = CubeWriter.write

def write_and_die(*args):
    write(*args)
    os.kill(os.getpid(), signal.SIGKILL)

CubeWriter.write = write_and_die
actkit.extract(**json.loads(sys.argv[1]), listeners=[])
"""


def test_a_killed_run_is_resumed_to_the_same_bytes(
    smollm2: Path, requests: Callable[[int], Path], tmp_path: Path
) -> None:
    asked = options(smollm2, requests(1), limit=6, window_samples=2, layers="0-29:4")
    killed = {**asked, "out": str(tmp_path / "killed")}
    process = subprocess.run([sys.executable, "-c", KILLED, json.dumps(killed)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert 1 <= flags(tmp_path / "killed") < 3
    for name in ("killed", "whole"):
        actkit.extract(**asked, out=str(tmp_path / name), listeners=[])
    assert contents(tmp_path / "killed" / "cube.zarr") == contents(tmp_path / "whole" / "cube.zarr")


PLANNED = """
import json, sys
import actkit
from actkit.extraction.loop import trial_run
trial_run.SECONDS = 0.5
found = actkit.plan(**json.loads(sys.argv[1]))
estimate = found.estimate
print(json.dumps([found.plan.tokens, estimate.disk, estimate.host, estimate.time.total]))
"""
EXTRACTED = "import json, sys, actkit; actkit.extract(**json.loads(sys.argv[1]), listeners=[])"


def most_memory(arguments: list[str]) -> int:
    """Run a command, and return the most bytes that its process held."""
    process, most = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), 0
    while process.poll() is None:
        with suppress(OSError, StopIteration):  # it has just ended
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            most = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        time.sleep(0.02)
    assert process.returncode == 0
    return most


@pytest.fixture(scope="module")
def asked(smollm2: Path, requests: Callable[[int], Path]) -> dict[str, Any]:
    """Four requests of each category of XSTest in a chat: 40 safe ones, 32 unsafe ones."""
    return options(smollm2, requests(4), layers="all")


@pytest.fixture(scope="module")
def measured(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the run, and of the memory that it took."""

    def extract(folder: Path) -> None:
        # in a separate process, because this one holds models of other tests
        held = most_memory(
            [sys.executable, "-c", EXTRACTED, json.dumps({**asked, "out": str(folder / "run")})]
        )
        (folder / "memory.json").write_text(json.dumps(held), encoding="utf-8")

    return shared_folder(tmp_path_factory, "smollm2-xstest", extract)


@pytest.fixture(scope="module")
def cube(measured: Path) -> xr.Dataset:
    return actkit.open_cube(measured / "run")


def test_the_plan_is_what_happens(
    asked: dict[str, Any], measured: Path, cube: xr.Dataset, tmp_path: Path
) -> None:
    arguments = json.dumps({**asked, "out": str(tmp_path / "run")})
    planned = subprocess.run(
        [sys.executable, "-c", PLANNED, arguments], check=True, capture_output=True, text=True
    )
    tokens, disk, host, seconds = json.loads(planned.stdout)
    held = json.loads((measured / "memory.json").read_text(encoding="utf-8"))
    used = sum(path.stat().st_size for path in (measured / "run" / "cube.zarr").rglob("*") if path.is_file())
    print(f"disk: planned {disk / 1e6:.0f} MB, used {used / 1e6:.0f} MB")
    print(f"memory: planned {host / 1e6:.0f} MB, held {held / 1e6:.0f} MB")
    assert tokens == int(cube.n_tokens.sum())
    assert 0.8 < used / disk < 1.2
    assert 0.7 < held / host < 1.2
    assert seconds > 0  # what it comes to depends on what else the machine does


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return CKA of the unbiased HSIC of Song et al., from the definition."""

    def gram(z: np.ndarray) -> np.ndarray:
        k = (z - z.mean(0)) @ (z - z.mean(0)).T
        np.fill_diagonal(k, 0)
        return k

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        ones = np.ones(n)
        value = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return float((value - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3)))

    k, m = gram(x.astype(float)), gram(y.astype(float))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_norms_and_updates_are_those_of_the_stored_vectors(cube: xr.Dataset) -> None:
    content = (cube.token_kind == 3).values
    residual = cube.residual.values.astype(float)
    lengths = np.sqrt((residual**2).sum(-1))
    norms = actkit.layer_norms(cube, cluster="group").compute()
    np.testing.assert_allclose(norms["mean"].values[0], lengths[:, content].mean(-1), rtol=1e-6)
    np.testing.assert_allclose(norms["median"].values[0], np.median(lengths[:, content], axis=-1), rtol=1e-6)
    updates = actkit.layer_updates(cube, cluster="group").compute()
    assert all(np.isfinite(updates[name].values).all() for name in updates.data_vars)


def test_a_massive_activation_is_found_where_llama_has_it(cube: xr.Dataset) -> None:
    found = actkit.massive_activations(cube, tokens="all").compute().squeeze("language")
    largest = np.abs(cube.residual.values[:, 0, 0]).max(-1)
    assert largest[15] > 1000  # at the first token
    assert all(np.isfinite(found[name].values.astype(float)).all() for name in found.data_vars)
    by_definition = [
        sum(
            int(((values := np.abs(layer[row, :length])) > max(100, 1000 * np.median(values))).sum())
            for row, length in enumerate(cube.n_tokens.values)
        )
        for layer in cube.residual.values
    ]
    assert found.n_massive.values.tolist() == by_definition
    assert found.n_massive_samples.sel(layer=15).item() == cube.sizes["sample"]


def test_cka_of_neighbouring_layers_is_that_of_the_formula(cube: xr.Dataset) -> None:
    found = actkit.adjacent_cka(cube, cluster=None).compute()
    x = cube.pooled.values
    for layer in (0, 14, 28):
        expected = debiased_cka(x[layer], x[layer + 1])
        np.testing.assert_allclose(found.cka.sel(layer=layer).item(), expected, rtol=1e-6)
    assert (found.low < found.cka).all()
    assert np.isfinite(actkit.transitions(cube, cluster="group").compute().distance.values[:, :-1]).all()
    np.testing.assert_allclose(np.diag(actkit.cka(cube, cluster="group").cka.values[0]), 1, atol=1e-9)


def test_safe_and_unsafe_requests_differ_beyond_chance(cube: xr.Dataset) -> None:
    found = actkit.group_differential(cube, by="label", cluster="group").compute()
    assert (found.n_safe.item(), found.n_unsafe.item()) == (40, 32)
    print("AUROC by layer:", found.auroc.values.round(3)[0], "TF-IDF:", found.auroc_tfidf.item())
    # one block, named before: the middle; its p counts the largest of all blocks in each permutation
    middle = found.sel(layer=15)
    assert middle.auroc.item() > 0.65
    assert middle.p.item() < 0.05


def test_the_direction_between_the_groups_is_compared_from_block_to_block(cube: xr.Dataset) -> None:
    found = actkit.direction_cosines(cube, by="label", cluster="group").compute()
    np.testing.assert_allclose(np.diagonal(found.layers.values[0]), 1)
    assert (abs(found.layers_disattenuated.fillna(0)) <= 1).all()
    assert found.layers.values[0, 14, 15] > found.layers.values[0, 0, 29]
    assert (found.reliability.sel(layer=15) > 0.1).all()  # of a half


def test_a_probe_is_tested_on_the_other_family_of_requests(cube: xr.Dataset) -> None:
    some = cube.sel(layer=[0, 15])
    found = actkit.transfer(some, by="label", across="family", cluster="group").compute()
    middle = found.auroc.sel(layer=15)
    print("AUROC of block 15, trained in a row and tested in a column:", middle.values.round(2).tolist())
    assert set(found.train.values) == set(found.test.values) == {"words", "topics"}
    assert ((middle >= 0) & (middle <= 1)).all()
    assert middle.sel(train="topics", test="topics") > 0.6


def test_the_most_active_tokens_are_those_of_the_stored_vectors(cube: xr.Dataset) -> None:
    values = np.where(cube.token_kind.values == 3, cube.residual.values[15, :, :, 100], -np.inf)
    found = actkit.top_activating(cube, layer=15, hidden=100, count=5)
    np.testing.assert_allclose(found.value, np.sort(values, axis=None)[::-1][:5], rtol=1e-6)
    sample, token = np.unravel_index(values.argmax(), values.shape)
    assert (found["sample"][0], found.position[0]) == (sample, token)
    assert found.token[0] in found.text[0]


def test_a_few_blocks_are_compared_with_all(cube: xr.Dataset) -> None:
    few = [0, 10, 20, 29]
    found = actkit.layer_subset(actkit.layer_norms, cube, layers=few, cluster="group").compute()
    mean = actkit.layer_norms(cube, cluster="group")["mean"].values[0]
    np.testing.assert_allclose(found["mean"].values[0], mean)
    np.testing.assert_allclose(found["mean_few"].sel(layer=few).values[0], mean[few])
    missed = np.abs(mean - np.interp(np.arange(30), few, mean[few]))
    np.testing.assert_allclose(found["mean_missed"].values[0], missed.max(), rtol=1e-6)
    assert found["mean_missed_at"].item() == missed.argmax()


def test_whitening_makes_unit_variance(cube: xr.Dataset) -> None:
    whitener = actkit.Whitener.fit(cube, layer=12, method="pca", n_components=20)
    white = whitener.transform(cube).values[(cube.token_kind == 3).values]
    np.testing.assert_allclose(np.cov(white.T), np.eye(20), atol=1e-2)


def test_the_report_says_everything(cube: xr.Dataset, tmp_path: Path) -> None:
    page = actkit.report(cube, out=tmp_path / "report.html", by="label", cluster="group")
    text = Path(page).read_text(encoding="utf-8")
    for heading in ("Norms", "Layer updates", "Layer alignment", "Groups: label"):
        assert f"{heading}</h2>" in text
    norms = actkit.layer_norms(cube, cluster="group")["mean"].values[0]
    assert f"from {norms[0]:.3g} at layer 0 to {norms[-1]:.3g} at layer 29" in text
    assert actkit.verify(cube.encoding["source"]).ok
