"""Check everything that a run needs before a model is loaded, and say what it will take."""

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from .. import layers as grammar
from ..config import Config, check, read_yaml
from ..errors import Fault, InputError
from ..planning import Estimate, Plan, estimate, make_plan
from ..samples import Samples, read_samples
from ..store.layout import CUBE
from ..store.runs import check_folder
from .checkpoints import Checkpoint, find_checkpoint
from .model import Architecture, check_device, pick_device, read_architecture
from .tokens import Tokens, load_tokenizer, tokenize

CONTENT_RULE = "text and image tokens; not pads, special or template tokens"
_VERSIONS = ("actkit", "torch", "transformers", "tokenizers")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Prepared:
    """A run in which nothing is left to be checked.

    Parameters
    ----------
    layers
        Blocks to keep, sorted.
    variables
        Names of the data variables to store.
    attrs
        What the cube will say of itself; a run is continued only where this is the same.
    estimate
        What the run will take.
    free
        Bytes free on the disk of the run folder.
    """

    config: Config
    samples: Samples
    checkpoint: Checkpoint
    architecture: Architecture
    layers: tuple[int, ...]
    tokens: Tokens
    plan: Plan
    variables: tuple[str, ...]
    attrs: dict[str, str | int | float | bool]
    estimate: Estimate
    free: int

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.config.out)

    def coords(self) -> dict[str, np.ndarray]:
        """Return the coordinates that are known before the model runs."""
        return {
            "layer": np.array(self.layers, dtype=np.int64),
            "sample": np.arange(len(self.samples), dtype=np.int64),
            "token": np.arange(self.plan.shape.token, dtype=np.int64),
            "sample_id": self.samples.sample_id,
            "language": self.samples.language,
            "text": self.samples.text,
            "n_tokens": self.tokens.lengths,
            "truncated": self.tokens.truncated,
            "token_id": self.tokens.ids,
            "token_kind": self.tokens.kinds,
        }


def prepare(config: str | Path | Config | None, options: Mapping[str, Any]) -> Prepared:
    """Check a run, whole.

    Parameters
    ----------
    config
        A YAML file, or a config; None where ``options`` say everything.
    options
        Options that go over it, by the names of :class:`~actkit.config.Config`.

    Raises
    ------
    InputError
        With every fault of options, data, model and output.
    """
    given: dict[str, Any] = {}
    faults: list[Fault] = []
    if isinstance(config, Config):
        given = config.model_dump(exclude_unset=True)
    elif config is not None:
        given, faults = read_yaml(Path(config))
        if faults:  # without it, options would seem to be missing
            raise InputError(faults)
    checked, faults = check(
        {**given, **{name: value for name, value in options.items() if value is not None}}
    )
    if checked is None:
        raise InputError(faults)
    samples, more = read_samples(checked)
    faults += more + check_folder(Path(checked.out)) + check_device(checked.device)
    # nothing large is fetched or read before all else is known to be right
    checkpoint, more = find_checkpoint(checked.model, checked.revision, weights=False)
    faults += more
    architecture = tokens = None
    layers: tuple[int, ...] = ()
    if checkpoint is not None:
        architecture, more = read_architecture(checkpoint)
        faults += more
    if architecture is not None:
        layers, more = grammar.resolve(grammar.parse(checked.layers)[0], architecture.n_layers)
        faults += more
    if checkpoint is not None and architecture is not None:
        tokenizer, more = load_tokenizer(checkpoint)
        faults += more
        if tokenizer is not None and samples is not None:
            tokens, more = tokenize(
                tokenizer,
                samples.text.tolist(),
                max_tokens=checked.max_tokens,
                positions=architecture.positions,
                vocabulary=getattr(architecture.config, "vocab_size", None),
            )
            faults += more
    if checkpoint is not None and not faults:
        checkpoint, faults = find_checkpoint(checked.model, checkpoint.revision or checked.revision)
    if faults or checkpoint is None or architecture is None or samples is None or tokens is None:
        raise InputError(faults)
    return _planned(checked, samples, checkpoint, architecture, layers, tokens)


def _planned(
    config: Config,
    samples: Samples,
    checkpoint: Checkpoint,
    architecture: Architecture,
    layers: tuple[int, ...],
    tokens: Tokens,
) -> Prepared:
    plan = make_plan(config, tokens.lengths, layers=len(layers), hidden=architecture.hidden)
    variables = (*config.save, "nonfinite")
    dtype = weights_dtype(checkpoint, architecture, config)
    value_bytes = 2 if "16" in dtype or config.storage != "exact" else 4
    needs = estimate(plan, variables, value_bytes=value_bytes, weights_bytes=_weights_bytes(checkpoint))
    run = Path(config.out)
    nearest = next(folder for folder in (run, *run.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(nearest).free
    if needs.disk > free and not (run / CUBE).exists():
        what = f"needs about {needs.disk / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise InputError(
            [Fault(f"out {run}", what, "keep fewer layers, cut max_tokens, or limit the samples")]
        )
    attrs = _attrs(config, samples, checkpoint, architecture, layers, tokens, plan, dtype)
    return Prepared(
        config,
        samples,
        checkpoint,
        architecture,
        layers,
        tokens,
        plan,
        variables,
        attrs,
        needs,
        free,
    )


def weights_dtype(checkpoint: Checkpoint, architecture: Architecture, config: Config) -> str:
    """Return the dtype in which the weights will be loaded, as transformers will decide it."""
    if config.dtype != "auto":
        return config.dtype
    declared = getattr(architecture.config, "dtype", None)
    if declared is not None:
        return str(declared).removeprefix("torch.")
    with safe_open(min(checkpoint.folder.glob("*.safetensors")), framework="np") as weights:
        found = (weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118
        return next((_DTYPES[dtype] for dtype in found if dtype in _DTYPES), "float32")


def _weights_bytes(checkpoint: Checkpoint) -> int:
    return sum(path.stat().st_size for path in checkpoint.folder.glob("*.safetensors"))


def _attrs(
    config: Config,
    samples: Samples,
    checkpoint: Checkpoint,
    architecture: Architecture,
    layers: tuple[int, ...],
    tokens: Tokens,
    plan: Plan,
    dtype: str,
) -> dict[str, str | int | float | bool]:
    asked = config.model_dump(
        mode="json", exclude_defaults=True, exclude={"model", "data", "out", "layers", "revision"}
    )
    return {
        "model": checkpoint.name,
        "model_revision": checkpoint.revision,
        "model_type": str(architecture.config.model_type),
        "model_layers": architecture.n_layers,
        "weights_dtype": dtype,
        "device": pick_device(config.device).type,
        "data": Path(config.data).name,
        "data_sha256": samples.digest,
        "layers": grammar.describe(layers),
        "storage": config.storage,
        "content_rule": CONTENT_RULE + ("" if tokens.first_is_content else "; not position 0"),
        "first_is_content": tokens.first_is_content,
        "truncated_samples": int(tokens.truncated.sum()),
        "window_samples": plan.window,
        "options": json.dumps(asked, ensure_ascii=False, sort_keys=True),
        **{f"{name}_version": importlib.metadata.version(name) for name in _VERSIONS},
    }
