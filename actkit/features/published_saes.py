"""Repositories of published autoencoders, by model."""

import re

from ..schema import Component

# names of models, as in the attribute `model` of a cube; of the sizes that have autoencoders
_GEMMA_3 = re.compile(r"gemma-3-(270m|1b|4b|12b|27b)-(pt|it)\b", re.IGNORECASE)
_GEMMA_2 = re.compile(r"gemma-2-(2b|9b|27b)(-it)?\b", re.IGNORECASE)
_SITES = {"residual": "res", "attention": "att", "mlp": "mlp"}
_OTHERS: tuple[tuple[str, Component, str], ...] = (
    (r"Llama-3\.1-8B", "residual", "OpenMOSS-Team/Llama3_1-8B-Base-LXR-8x"),
    (r"Llama-3\.1-8B", "attention", "OpenMOSS-Team/Llama3_1-8B-Base-LXA-8x"),
    (r"Llama-3\.1-8B", "mlp", "OpenMOSS-Team/Llama3_1-8B-Base-LXM-8x"),
    (r"Llama-3-8B", "residual", "EleutherAI/sae-llama-3-8b-32x"),
    (r"pythia-70m", "residual", "EleutherAI/sae-pythia-70m-32k"),
    (r"pythia-160m", "residual", "EleutherAI/sae-pythia-160m-32k"),
    (r"(^|/)gpt2(-small)?$", "residual", "jbloom/GPT2-Small-SAEs-Reformatted"),
)


def published_saes(model: str, component: Component) -> str | None:
    """Return the repository of published autoencoders of a model, or None if none is known.

    Parameters
    ----------
    model
        Name or path of the model.
    component
        Component of the activations.

    Examples
    --------
    >>> published_saes("google/gemma-3-4b-it", "residual")
    'google/gemma-scope-2-4b-it'
    >>> published_saes("google/gemma-2-9b-it", "residual")
    'google/gemma-scope-9b-it-res'
    """
    if match := _GEMMA_3.search(model):
        return f"google/gemma-scope-2-{match[1].lower()}-{match[2].lower()}"
    if match := _GEMMA_2.search(model):
        size, site = match[1].lower(), _SITES[component]
        # those of the pretrained models transfer well; only one was trained on an instruction-tuned model
        kind = "it" if (size, match[2] or "", site) == ("9b", "-it", "res") else "pt"
        return f"google/gemma-scope-{size}-{kind}-{site}" if size != "27b" or site == "res" else None
    names = (name for pattern, site, name in _OTHERS if site == component and re.search(pattern, model, re.I))
    return next(names, None)
