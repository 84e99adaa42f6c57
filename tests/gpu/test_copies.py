"""Copies to the host run beside the computation and lose nothing."""

from typing import Any

import numpy as np
import pytest
import torch

from actkit.batch_plan import Plan
from actkit.extraction.capture.batch_capture import Capture, _Batch
from actkit.extraction.capture.device_copy import _NUMPY, Transfer, allocate
from actkit.extraction.capture.packing import pack_whole
from actkit.extraction.capture.pooling import last_of, means_of, means_of_slices, norms_of, wide
from actkit.extraction.capture.spec import Rules
from actkit.extraction.capture.window_buffer import Count, WindowBuffer
from actkit.extraction.loop.trial_run import _seconds_per_byte
from actkit.extraction.prompts.encoder import Prompt, collate
from tests.plans import plan_of

pytestmark = pytest.mark.gpu
RULES = Rules({"residual": (0, 1)}, (0, 1), "all", "exact", "keep", True)


def busy(device: torch.device) -> torch.Tensor:
    """Queue work that takes some milliseconds."""
    matrix = torch.randn(4096, 4096, device=device)
    for _ in range(20):
        matrix = matrix @ matrix / 4096
    return matrix


def some(shape: tuple[int, ...], device: str | torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize("dtype", list(_NUMPY), ids=str)
def test_host_memory_of_every_dtype(device: str, dtype: torch.dtype) -> None:
    memory = allocate((3, 5), dtype, pinned=device == "cuda")
    assert (memory.dtype, memory.shape) == (dtype, (3, 5))
    assert memory.is_pinned() == (device == "cuda")


def test_pinned_memory_is_released(cuda: torch.device) -> None:
    """The same addresses can be pinned again and again."""
    for _ in range(50):
        memory = allocate((2**22,), torch.float32, pinned=True)
        assert memory.is_pinned()
        del memory


def test_values_arrive_although_the_device_is_busy(cuda: torch.device) -> None:
    transfer = Transfer()
    values = some((1000, 64), cuda)
    expected = values.cpu()
    target = allocate(values.shape, torch.float32, pinned=True)
    busy(cuda)
    computed = values * 2  # behind the queue
    transfer.copy(target, computed)
    mark = transfer.mark()
    del computed  # its memory must not be handed out before the copy is done
    torch.full_like(values, torch.nan)
    mark.wait()
    assert torch.equal(target, expected * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_are_converted_before_they_are_copied(device: str, dtype: torch.dtype) -> None:
    transfer, values = Transfer(), some((50, 8), device).double()
    target = allocate(values.shape, dtype, pinned=device == "cuda")
    transfer.copy(target, values)
    transfer.mark().wait()
    assert torch.equal(target, values.cpu().to(dtype))


def test_copies_run_beside_the_computation(cuda: torch.device) -> None:
    """A copy that waits for nothing ends while the default stream still computes."""
    transfer = Transfer()
    values = torch.ones(2**24, device=cuda)
    target = allocate(values.shape, torch.float32, pinned=True)
    transfer.copy(target, values)
    torch.cuda.synchronize()
    transfer.copy(target, values)
    mark = transfer.mark()
    computed = torch.cuda.Event()
    for _ in range(5):
        busy(cuda)
    computed.record()
    mark.wait()
    assert not computed.query()
    torch.cuda.synchronize()


@torch.inference_mode()
def test_a_wider_value_waits_for_those_under_way(device: str) -> None:
    """The second block gives float32, after the first has filled the array in bfloat16."""
    plan: Plan = plan_of([40] * 8, layers=2, hidden=512)
    transfer, pinned = Transfer(), device == "cuda"
    buffer = WindowBuffer(plan, ["residual"], RULES, transfer, pinned=pinned)
    buffer.begin(np.arange(8), plan.stored)
    packing = pack_whole([40] * 8)
    slot = buffer.place(np.arange(8), packing)
    values = some((320, 512), device).bfloat16()
    for _ in range(20):  # copies queue
        transfer.copy(slot.view("residual", 0, torch.bfloat16), values)
    transfer.copy(slot.view("residual", 1, torch.float32), values.float() * 1.001)
    buffer.complete()
    buffer.wait()
    kept = buffer._groups[""]._tensors["residual"]
    assert torch.equal(kept[0, :320], values.float().cpu())
    assert torch.equal(kept[1, :320], (values.float() * 1.001).cpu())


def test_the_rate_of_copies_is_measured(cuda: torch.device) -> None:
    assert 1e9 < 1 / _seconds_per_byte(cuda) < 1e12


def test_a_batch_on_the_device_is_that_of_the_host(device: str) -> None:
    rows = [np.arange(3, 3 + length, dtype=np.int32) for length in (4, 9, 1)]
    prompts = [Prompt(row, np.full(len(row), 3, dtype=np.int8)) for row in rows]
    for side in ("right", "left"):
        ours = collate(prompts, side=side, pad_id=2, device=device)
        theirs = collate(prompts, side=side, pad_id=2)
        assert {name: tensor.device.type for name, tensor in ours.items()} == dict.fromkeys(theirs, device)
        assert all(torch.equal(ours[name].cpu(), theirs[name]) for name in theirs)


def test_reductions_agree_with_those_of_the_cpu(device: str) -> None:
    packing = pack_whole([7, 1, 30])
    values = some((38, 64), device).bfloat16()
    exact = wide(values)
    assert exact.dtype == torch.float64
    expected = wide(values.cpu())
    torch.testing.assert_close(means_of(exact, packing).cpu(), means_of_slices(expected, packing))
    torch.testing.assert_close(norms_of(exact).cpu(), expected.norm(dim=1))
    assert torch.equal(last_of(values, packing).cpu(), values.cpu()[[6, 7, 37]])
    indices = packing.on("last", torch.device(device))
    assert indices.device.type == device
    assert indices is packing.on("last", torch.device(device))


@torch.inference_mode()
def test_nonfinite_values_are_counted_by_sample(device: str) -> None:
    """On the device every value is checked, on the CPU only blocks with a norm that is not finite."""
    plan, transfer = plan_of([4, 2], layers=2), Transfer()
    rules = Rules({"residual": (0, 1)}, (0, 1), "all", "float16", "zero", True)
    names = ["residual", "norm", "pooled", "last", "nonfinite"]
    buffer = WindowBuffer(plan, names, rules, transfer, pinned=device == "cuda")
    buffer.begin(np.arange(2), plan.stored)
    packing = pack_whole([4, 2])
    batch = _Batch(packing, buffer.place(np.arange(2), packing))
    nothing: Any = None
    capture = Capture(nothing, nothing, rules, transfer)
    values = some((6, 8), "cpu")
    values[0, 0], values[5, 1:3], values[2, 2] = torch.inf, torch.nan, 1e6
    for layer in (0, 1):
        capture._keep_block("residual", layer, values.to(device), batch)
    buffer.complete()
    buffer.wait()
    tensors = buffer._groups[""]._tensors
    assert tensors[Count("nonfinite", "residual")].tolist() == [[1, 2]] * 2
    assert tensors[Count("overflows", "residual")].tolist() == [[1, 0]] * 2
    assert tensors["residual"][0, 0, 0] == 0
    zeroed = torch.where(values.isfinite(), values, 0).double()
    expected = torch.stack([zeroed[:4].mean(0), zeroed[4:].mean(0)]).float()
    torch.testing.assert_close(tensors["pooled"][1], expected)
    torch.testing.assert_close(tensors["norm"][1, :6], zeroed.norm(dim=1).float())
