"""Sites of interventions: own outputs change nothing, and those of another prompt give its logits."""

from pathlib import Path

import numpy as np
import pytest
import torch

import actkit
from actkit.features.language_loss import load_language_loss
from actkit.features.replacement import replaced
from actkit.interventions.prompt_logits import last_logits
from actkit.interventions.sites import parse_sites, recorded
from tests.interventions.test_patching import FAST, NIGHTLY, extracted
from tests.models.architectures import build

NAMES = [
    name if name == FAST[0] else pytest.param(name, marks=pytest.mark.nightly) for name in (*FAST, *NIGHTLY)
]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_own_outputs_change_nothing_and_those_of_the_twin_everything(name: str, tmp_path: Path) -> None:
    path = extracted(build(name, tmp_path / "model"), tmp_path)
    cube = actkit.open_cube(path)
    loss = load_language_loss(cube, cube.attrs["model"], rows=np.arange(2))
    prompts = [prompt for batch in loss.batches for prompt in batch.prompts]
    base, twin = prompts[:1], prompts[1:2]
    assert len(base[0].ids) == len(twin[0].ids)
    components = ["residual", *loss.model.hook_points.components]
    sites, faults = parse_sites(components, len(loss.model.hook_points.blocks))
    assert faults == []
    intact = last_logits(loss.model, base)
    own, logits = recorded(loss.model, base, sites)
    assert torch.equal(logits, intact)
    others, expected = recorded(loss.model, twin, sites)
    assert not torch.allclose(expected, intact)
    for site in sites:
        with replaced(loss.model.hook_points, *site, lambda _output, site=site: own[site]):  # type: ignore[misc]
            same = last_logits(loss.model, base)
        # an output in the stream is the difference of two values, which rounds
        if site[0] == "residual":
            assert torch.equal(same, intact)
        torch.testing.assert_close(same, intact, rtol=0, atol=1e-5 * float(intact.abs().max()))
        if site[0] == "residual":
            with replaced(loss.model.hook_points, *site, lambda _output, site=site: others[site]):  # type: ignore[misc]
                changed = last_logits(loss.model, base)
            torch.testing.assert_close(changed, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
