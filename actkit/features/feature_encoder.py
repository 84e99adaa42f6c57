"""Encoding of the tokens of a cube: their features, as a sparse cube."""

import json
import numbers
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from ..canonical import Cube, as_cube, require
from ..errors import Fault, InputError, NonfiniteError
from ..extraction.models.devices import check_device, pick_device
from ..extraction.monitoring.label_counts import LabelCounts
from ..extraction.monitoring.progress import Bar, Meter, StatusFile
from ..extraction.monitoring.run_log import log_file, logger
from ..object_urls import is_url
from ..schema import FEATURE_INDEX, FEATURE_VALUE, VARIABLES, K, index_dtype
from ..stats.finiteness import finite_cube
from ..stats.selection import TokenSelection, label_names
from ..store.folders import Folder
from ..store.layout import CUBE, array_of, open_group
from ..store.reader import open_cube
from ..store.run_folder import check_folder, locked
from ..store.settings import check_unchanged
from ..store.writer import CubeWriter, create_cube, storage_errors
from .cube_checks import check_saes
from .largest_features import LargestFeatures, count_active, largest_features, on_device, weights_digest
from .sae import Sae
from .sae_loader import load_saes
from .sae_set import SaeSet
from .sparse_cube import EncodedTokens, SparseCube, origin

Values = Literal["float32", "float16"]
_KEPT_BYTES = 2**30  # weights that stay in memory between windows


def encode(
    run_or_cube: Cube,
    saes: SaeSet | str | Path,
    *,
    out: str | Path,
    top: int | None = None,
    tokens: TokenSelection = "content",
    dtype: Values = "float32",
    device: str = "auto",
    resume: bool = True,
) -> xr.Dataset:
    """Compute the features of the tokens of a cube, and store them as a sparse cube.

    Parameters
    ----------
    run_or_cube
        A run folder, or a cube from :func:`actkit.open_cube` or a part of it.
    saes
        Autoencoders of layers of the cube, from :func:`actkit.load_saes` or :func:`actkit.train_saes`, or
        their folder.
    out
        Run folder to create or continue.
    top
        Largest number of features to keep of a token. By default all active ones are kept: a pass over the
        tokens first counts them.
    tokens
        Tokens to encode, as for :func:`actkit.layer_norms`; the others have no features. Special tokens, for
        which autoencoders are not trained, can have thousands of active features.
    dtype
        Dtype of the values.
    device
        ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
    resume
        Whether to continue if `out` holds a part of the same features.

    Returns
    -------
    xarray.Dataset
        The sparse cube, as :func:`actkit.open_cube` returns it, with the samples, labels and tokens of the
        cube, and the layers of the autoencoders. For each of ``k`` entries of a token, largest first, it has
        ``feature_index`` and ``feature_value``; entries beyond the active features are 0. ``n_active`` and
        ``feature_sum`` count and sum all active features of a token; :func:`actkit.cut_share`
        compares them with those kept.

    Raises
    ------
    InputError
        Lists all faults of the cube, the autoencoders and the options; nothing was written.
    ChangedError
        If `out` holds a sparse cube of other samples, autoencoders or options, which are named.
    NonfiniteError
        If activations are NaN or Inf.
    StorageError
        If writing fails; a rerun continues at the first missing window.

    Notes
    -----
    A window of one layer is in memory at a time, besides the features of the window.
    """
    source = finite_cube(as_cube(run_or_cube))
    chosen = saes if isinstance(saes, SaeSet) else load_saes(saes)
    folder = Path(out)
    if faults := _option_faults(source, out, top, dtype, device, resume):
        raise InputError(faults, "cannot encode")
    top = None if top is None else int(top)  # of NumPy, which JSON files cannot hold
    check_saes(source, chosen)
    require(source, chosen.component, "n_tokens", "token_kind", "sample_id", "text")
    source = source.isel(token=slice(0, max(1, int(source.n_tokens.max()))))
    autoencoders = _Autoencoders(chosen, pick_device(device))
    encoded = EncodedTokens(source, chosen.component, chosen.layers, tokens)
    attrs = {
        **origin(encoded),
        **autoencoders.description,
        **({} if top is None else {"top": top}),
        "encoded_device": autoencoders.device.type,
        **{f"{name}_version": version(name) for name in ("actkit", "torch")},
    }
    with storage_errors("cannot make the run folder"):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as held, log_file(held):
        meter = Meter(source.sizes["sample"], [Bar(title="encode"), StatusFile(held)])
        state = "failed"
        try:
            meter.emit("loading")
            cube = _open_or_create(held, encoded, autoencoders, attrs, top, dtype)
            _complete(folder / CUBE, cube, autoencoders, meter)
            state = "done"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            logger.info(state)
            meter.emit(state)
    return open_cube(folder)


class _Autoencoders(Mapping[int, Sae]):
    """Autoencoders on a device; those of all layers are kept there if they are small."""

    def __init__(self, saes: SaeSet, device: torch.device) -> None:
        self.device = device
        self._saes = saes
        self._kept: dict[int, Sae] = {}
        described: dict[str, Any] = {}
        bounds: list[int | None] = []
        for layer in saes:
            sae = on_device(saes[layer], device)
            described[str(layer)] = {
                "architecture": sae.architecture,
                "n_features": sae.n_features,
                "sha256": weights_digest(sae),
            }
            bounds.append(sae.k if sae.architecture == "topk" else None)
            if 8 * sae.w_enc.numel() * len(saes) <= _KEPT_BYTES:
                self._kept[layer] = sae
        self.n_features = max(entry["n_features"] for entry in described.values())
        # largest number of active features, if the architecture limits it
        self.most_active = None if None in bounds else max(bound for bound in bounds if bound is not None)
        self.description = {"n_features": self.n_features, "saes": json.dumps(described)}

    def __getitem__(self, layer: int) -> Sae:
        return self._kept[layer] if layer in self._kept else on_device(self._saes[layer], self.device)

    def __iter__(self) -> Iterator[int]:
        return iter(self._saes)

    def __len__(self) -> int:
        return len(self._saes)


def _open_or_create(
    folder: Folder,
    tokens: EncodedTokens,
    saes: _Autoencoders,
    attrs: Mapping[str, Any],
    top: int | None,
    dtype: str,
) -> SparseCube:
    """Return the layout of the sparse cube in a folder, which is created unless it is there."""
    indices = index_dtype(saes.n_features)
    dtypes = {FEATURE_INDEX: indices, FEATURE_VALUE: dtype, "n_active": indices}
    path = folder.path / CUBE
    settings = {**attrs, "feature_dtype": dtype}
    if path.exists():
        check_unchanged(path, settings)
        return SparseCube(tokens, array_of(open_group(path), FEATURE_INDEX).shape[-1], dtypes)
    most = saes.most_active or saes.n_features
    if top is None and saes.most_active is None:
        most = _count(tokens, saes)
    cube = SparseCube(tokens, max(1, most if top is None else min(top, most)), dtypes)
    create_cube(folder, cube.plan, attrs=settings, **cube.arguments)
    return cube


def _count(tokens: EncodedTokens, saes: _Autoencoders) -> int:
    """Return the largest number of active features of a token."""
    most, n_samples = 0, len(tokens.lengths)
    step = SparseCube(tokens, 1, {}).plan.window
    for layer, sae in tqdm(saes.items(), desc="count", unit=" layers", disable=None):
        counts = [
            count_active(sae, _finite(tokens, layer, range(start, min(start + step, n_samples))))
            for start in range(0, n_samples, step)
        ]
        active = np.concatenate(counts)
        if len(active):
            usual, largest = np.quantile(active, 0.999), int(active.max())
            logger.info("layer %d: 99.9%% of tokens have up to %d features, one %d", layer, usual, largest)
            most = max(most, largest)
    return most


def _finite(tokens: EncodedTokens, layer: int, samples: range) -> np.ndarray:
    """Return the activations of a window, dims ``(token, hidden)``, after checking them."""
    values = tokens.activations(layer, samples)
    if not np.isfinite(values).all():
        where = f"{tokens.component}_{layer} has NaN or Inf values in samples"
        remedy = "select other samples, or extract it again in bfloat16 or float32"
        raise NonfiniteError(f"{where} {samples.start} to {samples.stop - 1}; {remedy}")
    return values


def _complete(path: Path, cube: SparseCube, saes: _Autoencoders, meter: Meter) -> None:
    """Compute and write the windows that are not committed yet."""
    plan, tokens = cube.plan, cube.tokens
    threads = min(8, os.cpu_count() or 1)
    with closing(CubeWriter(path, plan, threads=threads)) as writer:
        if restored := writer.restore(**cube.coordinates):
            logger.warning("rewrote damaged coordinates: %s", ", ".join(restored))
        todo = writer.recover()
        done = np.ones(plan.shape.sample, dtype=bool)
        for window in todo:
            done[plan.samples_of(window)] = False
        meter.begin(int(done.sum()), dict, LabelCounts(path, done))
        meter.emit()
        for window in todo:
            samples = plan.samples_of(window)
            features = [
                _encoded(sae, _finite(tokens, layer, samples), cube, layer) for layer, sae in saes.items()
            ]
            meter.bytes_written += writer.write(window, cube.window(samples, features))
            meter.committed += len(samples)
            meter.add(np.asarray(samples), int(tokens.lengths[samples.start : samples.stop].sum()))
            meter.emit()


def _encoded(sae: Sae, activations: np.ndarray, cube: SparseCube, layer: int) -> LargestFeatures:
    features = largest_features(
        sae, activations, cube.k, cube.dtypes[FEATURE_VALUE], cube.dtypes[FEATURE_INDEX]
    )
    if not np.isfinite(features.values).all():
        what = f"features of layer {layer} exceed 65,504, the largest float16"
        raise InputError([Fault("dtype", what, "encode into another folder with dtype=float32")])
    return features


def _option_faults(
    cube: xr.Dataset, out: str | Path, top: Any, dtype: str, device: str, resume: bool
) -> list[Fault]:
    """Find faults of the options, and of the folder."""
    source, path = str(cube.encoding.get("source", "")), Path(out) / CUBE
    if is_url(str(out)):
        faults = [Fault("out", "is a URL", "encode into a folder, then use actkit push")]
    elif path.exists() and not resume:
        faults = [Fault("out", f"{out} holds a cube", "name a new folder, or leave out resume=False")]
    else:
        faults = check_folder(Path(out))
    if source and path.resolve() == Path(source).resolve():
        faults.append(Fault("out", "is the folder of the encoded cube", "name another folder"))
    if top is not None and (not isinstance(top, numbers.Integral) or isinstance(top, bool) or top < 1):
        faults.append(Fault("top", f"is {top!r}", "give an integer of at least 1"))
    if dtype not in get_args(Values):
        faults.append(Fault("dtype", f"{dtype!r} is unknown", f"one of {', '.join(get_args(Values))}"))
    faults += check_device(device)
    taken = [name for name in label_names(cube) if name == K or name in VARIABLES]
    faults += [
        Fault("cube", f"its label `{name}` has the name of a variable of sparse cubes", "rename the label")
        for name in taken
    ]
    return faults
