"""Runs that do not fit are refused before a model is loaded, with suggested options and their effects."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from actkit.errors import InputError
from actkit.extraction.preflight import run_size
from actkit.extraction.preflight import suggestions as module
from actkit.extraction.preflight.preparation import RunPlan, prepare
from actkit.extraction.preflight.suggestions import suggest
from tests.extraction.models.test_adapters import LLAMA, write_adapter

GB = 10**9
KB = 1000

pytestmark = pytest.mark.usefixtures("no_weights")


@pytest.fixture
def asked(tiny_model: Path, prompts: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model": str(tiny_model), "data": str(prompts), "out": str(tmp_path / "run")}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the free space of every disk."""

    def set_free(free: int) -> None:
        usage = namedtuple("usage", "total used free")(GB, GB - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return set_free


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Simulate a device with a given amount of memory."""

    def set_memory(total: int) -> None:
        monkeypatch.setattr(run_size, "device_bytes", lambda _: total)
        monkeypatch.setattr(module, "device_bytes", lambda _: total)

    return set_memory


def faults_of(**options: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        prepare(None, options)
    return [str(fault) for fault in caught.value.faults]


def found(prepared: RunPlan, resource: str, **options: Any) -> list[tuple[str, int]]:
    return [
        (suggestion.option, getattr(suggestion.estimate, resource))
        for suggestion in suggest(prepared.spec, prepared.size, resource, **options)
    ]


def test_a_disk_that_is_too_small(asked: dict[str, Any], disk: Callable[[int], None]) -> None:
    disk(10 * KB)
    assert faults_of(**asked) == [
        f"out {asked['out']}: needs about 21.8 kB, but there are only 10.0 kB free "
        "(save=norm,pooled,last → 3.6 kB, keep_tokens=mean → 3.7 kB, limit=2 → 7.7 kB, "
        "storage=bfloat16 → 11.2 kB, or another disk)"
    ]


def test_more_memory_than_the_machine_has(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "host_bytes", lambda: 700 * 10**6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert faults_of(**asked) == [
        "host memory: needs about 734.1 MB, but there are only 700.0 MB in total (or another machine)"
    ]


def test_weights_that_the_device_cannot_hold(asked: dict[str, Any], gpu: Callable[[int], None]) -> None:
    gpu(30 * KB)
    assert faults_of(**asked, batch_size=64) == [
        "device memory: needs about 263.4 kB, but there are only 30.0 kB in total "
        "(dtype=bfloat16 → 140.5 kB, max_tokens=12 → 170.4 kB, quantization=4bit → 222.0 kB, "
        "quantization=8bit → 227.5 kB, device_map=auto, or another device)"
    ]
    # accelerate places the excess elsewhere
    assert prepare(None, {**asked, "device_map": "auto"}).estimate.device


def test_everything_that_does_not_fit_comes_at_once(
    asked: dict[str, Any],
    disk: Callable[[int], None],
    gpu: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk(KB)
    gpu(KB)
    monkeypatch.setattr(module, "host_bytes", lambda: KB)
    names = [fault.partition(": needs")[0] for fault in faults_of(**asked)]
    assert names == [f"out {asked['out']}", "host memory", "device memory"]


def test_a_resumed_run_ignores_free_space(
    asked: dict[str, Any], disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from actkit.testing import write_cube

    write_cube(Path(asked["out"]))
    disk(0)
    assert prepare(None, asked).free == 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["disk", "host"])
@pytest.mark.parametrize("model", ["demo", "minilm"])
def test_each_option_leads_to_what_a_run_with_it_is_estimated_to_take(
    what: str, model: str, architectures: Callable[[str], Path], mtgeneval: Path, tmp_path: Path
) -> None:
    asked = {"model": str(architectures(model)), "data": str(mtgeneval), "out": str(tmp_path), "limit": 200}
    prepared = prepare(None, asked)
    now = getattr(prepared.estimate, what)
    listed = found(prepared, what, room=0.3 * now)
    for option, amount in listed:
        name, _, value = option.partition("=")
        with_it = prepare(None, {**asked, name: int(value) if value.isdigit() else value})
        assert amount == getattr(with_it.estimate, what), option
        assert amount <= 0.9 * now
    assert [amount for _, amount in listed] == sorted(amount for _, amount in listed)
    names = {option.partition("=")[0] for option, _ in listed}
    everything = {"keep_tokens", "save", "layers", "max_tokens", "limit"} if what == "disk" else set()
    if model == "minilm":
        # which cuts prompts to 256 tokens; half of the longest is more than nearly all have
        everything = everything - {"max_tokens"} | ({"storage"} if what == "disk" else set())
    assert names >= everything


@pytest.mark.slow
def test_as_many_samples_as_fit(asked: dict[str, Any], mtgeneval: Path) -> None:
    prepared = prepare(None, {**asked, "data": str(mtgeneval), "limit": 3000})
    room = prepared.estimate.disk / 7
    limit, disk = next(
        (option, size) for option, size in found(prepared, "disk", room=room) if option.startswith("limit=")
    )
    assert limit == "limit=400"
    assert 0.8 * room < disk < room
    assert not any(option.startswith("limit=") for option, _ in found(prepared, "disk", room=inf))


def test_only_unused_options_are_suggested(asked: dict[str, Any]) -> None:
    everything = {
        **asked,
        "storage": "bfloat16",
        "keep_tokens": "last",
        "save": "norm",
        "layers": "1",
        "max_tokens": 9,
    }
    assert found(prepare(None, everything), "disk", room=inf) == []
    assert [option for option, _ in found(prepare(None, {**asked, "keep_tokens": "mean"}), "disk")] == [
        "save=norm,pooled,last",
        "layers=0-1",
        "storage=bfloat16",
    ]


def test_time_is_unknown_before_a_trial(asked: dict[str, Any]) -> None:
    prepared = prepare(None, asked)
    assert suggest(prepared.spec, prepared.size, "time") == []


def test_weights_can_be_made_smaller(asked: dict[str, Any], gpu: Callable[[int], None]) -> None:
    gpu(80 * GB)
    prepared = prepare(None, {**asked, "batch_size": 4})
    options = dict(found(prepared, "device"))
    assert options.keys() >= {"dtype=bfloat16", "quantization=8bit", "quantization=4bit"}
    half = prepare(None, {**asked, "batch_size": 4, "dtype": "bfloat16"})
    assert options["dtype=bfloat16"] == half.estimate.device


def test_options_refused_with_an_adapter_are_not_suggested(
    asked: dict[str, Any], gpu: Callable[[int], None], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(asked["model"])
    write_adapter(tmp_path / "adapter", model, LLAMA)
    adapted = {**asked, "adapter": str(tmp_path / "adapter"), "batch_size": 4}
    gpu(80 * GB)
    prepared = prepare(None, adapted)
    advised = [option for option, _ in found(prepared, "device")]
    assert "dtype=bfloat16" in advised
    assert not any(option.startswith("quantization") for option in advised)
    gpu(30 * KB)
    (fault,) = faults_of(**adapted)
    assert "device memory: needs" in fault
    assert not any(option in fault for option in ("quantization", "device_map"))
