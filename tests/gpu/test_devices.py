"""A CUDA device is found, named, and described to users as the driver describes it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import actkit
from actkit.config import Config
from actkit.errors import InputError
from actkit.extraction.loop.device_queue import device_name
from actkit.extraction.models.devices import check_device, device_description, pick_device, share_cores
from actkit.extraction.preflight.model_memory import device_bytes
from actkit.extraction.preflight.run_metadata import machine_settings

pytestmark = pytest.mark.gpu


def options(**changes: Any) -> Config:
    return Config(**{"model": "m", "data": "d", "out": "o", **changes})


def smi(query: str) -> list[str]:
    """Return what the driver's own program says of the first device."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")


def test_auto_is_cuda(cuda: torch.device) -> None:
    assert pick_device("auto").type == "cuda"
    assert pick_device("cuda:0") == torch.device("cuda", 0)


def test_its_name_is_the_drivers(cuda: torch.device) -> None:
    (name,) = smi("name")
    assert device_description(options(device="cuda:0")) == name
    assert name in device_description(options(device_map="auto"))
    assert machine_settings(options(device="cuda:0"))["device_name"] == name


def test_its_memory_is_the_drivers(cuda: torch.device) -> None:
    total = device_bytes(options(device="cuda:0"))
    assert total == torch.cuda.mem_get_info(0)[1]
    assert total == pytest.approx(float(smi("memory.total")[0]) * 2**20, rel=0.03)
    assert (device_bytes(options(device_map="auto")) or 0) >= total


def test_devices_that_do_not_exist(cuda: torch.device) -> None:
    count = torch.cuda.device_count()
    assert check_device(f"cuda:{count - 1}") == []
    (fault,) = check_device(f"cuda:{count}")
    assert str(fault).endswith(f"there is no `cuda:{count}` here ({count} CUDA devices; try auto)")


def test_one_batch_at_a_time(cuda: torch.device) -> None:
    assert share_cores(options(device="cuda")).batches == 1
    assert share_cores(options(device="cpu")).threads <= torch.get_num_threads()


def test_runs_queue_for_it(cuda: torch.device) -> None:
    assert device_name(options()) == "cuda-0"
    assert device_name(options(device_map="auto")) == "all"


def test_the_plan_shows_its_memory(device: str, tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    prepared = actkit.plan(model=str(tiny_model), data=str(prompts), out=str(tmp_path / "run"), device=device)
    rates = prepared.rates
    assert rates is not None
    assert prepared.attrs["device"] == device
    if device == "cpu":
        assert (rates.device, rates.crossing, rates.shares_cores) == (None, 0, True)
        return
    weights = sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
    assert rates.device is not None
    assert weights / 2 < rates.device < torch.cuda.mem_get_info()[1]
    assert not rates.shares_cores
    assert 1e9 < 1 / rates.crossing < 1e12  # bytes per second
    assert "device memory" in str(prepared)
    # as many tokens per batch as fit, whatever other programs hold now
    assert prepared.size.batch_tokens == 2**14


@pytest.mark.parametrize("method", ["8bit", "4bit"])
def test_quantized_weights(device: str, method: str, extract: Any) -> None:
    """The values are near those of the weights that were quantized."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if device == "cpu":
        pytest.skip("quantized on the CPU in tests/extraction/models")
    whole = extract("whole", device=device).load()
    cube = extract("quantized", device=device, quantization=method).load()
    close = abs(cube.pooled - whole.pooled).mean() / abs(whole.pooled).mean()
    assert 0 < float(close) < 0.5


def test_flash_attention_is_not_refused_for_want_of_a_device(cuda: torch.device, extract: Any) -> None:
    with pytest.raises(InputError) as caught:
        extract("run", attn_implementation="flash_attention_3", device="cuda")
    assert "needs a CUDA device" not in str(caught.value)
