"""Summary of a plan as text."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actkit.extraction.preflight import plan_summary
from actkit.extraction.preflight.plan_summary import summary_lines
from actkit.extraction.preflight.preparation import prepare

pytestmark = pytest.mark.usefixtures("no_weights")


@pytest.mark.parametrize(
    ("dtype", "library", "supported", "slow"),
    [
        ("bfloat16", True, {"bf16"}, False),
        ("bfloat16", True, {"fp16"}, True),
        ("float16", True, {"fp16"}, False),
        ("float16", True, {"bf16"}, True),
        ("float32", True, set(), False),
        # a build of PyTorch without oneDNN also lacks the operators that detect support
        ("bfloat16", False, None, True),
        ("float16", False, None, True),
        ("float32", False, None, False),
    ],
)
def test_slow_16_bit_matrices_are_reported_on_any_build_of_pytorch(
    dtype: str,
    library: bool,
    supported: set[str] | None,
    slow: bool,
    tiny_model: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"model": str(tiny_model), "data": str(prompts), "out": str(tmp_path / "run"), "dtype": dtype}
    run = prepare(None, {**asked, "device": "cpu"})
    operators = {
        f"_is_mkldnn_{kind}_supported": lambda kind=kind: kind in supported
        for kind in (("bf16", "fp16") if supported is not None else ())
    }
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**operators))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: library)
    assert ("dtype" in dict(summary_lines(run.spec, run.size, free=run.free, rates=None))) == slow
    monkeypatch.setattr(plan_summary, "pick_device", lambda _: torch.device("cuda"))
    assert "dtype" not in dict(summary_lines(run.spec, run.size, free=run.free, rates=None))
