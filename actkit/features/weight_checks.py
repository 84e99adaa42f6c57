"""Checks of the weights of an autoencoder."""

import torch

from .sae import Sae

_THRESHOLDS = ("batchtopk", "jumprelu", "gated")


def weight_problems(sae: Sae) -> list[str]:
    """Return what is wrong with the weights of an autoencoder, empty if nothing is.

    Parameters
    ----------
    sae
        The autoencoder.

    Returns
    -------
    list of str
        Shapes that disagree, values that are NaN or infinite, a missing or negative threshold, and a missing
        or impossible ``k``.
    """
    hidden, n_features = sae.w_enc.shape if sae.w_enc.ndim == 2 else (0, 0)
    shapes = {
        "w_enc": (hidden, n_features),
        "b_enc": (n_features,),
        "w_dec": (n_features, hidden),
        "b_dec": (hidden,),
        "threshold": (n_features,),
    }
    tensors = {name: getattr(sae, name) for name in shapes}
    problems = []
    if sae.architecture in _THRESHOLDS and sae.threshold is None:
        problems.append(f"the architecture `{sae.architecture}` needs a threshold")
    if sae.architecture == "topk" and not (sae.k is not None and 1 <= sae.k <= n_features):
        problems.append(f"k is {sae.k}, not between 1 and the {n_features:,} features")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shapes[name] or not tensor.numel():
            problems.append(f"{name} has shape {_size(tensor.shape)}, not {_size(shapes[name])}")
        elif not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            problems.append(f"{name} has {count:,} values that are NaN or infinite")
        elif name == "threshold" and bool((tensor < 0).any()):
            problems.append("threshold has negative values")
    return problems


def _size(shape: tuple[int, ...] | torch.Size) -> str:
    return " × ".join(map(str, shape)) or "()"
