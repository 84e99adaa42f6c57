"""Outputs of components are replaced at chosen positions, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from actkit.errors import InputError
from actkit.extraction.models.hook_points import hook_output, hooks
from actkit.extraction.models.loader import LoadedModel
from actkit.features.replacement import replaced
from tests.extraction.loaded_models import load

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


def outputs(loaded: LoadedModel, component: str, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of a module and the last hidden state of a pass."""
    points = loaded.hook_points
    module = {"residual": points.blocks, **points.components}[component][layer]
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _args, output: seen.append(hook_output(output)))
    with hooks([handle]), torch.no_grad():
        final = points.decoder(input_ids=IDS).last_hidden_state
    return seen[0], final


@pytest.mark.parametrize("name", ["llama", "mpt", "mamba"])
@pytest.mark.parametrize("component", ["residual", "attention", "mlp"])
def test_the_next_module_receives_what_was_put_in_place(name: str, component: Any, saved: Any) -> None:
    loaded = load(saved(name))
    if component not in {"residual", *loaded.hook_points.components}:
        pytest.skip("the architecture has no such component")
    before, intact = outputs(loaded, component, 1)
    with replaced(loaded.hook_points, component, 1, lambda x: x.double()):
        _, same = outputs(loaded, component, 1)
    assert torch.equal(same, intact)
    new = torch.randn_like(before)
    mask = torch.tensor([[False, True, False, True, True], [True, False, False, False, False]])
    with replaced(loaded.hook_points, component, 1, lambda _: new, where=mask):
        after, changed = outputs(loaded, component, 1)
    assert torch.equal(after[mask], new[mask])
    assert torch.equal(after[~mask], before[~mask])
    assert not torch.equal(changed, intact)
    assert torch.equal(
        changed[0, 0], intact[0, 0]
    )  # attention is causal: earlier positions keep their values
    assert torch.equal(outputs(loaded, component, 1)[1], intact)


def test_the_residual_that_is_put_in_place_is_all_that_later_blocks_see(saved: Any) -> None:
    loaded = load(saved("llama"))
    new = torch.randn(2, 5, 32)
    with replaced(loaded.hook_points, "residual", 3, lambda _: new):
        _, final = outputs(loaded, "residual", 3)
    assert torch.equal(final, loaded.hook_points.decoder.norm(new))


def test_outputs_are_in_the_units_of_a_cube_where_the_model_multiplies_them(tmp_path: Path) -> None:
    from tests.extraction.loaded_models import SMALL

    torch.manual_seed(0)
    config = tf.GraniteConfig(**SMALL, num_key_value_heads=2, residual_multiplier=0.25)
    tf.AutoModel.from_config(config).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    before, _ = outputs(loaded, "mlp", 2)
    seen: list[torch.Tensor] = []

    def double(values: torch.Tensor) -> torch.Tensor:
        seen.append(values)
        return 2 * values

    with replaced(loaded.hook_points, "mlp", 2, double):
        after, _ = outputs(loaded, "mlp", 2)
    assert torch.equal(seen[0], before * 0.25)
    assert torch.equal(after, 2 * before)


def test_contexts_nest(saved: Any) -> None:
    loaded = load(saved("llama"))
    before, _ = outputs(loaded, "residual", 0)
    with (
        replaced(loaded.hook_points, "residual", 0, lambda x: x + 1),
        replaced(loaded.hook_points, "residual", 0, lambda x: 3 * x),
    ):
        after, _ = outputs(loaded, "residual", 0)
    assert torch.equal(after, 3 * (before + 1))


def test_a_site_that_does_not_exist_is_named(saved: Any) -> None:
    points = load(saved("mamba")).hook_points
    for component, layer in (("residual", 4), ("mlp", 0), ("residual", -1)):
        with (
            pytest.raises(InputError, match=rf"no {component} of layer {layer} \(it has residual 0-3\)"),
            replaced(points, component, layer, torch.zeros_like),  # type: ignore[arg-type]
        ):
            pass
