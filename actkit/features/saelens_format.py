"""SAELens' format: the content of ``cfg.json`` and the tensors of ``sae_weights.safetensors``.

The formulas of the architectures are those of SAELens 6 (`sae_lens/saes`). Each becomes an affine encoder
with ReLU, a threshold or the ``k`` largest values, and an affine decoder.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, get_args

import torch

from .manifest import DIGEST
from .sae import Architecture, Sae
from .sae_site import Site, site_of

ARCHITECTURE = "actkit_architecture"  # the architecture in training, which the format calls `jumprelu`
# the release that `make test-saelens` reads our files with; files without a version count as older than 6.0
SAELENS_VERSION = "6.54.12"

# names of the tensors of each architecture, beside W_enc, W_dec and b_dec
_TENSORS: Mapping[str, tuple[str, ...]] = {
    "standard": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    # as saved during training; SAELens turns both into `jumprelu` for inference
    "batchtopk": ("b_enc", "topk_threshold"),
    "matryoshka_batchtopk": ("b_enc", "topk_threshold"),
}
_METADATA = (  # of files older than version 6, in which it is not separate
    *("model_name", "hook_name", "hf_hook_name", "prepend_bos", "context_size", "dataset_path"),
    *("neuronpedia_id", "sae_lens_version", "sae_lens_training_version"),
)
_FOLD = "fold the scale with SAELens (fold_activation_norm_scaling_factor), and save it again"


def saelens_cfg(sae: Sae, digest: str) -> dict[str, Any]:
    """Return the content of ``cfg.json``.

    An autoencoder with a threshold is written as ``jumprelu``, as SAELens does after training BatchTopK.

    Parameters
    ----------
    sae
        The autoencoder.
    digest
        SHA-256 of the file of weights, kept in the metadata so that a folder can be checked alone.
    """
    top = sae.architecture == "topk"
    return {
        "architecture": sae.architecture if sae.threshold is None else "jumprelu",
        "d_in": sae.hidden,
        "d_sae": sae.n_features,
        **({"k": sae.k, "rescale_acts_by_decoder_norm": False} if top else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            **sae.metadata,
            "sae_lens_version": SAELENS_VERSION,
            "actkit_version": version("actkit"),
            "layer": sae.layer,
            "component": sae.component,
            ARCHITECTURE: sae.architecture,
            DIGEST: digest,
        },
    }


def saelens_tensors(sae: Sae) -> dict[str, torch.Tensor]:
    """Return the tensors by the names that SAELens gives them, on the CPU in float32."""
    tensors = {"W_enc": sae.w_enc, "b_enc": sae.b_enc, "W_dec": sae.w_dec, "b_dec": sae.b_dec}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    return {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in tensors.items()}


def normalized_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``cfg.json`` of any version in the form of version 6.

    Parameters
    ----------
    cfg
        Content of the file; before version 6 the metadata were not separate, and ``topk`` was an activation
        function of the architecture ``standard``.
    """
    cfg = dict(cfg)
    if not isinstance(cfg.get("metadata"), Mapping):
        renamed = {"hook_name": cfg.get("hook_name", cfg.get("hook_point"))}
        cfg["metadata"] = {name: cfg[name] for name in _METADATA if name in cfg} | renamed
        options = cfg.get("activation_fn_kwargs")
        if cfg.get("activation_fn_str", cfg.get("activation_fn")) == "topk" and isinstance(options, Mapping):
            cfg |= {"architecture": "topk", "k": options.get("k")}
    cfg.setdefault("architecture", "standard")
    cfg.setdefault("apply_b_dec_to_input", True)
    normalize = cfg.get("normalize_activations") or "none"
    cfg["normalize_activations"] = "expected_average_only_in" if normalize is True else normalize
    reshaped = "hook_z" if "hook_z" in str(cfg["metadata"].get("hook_name")) else "none"
    cfg.setdefault("reshape_activations", reshaped)
    return cfg


def saelens_site(cfg: Mapping[str, Any]) -> Site | None:
    """Return the site of an autoencoder, or None if cubes do not hold its activations."""
    metadata = cfg["metadata"]
    names = (metadata.get("hook_name"), metadata.get("hf_hook_name"))
    return next((site for name in names if name is not None and (site := site_of(str(name)))), None)


def trained_architecture(cfg: Mapping[str, Any]) -> Architecture:
    """Return the architecture in training, as far as the file says it."""
    recorded = cfg["metadata"].get(ARCHITECTURE)
    name: Any = recorded if recorded in get_args(Architecture) else cfg["architecture"]
    return "batchtopk" if name == "matryoshka_batchtopk" else name


def saelens_problems(cfg: Mapping[str, Any], scale: float | None) -> list[tuple[str, str]]:
    """Return the settings that prevent an autoencoder from being read, each with a hint.

    Parameters
    ----------
    cfg
        Content of a ``cfg.json`` in the form of version 6.
    scale
        Factor of the activations, if a training run left it beside the file.
    """
    problems = []
    architecture, normalize = str(cfg["architecture"]), str(cfg["normalize_activations"])
    if "transcoder" in architecture:
        hint = "use an autoencoder, whose input and output are the same activations"
        problems.append((f"is a transcoder ({architecture})", hint))
    elif architecture not in _TENSORS:
        hint = f"supported are {', '.join(_TENSORS)}"
        problems.append((f"has the architecture {architecture!r}", hint))
    if normalize == "expected_average_only_in" and scale is None:
        what = f"scales the activations ({normalize}) by a factor that the folder does not contain"
        problems.append((what, _FOLD))
    elif normalize not in ("none", "expected_average_only_in"):
        hint = "use an autoencoder of the activations as they are"
        problems.append((f"normalizes each activation before it is encoded ({normalize})", hint))
    if cfg.get("reshape_activations", "none") != "none":
        hint = "use one of the output of the attention (hook_attn_out)"
        problems.append(("is of the heads of the attention (hook_z), which cubes do not hold", hint))
    elif saelens_site(cfg) is None:
        name = cfg["metadata"].get("hook_name") or cfg["metadata"].get("hf_hook_name")
        what = "names no hook point (hook_name)" if name is None else f"is of {name!r}"
        problems.append((what, "cubes hold outputs of blocks, attention and MLP"))
    return problems


def saelens_names(cfg: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the tensors by which the architecture is defined, and their names in the file."""
    names = {name: name for name in ("W_enc", "W_dec", "b_dec", *_TENSORS[str(cfg["architecture"])])}
    if "threshold" in names and "log_threshold" in stored:
        names["threshold"] = "log_threshold"
    return names


def sae_from_saelens(
    cfg: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], scale: float | None = None
) -> Sae:
    """Return the autoencoder of a ``cfg.json`` without problems.

    Parameters
    ----------
    cfg
        Content of the file in the form of version 6.
    tensors
        Tensors by the names of :func:`saelens_names`.
    scale
        Factor by which activations are multiplied before they are encoded; it is folded into the weights.
    """
    architecture, metadata = str(cfg["architecture"]), cfg["metadata"]
    site = saelens_site(cfg)
    if site is None:
        raise ValueError("the site is unknown")
    w_enc, w_dec, b_dec = tensors["W_enc"], tensors["W_dec"], tensors["b_dec"]
    threshold = tensors.get("threshold", tensors.get("topk_threshold"))
    if architecture == "gated":
        w_enc, b_enc, threshold = _ungated(w_enc, tensors["b_gate"], tensors["b_mag"], tensors["r_mag"])
    else:
        b_enc = tensors["b_enc"]
    rescaled = bool(cfg.get("rescale_acts_by_decoder_norm", False))
    if cfg["normalize_activations"] == "expected_average_only_in" and scale is not None:
        w_enc, w_dec, b_dec = w_enc * scale, w_dec / scale, b_dec / scale
        if rescaled and threshold is not None:
            threshold = threshold / scale
    if rescaled:
        norms = w_dec.norm(dim=-1)
        w_enc, b_enc, w_dec = w_enc * norms, b_enc * norms, w_dec / norms[:, None]
    if threshold is not None:
        # SAELens applies ReLU as well
        threshold = threshold.clamp(min=0).expand(w_dec.shape[0]).clone()
    return Sae(
        layer=site.layer,
        component=site.component,
        architecture=trained_architecture(cfg),
        w_enc=w_enc,
        b_enc=b_enc,
        w_dec=w_dec,
        b_dec=b_dec,
        threshold=threshold,
        k=cfg.get("k") if architecture == "topk" else None,
        subtract_b_dec=bool(cfg["apply_b_dec_to_input"]),
        metadata=dict(metadata),
    )


def _ungated(
    w_gate: torch.Tensor, b_gate: torch.Tensor, b_mag: torch.Tensor, r_mag: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weights, the bias and the threshold that are equivalent to a gate.

    With $s = e^{r}$, the gate $x W + b_g > 0$ is the condition $x W s + b_m > b_m - b_g s$ on the
    pre-activation of the magnitude (Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.2).
    """
    scale = r_mag.exp()
    return w_gate * scale, b_mag, b_mag - b_gate * scale
