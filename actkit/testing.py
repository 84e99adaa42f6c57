"""Synthetic cubes, written by the real store: for our tests, and for those of users."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .config import Config
from .planning import Plan, make_plan
from .schema import SAVABLE, VARIABLES, TokenKind
from .store.layout import CUBE
from .store.writing import CubeWriter, create_cube


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
    """Write a cube of random numbers that obeys the cube format.

    Parameters
    ----------
    run
        Run folder to make; a new temporary one by default.
    n_layers, n_samples, n_tokens, hidden
        Its shape; prompts have between 2 and ``n_tokens`` tokens, the first one special.
    window
        Samples in a window.
    languages
        Taken in turn; each ``len(languages)`` samples share an ``image_id``, and genders alternate.
    windows
        Which windows to write; all by default.
    seed
        Of the random numbers.

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
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, n_tokens + 1, n_samples).astype(np.int32)
    lengths[-1] = n_tokens
    config = Config(model="synthetic", data="synthetic", out=str(run), window_samples=window)
    plan = make_plan(config, lengths, layers=n_layers, hidden=hidden)
    real = np.arange(n_tokens)[None, :] < lengths[:, None]
    kinds = np.where(real, TokenKind.TEXT, TokenKind.PAD).astype(np.int8)
    kinds[:, 0] = TokenKind.SPECIAL
    image = np.arange(n_samples) // len(languages)
    create_cube(
        run,
        plan,
        variables=(*SAVABLE, "nonfinite"),
        coords={
            "layer": np.arange(n_layers),
            "sample": np.arange(n_samples),
            "token": np.arange(n_tokens),
            "sample_id": _strings(f"image-{i:04d}" for i in image),
            "language": _strings(languages[i % len(languages)] for i in range(n_samples)),
            "text": _strings(f"text {i} نص" for i in range(n_samples)),
            "n_tokens": lengths,
            "truncated": np.zeros(n_samples, dtype=bool),
            "token_id": np.where(real, rng.integers(1, 100, real.shape), 0).astype(np.int32),
            "token_kind": kinds,
        },
        labels={
            "gender": _strings(("male", "female")[i % 2] for i in image),
            "image_id": _strings(f"image-{i:04d}" for i in image),
        },
        attrs={"model": "synthetic", "first_is_content": True},
    )
    values = _values(plan, real, kinds, rng)
    writer = CubeWriter(run / CUBE, plan)
    for index in range(plan.n_windows) if windows is None else windows:
        rows = plan.samples_of(index)
        part = {name: array.take(rows, axis=VARIABLES[name].sample_axis) for name, array in values.items()}
        writer.write(index, part)
    return run


def _values(
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


def _strings(values: object) -> np.ndarray:
    return np.array(list(values), dtype=object)  # type: ignore[call-overload]
