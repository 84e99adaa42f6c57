"""Outputs of components at layers, recorded in one forward pass together with the logits."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import cast

import torch

from ..errors import Fault
from ..extraction.models.loader import LoadedModel
from ..extraction.prompts.encoder import Prompt
from ..features.replacement import replaced
from ..schema import Component
from .prompt_logits import last_logits

COMPONENTS = ("residual", "attention", "mlp")
Site = tuple[Component, int]


def parse_sites(what: str | Sequence[str], n_layers: int) -> tuple[list[Site], list[Fault]]:
    """Return the sites that names such as ``mlp_5``, or ``mlp`` for all layers, stand for.

    Examples
    --------
    >>> parse_sites(["mlp_1", "attention"], 2)[0]
    [('mlp', 1), ('attention', 0), ('attention', 1)]
    """
    sites: list[Site] = []
    faults = []
    for name in [what] if isinstance(what, str) else list(what):
        component, _, number = str(name).partition("_")
        if component not in COMPONENTS or (number and not number.isdecimal()) or str(name).endswith("_"):
            hint = "name a component and a layer, such as mlp_5, or a component for all layers, such as mlp"
            faults.append(Fault("what", f"{name!r} is not a site", hint))
        elif number and int(number) >= n_layers:
            faults.append(Fault("what", f"the model has no {name}", f"its layers are 0-{n_layers - 1}"))
        else:
            layers = [int(number)] if number else list(range(n_layers))
            sites += [(cast(Component, component), layer) for layer in layers]
    if not sites and not faults:
        faults.append(Fault("what", "names no site", "give one or several, such as mlp_5"))
    return list(dict.fromkeys(sites)), faults


@torch.inference_mode()
def recorded(
    model: LoadedModel, prompts: Sequence[Prompt], sites: Sequence[Site]
) -> tuple[dict[Site, torch.Tensor], torch.Tensor]:
    """Run prompts of one length, and return the outputs of some sites and the logits after the last token.

    Parameters
    ----------
    model
        Model with its head.
    prompts
        Prompts of equal length.
    sites
        Components and layers.

    Returns
    -------
    tuple of dict and torch.Tensor
        Outputs in the units of a cube, dims ``(sample, token, hidden)``, and logits, dims
        ``(sample, vocabulary)``, which the recording leaves unchanged to the bit.
    """
    outputs: dict[Site, torch.Tensor] = {}
    nowhere = torch.zeros(1, 1, dtype=torch.bool)

    def keep(site: Site, output: torch.Tensor) -> torch.Tensor:
        outputs[site] = output.clone()
        return output

    with ExitStack() as stack:
        for site in sites:
            component, layer = site
            hook = replaced(
                model.hook_points,
                component,
                layer,
                lambda output, site=site: keep(site, output),  # type: ignore[misc]
                where=nowhere,
            )
            stack.enter_context(hook)
        logits = last_logits(model, prompts)
    return outputs, logits
