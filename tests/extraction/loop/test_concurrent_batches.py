"""Concurrent batches have the same results as sequential ones."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import actkit
from actkit.config import Config
from actkit.errors import ModelError
from actkit.extraction.capture.batch_capture import Capture
from actkit.extraction.loop import pipeline
from actkit.extraction.loop.batch_runner import replicate
from actkit.extraction.models.devices import Share, share_cores
from actkit.extraction.models.loader import LoadedModel, load_model
from actkit.extraction.prompts.encoder import collate
from actkit.extraction.run import plan
from actkit.store.layout import CUBE
from actkit.testing import contents

Extract = Callable[..., dict[str, bytes]]


@pytest.fixture
def extract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """Make a cube with a number of concurrent batches, one thread each, and return its files."""

    def run(batches: int, **options: Any) -> dict[str, bytes]:
        monkeypatch.setattr(pipeline, "share_cores", lambda _, **__: Share(batches, 1))
        out = tmp_path / f"run-{batches}"
        actkit.extract(**options, out=str(out), listeners=[])
        return contents(out / CUBE)

    return run


def loaded(folder: Path, data: Path, out: Path) -> tuple[LoadedModel, dict[str, torch.Tensor]]:
    prepared = plan(model=str(folder), data=str(data), out=str(out), trial=False)
    inputs = collate(prepared.spec.encoder.encode(["He waits.", "The doctor reads a book."]))
    return load_model(prepared.spec.checkpoint, prepared.spec.architecture, prepared.config), inputs


NAMES = ("demo", "minilm", "gemma3", "gpt2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batches", "limit"),
    [
        ("demo", 2, 24),
        ("minilm", 5, 24),
        ("gemma3", 2, 24),
        ("gpt2", 5, 24),
        *(pytest.param(name, batches, 90, marks=pytest.mark.nightly) for name in NAMES for batches in (2, 5)),
    ],
)
def test_a_cube_is_the_same_however_many_batches_are_computed_at_once(
    architectures: Callable[[str], Path],
    mtgeneval: Path,
    extract: Extract,
    name: str,
    batches: int,
    limit: int,
) -> None:
    options = {
        "model": str(architectures(name)),
        "data": str(mtgeneval),
        "limit": limit,
        "batch_size": 4,
        "window_samples": limit // 3,
        "layers": "residual_all attention_all mlp_all",
        "storage": "bfloat16",
    }
    assert extract(batches, **options) == extract(1, **options)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["mean", "last", "content"])
def test_kept_positions_are_the_same_with_concurrent_batches(
    tiny_model: Path, prompts: Path, extract: Extract, tokens: str
) -> None:
    options = {"model": str(tiny_model), "data": str(prompts), "batch_size": 1, "window_samples": 4}
    assert extract(3, **options, keep_tokens=tokens) == extract(1, **options, keep_tokens=tokens)


@pytest.mark.slow
def test_batches_are_under_way_at_the_same_time(
    tiny_model: Path, prompts: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, run = threading.Barrier(3), Capture.run

    def meets(self: Capture, *args: Any) -> None:
        together.wait(timeout=200)
        run(self, *args)

    monkeypatch.setattr(Capture, "run", meets)
    options = {"batch_size": 1, "window_samples": 2}  # also across window boundaries
    assert extract(3, model=str(tiny_model), data=str(prompts), **options)


@pytest.mark.parametrize(
    ("cores", "options", "share"),
    [
        (1, {}, Share(1, 1)),
        (2, {}, Share(2, 1)),
        (7, {}, Share(4, 1)),
        (16, {}, Share(4, 4)),
        (16, {"generate": {"max_new_tokens": 1}}, Share(1, 16)),  # one random generator
        (16, {"device_map": "auto"}, Share(1, 16)),
        (16, {"device": "cuda"}, Share(1, 16)),
    ],
)
def test_the_cores_that_pytorch_may_use_are_shared(
    monkeypatch: pytest.MonkeyPatch, cores: int, options: dict[str, Any], share: Share
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert share_cores(Config(model="m", data="d", out="o", **options)) == share
    asked = Config(model="m", data="d", out="o", **options)
    assert share_cores(asked, quantized=True) == Share(1, cores)


@pytest.mark.slow
def test_the_threads_of_the_caller_are_left_as_they_were(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen, run = torch.get_num_threads(), set(), Capture.run

    def notes(self: Capture, *args: Any) -> None:
        seen.add((threading.current_thread().name.split("_")[0], torch.get_num_threads()))
        run(self, *args)

    def fresh() -> int:
        counts: list[int] = []
        thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return counts[0]

    monkeypatch.setattr(Capture, "run", notes)
    options = {"model": str(tiny_model), "data": str(prompts), "listeners": []}
    cube = actkit.extract(**options, out=str(tmp_path / "run"), batch_size=1)
    assert seen == {("actkit-compute", cube.attrs["threads"])}
    assert (torch.get_num_threads(), fresh()) == (before, before)

    def fails(*_: Any) -> None:
        raise RuntimeError("the worker's own")

    monkeypatch.setattr(Capture, "run", fails)
    with pytest.raises(RuntimeError, match="the worker's own"):
        actkit.extract(**options, out=str(tmp_path / "failed"))
    assert (torch.get_num_threads(), fresh()) == (before, before)
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("actkit")}
    assert not {name for name in threads if not name.startswith("actkit-read")}  # which the process keeps


@pytest.mark.slow
def test_a_replica_shares_weights_and_no_modules(
    architectures: Callable[[str], Path], prompts: Path, tmp_path: Path
) -> None:
    for name in ("demo", "minilm", "gpt2"):
        model, inputs = loaded(architectures(name), prompts, tmp_path / name)
        twin = replicate(model)
        ours, theirs = dict(model.model.named_parameters()), dict(twin.model.named_parameters())
        assert ours.keys() == theirs.keys()
        assert all(theirs[key] is weights for key, weights in ours.items())
        assert not set(model.model.modules()) & set(twin.model.modules())
        assert twin.hook_points.decoder in set(twin.model.modules())
        assert all(block in set(twin.hook_points.decoder.modules()) for block in twin.hook_points.blocks)
        met: list[str] = []
        model.hook_points.blocks[0].register_forward_hook(lambda *_, met=met: met.append("model"))
        with torch.inference_mode():
            output = twin.hook_points.decoder(**inputs)[0]
            assert met == []
            assert torch.equal(output, model.hook_points.decoder(**inputs)[0])
        assert met == ["model"]


def test_a_block_whose_dtype_widens_is_refused(
    tiny_model: Path, prompts: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, seen = Capture._keep, 0

    def widens(self: Capture, batch: Any, boundary: Any, layout: Any, *output_of: Any) -> None:
        nonlocal seen
        component, layer, output = output_of
        if component == "residual" and layer == 1:
            seen += 1
            output = output.double().float() if seen > 2 else output
        keep(self, batch, boundary, layout, component, layer, output)

    monkeypatch.setattr(Capture, "_keep", widens)
    options = {"model": str(tiny_model), "data": str(prompts), "batch_size": 1, "dtype": "bfloat16"}
    with pytest.raises(ModelError, match=r"residual: a block that gave torch\.bfloat16 .* torch\.float32"):
        extract(2, **options)


@pytest.mark.slow
def test_blocks_of_several_precisions_are_held_in_the_widest(
    tiny_model: Path, prompts: Path, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = pipeline._Pipeline.__init__

    def mixed(self: Any, prepared: Any, model: LoadedModel, *args: Any, **options: Any) -> None:
        model.hook_points.blocks[1].register_forward_hook(lambda _m, _a, output: output.float())
        model.hook_points.blocks[2].register_forward_pre_hook(
            lambda _m, args: (args[0].bfloat16(), *args[1:])
        )
        load(self, prepared, model, *args, **options)

    monkeypatch.setattr(pipeline._Pipeline, "__init__", mixed)
    options = {"model": str(tiny_model), "data": str(prompts), "batch_size": 1, "dtype": "bfloat16"}
    assert extract(3, **options) == extract(1, **options)
