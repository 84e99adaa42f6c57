"""Quality of sparse autoencoders on tokens that they were not trained on, and what it is worth."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError, NonfiniteError
from ..exporters.cube_blocks import where_labels
from ..exporters.torch_dataset import LayerTokens
from ..extraction.models.devices import check_device, pick_device
from ..regular_files import MB
from ..stats import selection
from ..stats.finiteness import finite_cube
from ..stats.holdout import SHARE, held_out
from ..stats.token_masks import SELECTED
from ..stats.token_selection import select_tokens
from ..store.folders import Folder
from ..store.reader import read_cube
from ..store.result_files import MOST_BYTES
from .cube_checks import check_saes
from .language_loss import LanguageLoss, load_language_loss
from .largest_features import on_device, weights_digest
from .quality_baselines import Baselines
from .quality_result import QUALITY, quality_dataset, write_quality
from .quality_sums import QualitySums
from .sae import Sae
from .sae_loader import load_saes
from .sae_set import SaeSet
from .seed_agreement import seed_agreement

_BATCH_BYTES = 64 * 10**6  # of features
_MOST_TOKENS = 4096

__all__ = ["QUALITY", "sae_quality"]


def sae_quality(
    run: Cube,
    saes: SaeSet | str | os.PathLike[str],
    *,
    other: SaeSet | str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    tokens: selection.TokenSelection = "content",
    where: Mapping[str, Any] | None = None,
    cluster: str | None = selection.AUTO,
    model_samples: int = 200,
    device: str = "auto",
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Measure autoencoders on held-out samples, beside baselines with as many active coefficients.

    Parameters
    ----------
    run
        Run folder, which is read fastest, or cube.
    saes
        Autoencoders of one component, or their folder.
    other
        Autoencoders of the same layers that were trained with another seed, or their folder: how many
        features are found again.
    model
        Name, folder or GGUF file of the model that the cube was extracted with, to measure how much worse it
        predicts the next token if the reconstruction takes the place of the component's output.
    tokens
        Tokens to use, as for :func:`actkit.layer_norms`.
    where
        Required value of each label given, or of ``language``.
    cluster
        The label that dependent samples share, if training recorded no held-out samples; detected by default.
        A tenth of its values is then held out from the fit of the baselines.
    model_samples
        Maximum number of held-out samples that the model runs on, drawn at random.
    device
        ``auto``, ``cpu``, ``mps`` or ``cuda``.
    seed
        Seed of the draw and of the random features.
    out
        Folder of the autoencoders, into which the result is written, so that reports show it; it must exist.

    Returns
    -------
    xarray.Dataset
        Dims ``(layer)``: ``fvu``, the fraction of variance unexplained; ``explained_variance``; ``l0``; the
        FVU of baselines with the same number of active coefficients: ``fvu_pca`` (the first components),
        ``fvu_pca_top`` (the largest coefficients of the PCA) and ``fvu_random`` (features that were not
        trained); ``n_features``; ``n_never_active`` on the held-out tokens; ``n_dead`` at the end of
        training; ``tokens_per_feature``; ``share_of_extreme_norms`` (above 10 times the median). Dims
        ``(layer, feature)``: ``frequency`` (share of tokens), ``mean`` (where active) and ``max``. With
        ``other``: ``found_again`` and ``found_again_random``, the shares of active features that have a
        counterpart there, and among random directions. With ``model``, in nats per token: ``ce``,
        ``ce_sae``, ``ce_zero``, ``ce_mean``; ``ce_recovered`` and ``ce_recovered_from_mean``, of the loss
        that zero or mean ablation adds. What is unknown is NaN.

    Raises
    ------
    InputError
        If the autoencoders do not fit the cube, the loss of the model cannot be measured, or `out` is not a
        folder.
    ModelError
        If the model is not that of the cube.
    NonfiniteError
        If an activation is NaN or Inf.

    Warns
    -----
    UserWarning
        If the result is too large to be written.

    Notes
    -----
    The baselines are fitted to the samples that are not held out. Reconstructions and ablations take the
    place of the output at the selected tokens only, and the loss is that of the tokens which follow them.
    """
    if faults := _out_faults(out):
        raise InputError(faults)
    saes, other = _loaded(saes), _loaded(other) if other is not None else None
    cube = _open(run, tokens)
    _check(cube, saes, other, device)
    selection.check_counts(model_samples=model_samples)
    chosen = where_labels(cube, where)
    is_held, holdout = _held_out(cube, saes, cluster)
    evaluated, fitted = chosen[is_held[chosen]], chosen[~is_held[chosen]]
    if not len(evaluated) or not len(fitted):
        part = "held-out" if not len(evaluated) else "other"
        raise InputError([Fault("where", f"selects no {part} samples", "select more samples")])
    _check_tokens(cube, evaluated, fitted)
    target = pick_device(device)
    loss = None
    if model is not None:
        drawn = np.random.default_rng(seed).permutation(evaluated)[:model_samples]
        loss = load_language_loss(cube, os.fspath(model), rows=np.sort(drawn), tokens=tokens, device=device)
        loss.check(cube, saes.component, saes.layers)
    measured: dict[int, dict[str, Any]] = {}
    digests: dict[str, str] = {}
    intact = float("nan") if loss is None else loss.mean()
    for layer in saes.layers:
        sae = saes[layer]
        digests[str(layer)] = weights_digest(sae)
        sae = on_device(sae, target)
        sums, measures = _measure(cube, sae, evaluated, fitted, seed)
        if loss is not None:
            measures |= _losses(loss, sae, sums.mean.float(), intact)
        if other is not None and layer in other:
            measures |= seed_agreement(sae, on_device(other[layer], target), sums.frequency > 0)
        measured[layer] = measures
    settings = {
        **selection.settings(cube.isel(sample=evaluated), "sae_quality", component=saes.component),
        "tokens": selection.counted(cube, "content"),
        **holdout,
        "saes": str(saes.path),
        "other": "" if other is None else str(other.path),
        "weights": json.dumps(digests),
        "n_tokens": next(iter(measured.values()))["n_tokens"],
        "n_predictions": 0 if loss is None else loss.n_predictions,
        "seed": seed,
    }
    result = quality_dataset(measured, settings)
    if out is not None and not write_quality(Path(out), result):
        limit = f"it is larger than {MOST_BYTES // MB} MB"
        warnings.warn(f"the quality of {len(saes)} layers is not written: {limit}", stacklevel=2)
    return result


def _out_faults(out: str | os.PathLike[str] | None) -> list[Fault]:
    """Return the reason why the result could not be written, before anything is computed."""
    if out is None:
        return []
    try:
        Folder(Path(out), follow=False).close()
    except (OSError, ValueError) as error:
        what = f"{os.fspath(out)!r} is not a folder: {getattr(error, 'strerror', None) or error}"
        return [Fault("out", what, "give the folder of the autoencoders itself, not a link to it")]
    return []


def _loaded(saes: SaeSet | str | os.PathLike[str]) -> SaeSet:
    return saes if isinstance(saes, SaeSet) else load_saes(os.fspath(saes))


def _open(run: Cube, tokens: selection.TokenSelection) -> xr.Dataset:
    """Return the samples with finite values, and the coordinate of the selected tokens."""
    is_path = not isinstance(run, xr.Dataset)
    # without dask, whose graph is larger than a batch is worth
    cube = finite_cube(as_cube(read_cube(os.fspath(run), chunked=False) if is_path else run))
    if isinstance(tokens, str) and tokens == "content":
        return cube
    selected = select_tokens(cube.drop_vars(cube.data_vars), tokens)
    return cube.assign_coords({SELECTED: selected[SELECTED]}).assign_attrs(selected.attrs)


def _check(cube: xr.Dataset, saes: SaeSet, other: SaeSet | None, device: str) -> None:
    if faults := check_device(device):
        raise InputError(faults)
    check_saes(cube, saes)
    if other is not None:
        if faults := _other_faults(saes, other):
            raise InputError(faults)
        check_saes(cube, other)
        _check_different(saes, other)


def _other_faults(saes: SaeSet, other: SaeSet) -> list[Fault]:
    """Return reasons why two sets have no layer to compare."""
    if other.component != saes.component:
        what = f"has autoencoders of {other.component}, not of {saes.component}"
        return [Fault("other", what, "train another seed on the same component")]
    if not set(saes.layers) & set(other.layers):
        what = f"has layers {other.layers}, but the first has {saes.layers}"
        return [Fault("other", what, "train another seed on the same layers")]
    return []


def _check_different(saes: SaeSet, other: SaeSet) -> None:
    shared = [layer for layer in saes.layers if layer in other]
    same = [layer for layer in shared if weights_digest(saes[layer]) == weights_digest(other[layer])]
    if same:
        what = f"has the same weights as the first at layers {same}"
        raise InputError([Fault("other", what, "give autoencoders that were trained with another seed")])


def _held_out(cube: xr.Dataset, saes: SaeSet, cluster: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the samples to evaluate: those that training held out, or else those of a tenth of clusters."""
    metadata = saes[saes.layers[0]].metadata
    same = metadata.get("cube_sha256") == cube.attrs.get("metadata_sha256")
    if same and "holdout_share" in metadata:
        name = str(metadata["holdout_cluster"]) or None
        share, seed, origin = float(metadata["holdout_share"]), int(metadata["holdout_seed"]), "training"
    else:
        name, share, seed, origin = selection.cluster_choice(cube, cluster).name, SHARE, 0, "evaluation"
    is_held = held_out(cube, cluster=name, share=share, seed=seed)
    return is_held, {
        "cluster": name or "",
        "holdout_share": share,
        "holdout_seed": seed,
        "holdout_origin": origin,
    }


def _check_tokens(cube: xr.Dataset, evaluated: np.ndarray, fitted: np.ndarray) -> None:
    counts = selection.token_mask(cube).values.sum(axis=1)
    parts = (("held-out", evaluated), ("other", fitted))
    if faults := [
        Fault("tokens", f"selects no token of the {len(rows):,} {part} samples", "select more tokens")
        for part, rows in parts
        if not counts[rows].any()
    ]:
        raise InputError(faults)


@torch.inference_mode()
def _measure(
    cube: xr.Dataset, sae: Sae, evaluated: np.ndarray, fitted: np.ndarray, seed: int
) -> tuple[QualitySums, dict[str, Any]]:
    device = sae.w_dec.device
    baselines = Baselines(_batches(cube, sae, fitted), sae, seed)
    sums = QualitySums(sae.hidden, sae.n_features, device)
    for batch in _batches(cube, sae, evaluated):
        x = batch.to(device)
        features = sae.encode(x)
        sums.add(x, features, sae.decode(features))
        baselines.add(x, int((features != 0).sum()))
    training = sae.metadata.get("training_tokens")
    measures = {
        "fvu": sums.fvu,
        "explained_variance": sums.explained_variance,
        "l0": sums.l0,
        **baselines.fvu(sums.variance, sums.l0),
        "n_features": sae.n_features,
        "n_never_active": int((sums.frequency == 0).sum()),
        "n_dead": sae.metadata.get("n_dead", np.nan),
        "tokens_per_feature": np.nan if training is None else training / sae.n_features,
        "share_of_extreme_norms": sums.share_of_extreme_norms,
        "n_tokens": sums.n_tokens,
        "frequency": sums.frequency.numpy(),
        "mean": sums.feature_mean.numpy(),
        "max": sums.feature_max.double().numpy(),
    }
    return sums, measures


def _batches(cube: xr.Dataset, sae: Sae, rows: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield the selected tokens of some samples, in the order of the cube."""
    size = min(max(_BATCH_BYTES // (4 * sae.n_features), 64), _MOST_TOKENS)
    tokens = LayerTokens(
        cube.isel(sample=rows), layer=sae.layer, component=sae.component, batch_size=size, shuffle=False
    )
    for batch in tokens:
        if not bool(torch.isfinite(batch).all()):
            raise NonfiniteError(f"activations of layer {sae.layer} are NaN or Inf; extract them again")
        yield batch


def _losses(loss: LanguageLoss, sae: Sae, mean: torch.Tensor, intact: float) -> dict[str, float]:
    """Return the loss of the model with the output of a site replaced, and how much of it is recovered."""

    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        return sae.decode(sae.encode(x.float().to(sae.w_dec.device)))

    site = (sae.component, sae.layer)
    with_sae = loss.mean(*site, reconstruct)
    zero = loss.mean(*site, torch.zeros_like)
    with_mean = loss.mean(*site, lambda x: mean.to(x.device).expand(x.shape))
    return {
        "ce": intact,
        "ce_sae": with_sae,
        "ce_zero": zero,
        "ce_mean": with_mean,
        "ce_recovered": _recovered(zero, with_sae, intact),
        "ce_recovered_from_mean": _recovered(with_mean, with_sae, intact),
    }


def _recovered(ablated: float, with_sae: float, intact: float) -> float:
    """Return the share of the loss added by an ablation that the reconstruction avoids, or NaN."""
    return (ablated - with_sae) / (ablated - intact) if ablated > intact else float("nan")
