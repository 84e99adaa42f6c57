"""Synthetic cubes written by the real store, and damage to them, for our tests and those of users."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .batch_plan import Plan, Shape, make_plan
from .config import Config
from .schema import GIVEN_IDS, SPARSABLE, VARIABLES, TokenKind, component_of, sparse_names
from .store.layout import CUBE
from .store.ragged import Ragged
from .store.writer import CubeWriter, create_cube

_ENTRIES = 3


@dataclass(frozen=True)
class Synthetic:
    """Everything that a cube of random numbers consists of.

    Parameters
    ----------
    plan
        Shape and windows of the cube.
    coords
        Coordinates for :func:`~actkit.store.writer.create_cube`.
    labels
        Values of the label columns, dims ``(sample,)``.
    rows
        Values of the coordinates that identify the samples, and of the labels.
    values
        Every variable written window by window, for all windows.
    model
        Name of the model.
    attrs
        Further attributes of the cube.
    """

    plan: Plan
    coords: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    model: str = "synthetic"
    attrs: dict[str, Any] = field(default_factory=dict)

    def create(self, run: Path) -> CubeWriter:
        """Create the cube without any window, in an existing folder."""
        create_cube(run, self.plan, **self.arguments)
        return CubeWriter(run / CUBE, self.plan)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`~actkit.store.writer.create_cube` except the run and the plan."""
        return {
            "variables": tuple(self.values),
            "coords": self.coords,
            "labels": dict.fromkeys(self.labels, "str"),
            "rows": [self.rows],
            "attrs": {
                "model": self.model,
                "first_is_content": True,
                "ids": GIVEN_IDS,
                "data_sha256": _digest({**self.coords, **self.rows, **self.values}),
                **self.attrs,
            },
        }

    def part(self, window: int) -> dict[str, np.ndarray | Ragged]:
        """Return the values of one window in the form of :meth:`~actkit.store.writer.CubeWriter.write`."""
        rows = self.plan.samples_of(window)
        part: dict[str, np.ndarray | Ragged] = {}
        for name, array in self.values.items():
            part[name] = values = array.take(rows, axis=VARIABLES[name].sample_axis)
            if VARIABLES[name].is_full:
                group = VARIABLES[name].group
                lengths = self.values[f"{group}/n_tokens" if group else "n_tokens"][rows.start : rows.stop]
                has = np.flatnonzero(
                    self.coords.get(f"has_{component_of(name)}", np.ones(len(values)))
                ).tolist()
                part[name] = Ragged.of(values, lengths, has if values.ndim == 4 else None)
        return part


def synthetic(
    *,
    n_layers: int = 3,
    n_samples: int = 8,
    n_tokens: int = 5,
    hidden: int = 16,
    window: int = 4,
    languages: Sequence[str] = ("english", "arabic"),
    everything: bool = False,
    model: str = "synthetic",
    seed: int = 0,
) -> Synthetic:
    """Draw a cube of random numbers that conforms to the cube format.

    Parameters
    ----------
    n_layers, n_samples, n_tokens, hidden
        Shape of the cube; prompts have between 2 and ``n_tokens`` tokens, the first one special.
    window
        Maximum number of samples in a window.
    languages
        Languages of the samples, in turn; each ``len(languages)`` successive samples share an ``image_id``,
        and genders alternate.
    everything
        Whether to include every variable that a cube may have, with a vision tower of two blocks, and with
        sparse variables of three entries, although a cube holds either vectors or these.
    model
        Name of the model.
    seed
        Seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, n_tokens + 1, n_samples).astype(np.int32)
    lengths[-1] = n_tokens
    config = Config(model="synthetic", data="synthetic", out="synthetic", window_samples=window)
    vision = Shape(2, n_samples, 7, hidden // 2) if everything else None
    sizes: dict[str, Any] = {"layers": n_layers, "hidden": hidden, "k": _ENTRIES if everything else 0}
    plan = make_plan(config, lengths, **sizes, token_bytes=4 * n_layers * hidden, vision=vision)
    real = np.arange(n_tokens)[None, :] < lengths[:, None]
    kinds = np.where(real, TokenKind.TEXT, TokenKind.PAD).astype(np.int8)
    kinds[:, 0] = TokenKind.SPECIAL
    coords = {
        "layer": np.arange(n_layers),
        "has_residual": np.ones(n_layers, dtype=bool),
        "sample": np.arange(n_samples),
        "token": np.arange(n_tokens),
        "prompt_tokens": lengths,
        "truncated": np.zeros(n_samples, dtype=bool),
    }
    values = _activations(plan, real, kinds, rng) | _tokens(lengths, real, kinds, rng)
    if vision is not None:
        coords |= {"has_attention": coords["has_residual"], "has_mlp": np.arange(n_layers) > 0}
        coords |= {f"vision/{dim}": np.arange(vision[dim]) for dim in ("layer", "sample", "token")}
        values |= _optional_values(values["residual"], real) | _vision_values(vision, rng)
        values |= _largest_entries(values) | {"prompt_end": values["last"]}
        values |= _features(n_layers, real, hidden, _ENTRIES, np.random.default_rng(seed))
    labels = _labels(n_samples, len(languages))
    rows = {
        "sample_id": labels["image_id"],
        "language": _strings(languages[i % len(languages)] for i in range(n_samples)),
        "text": _strings(f"text {i} نص" for i in range(n_samples)),
        **labels,
    }
    return Synthetic(plan, coords=coords, labels=labels, rows=rows, values=values, model=model)


def write_cube(
    run: Path | None = None,
    *,
    n_layers: int = 3,
    n_samples: int = 8,
    n_tokens: int = 5,
    hidden: int = 16,
    window: int = 4,
    languages: Sequence[str] = ("english", "arabic"),
    windows: Sequence[int] | None = None,
    seed: int = 0,
) -> Path:
    """Write a cube of random numbers that conforms to the cube format.

    Parameters
    ----------
    run
        Run folder to create; a new temporary one by default.
    n_layers, n_samples, n_tokens, hidden, window, languages, seed
        As for :func:`synthetic`.
    windows
        Windows to write; all by default.

    Returns
    -------
    pathlib.Path
        The run folder.

    Examples
    --------
    >>> run = write_cube(n_samples=4)
    >>> (run / "cube.zarr").is_dir()
    True
    """
    run = Path(tempfile.mkdtemp(prefix="actkit-")) if run is None else run
    run.mkdir(parents=True, exist_ok=True)
    cube = synthetic(
        n_layers=n_layers,
        n_samples=n_samples,
        n_tokens=n_tokens,
        hidden=hidden,
        window=window,
        languages=languages,
        seed=seed,
    )
    writer = cube.create(run)
    for index in range(cube.plan.n_windows) if windows is None else windows:
        writer.write(index, cube.part(index))
    return run


def write_features(
    run: Path | None = None,
    *,
    n_layers: int = 3,
    n_samples: int = 8,
    n_tokens: int = 5,
    n_features: int = 64,
    k: int = 8,
    window: int = 4,
    languages: Sequence[str] = ("english", "arabic"),
    seed: int = 0,
) -> Path:
    """Write a sparse cube of random features, such as :func:`actkit.encode` writes.

    Parameters
    ----------
    run
        Run folder to create; a new temporary one by default.
    n_layers, n_samples, n_tokens, window, languages, seed
        As for :func:`synthetic`.
    n_features
        Number of features of each layer.
    k
        Largest number of active features of a token; each token has between 0 and k.

    Returns
    -------
    pathlib.Path
        The run folder.

    Examples
    --------
    >>> import actkit
    >>> actkit.open_cube(write_features(n_samples=4)).feature_value.shape
    (3, 4, 5, 8)
    """
    run = Path(tempfile.mkdtemp(prefix="actkit-")) if run is None else run
    run.mkdir(parents=True, exist_ok=True)
    cube = synthetic(
        n_layers=n_layers,
        n_samples=n_samples,
        n_tokens=n_tokens,
        hidden=1,
        window=window,
        languages=languages,
        seed=seed,
    )
    real = np.arange(n_tokens) < cube.plan.lengths[:, None]
    kept = {"nonfinite", "n_tokens", "token_id", "token_kind", "token_text"}
    values = {name: array for name, array in cube.values.items() if name in kept}
    values |= _features(n_layers, real, n_features, k, np.random.default_rng(seed))
    saes = {str(layer): {"architecture": "jumprelu", "n_features": n_features} for layer in range(n_layers)}
    features = replace(
        cube,
        plan=replace(cube.plan, shape=replace(cube.plan.shape, k=k)),
        coords={name: array for name, array in cube.coords.items() if name != "has_residual"},
        values=values,
        attrs={"features_of": "residual", "n_features": n_features, "saes": json.dumps(saes)},
    )
    writer = features.create(run)
    for index in range(features.plan.n_windows):
        writer.write(index, features.part(index))
    return run


def _features(
    n_layers: int, real: np.ndarray, n_features: int, k: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw active features of real tokens, largest first; dims of `real` ``(sample, token)``."""
    shape = (n_layers, *real.shape)
    n_active = np.where(real, rng.integers(0, k + 1, shape), 0)
    is_active = np.arange(k) < n_active[..., None]
    order = rng.random((*shape, n_features)).argsort(axis=-1)[..., :k]
    value = -np.sort(-rng.gamma(2, size=(*shape, k)), axis=-1).astype(np.float32)
    value = np.where(is_active, value, np.float32(0))
    return {
        "feature_index": np.where(is_active, order, 0).astype(np.uint16),
        "feature_value": value,
        "n_active": n_active.astype(np.uint16),
        "feature_sum": value.sum(axis=-1),
    }


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file, as a failing disk does; flipping it again restores the file.

    Parameters
    ----------
    path
        The file.
    bit
        Index of the bit, from the start of the file; negative from its end.
    """
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by relative path, to compare folders."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _activations(
    plan: Plan, real: np.ndarray, kinds: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    shape = plan.shape
    residual = rng.standard_normal((shape.layer, *real.shape, shape.hidden)).astype(np.float32)
    embedding = rng.standard_normal((*real.shape, shape.hidden)).astype(np.float32)
    residual[:, ~real] = np.nan
    embedding[~real] = np.nan
    content = kinds == TokenKind.TEXT
    summed = np.where(content[..., None], residual, 0).sum(axis=2, dtype=np.float64)
    return {
        "residual": residual,
        "embedding": embedding,
        "norm": np.linalg.norm(residual.astype(np.float64), axis=-1).astype(np.float32),
        "pooled": (summed / content.sum(axis=1)[:, None]).astype(np.float32),
        "last": residual[:, np.arange(shape.sample), plan.lengths - 1],
        "nonfinite": np.zeros((shape.layer, shape.sample), dtype=np.int32),
    }


def _tokens(
    lengths: np.ndarray, real: np.ndarray, kinds: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    return {
        "n_tokens": lengths,
        "token_id": np.where(real, rng.integers(1, 100, real.shape), 0).astype(np.int32),
        "token_kind": kinds,
        "token_text": np.where(real, _strings(f"ن{i}" for i in range(real.shape[1])), ""),
    }


def _labels(n_samples: int, n_languages: int) -> dict[str, np.ndarray]:
    image = np.arange(n_samples) // n_languages
    return {
        "gender": _strings(("male", "female")[i % 2] for i in image),
        "image_id": _strings(f"image-{i:04d}" for i in image),
    }


def _optional_values(residual: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
    """Return the variables that only some cubes hold."""
    mlp = residual / 3
    mlp[0] = np.nan
    return {
        "attention": residual / 2,
        "mlp": mlp,
        "position": np.where(real, np.arange(real.shape[1]), -1).astype(np.int32),
        "generated": _strings(f"جواب {i}" for i in range(len(real))),
    }


def _largest_entries(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the largest entries of all vectors; NaN vectors have the index 0."""
    entries: dict[str, np.ndarray] = {}
    for name in SPARSABLE:
        index = np.argsort(-np.abs(values[name]), axis=-1, kind="stable")[..., :_ENTRIES].astype(np.uint16)
        value = np.take_along_axis(values[name], index, axis=-1)
        entries |= zip(
            sparse_names(name), (np.where(np.isnan(value), 0, index).astype(np.uint16), value), strict=True
        )
    return entries


def _vision_values(vision: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sizes = (vision.layer, vision.sample, vision.token, vision.hidden)
    patches = rng.standard_normal(sizes).astype(np.float32)
    return {
        "vision/residual": patches,
        "vision/norm": np.linalg.norm(patches.astype(np.float64), axis=-1).astype(np.float32),
        "vision/pooled": patches.mean(axis=2, dtype=np.float64).astype(np.float32),
        "vision/nonfinite": np.zeros((vision.layer, vision.sample), dtype=np.int32),
        "vision/n_tokens": np.full(vision.sample, vision.token, dtype=np.int32),
    }


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a digest of all values, so that cubes with different values have different seals."""
    total = hashlib.sha256()
    for array in arrays.values():
        strings = array.dtype == object
        total.update(repr(array.tolist()).encode() if strings else np.ascontiguousarray(array).data)
    return total.hexdigest()


def _strings(values: object) -> np.ndarray:
    return np.array(list(values), dtype=object)  # type: ignore[call-overload]
