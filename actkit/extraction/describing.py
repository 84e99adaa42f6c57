"""What a cube holds of a run, and what it says of itself."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass

from safetensors import safe_open

from .. import layers as grammar
from ..config import Config
from ..planning import Plan
from ..scanning import Scan
from ..schema import OF_RESIDUAL, SAVABLE, VARIABLES, VISION
from ..sources import Source
from .measuring import Measure
from .models.checkpoints import Checkpoint
from .models.loading import Architecture, pick_device
from .prompts.encoding import Encoder
from .sharing import share_cores

MOST_LISTED = 1000
CONTENT_RULE = "text and image tokens; not pads, special, template or generated tokens"
# these are said elsewhere, or leave the cube as it is
_ASIDE = {"model", "data", "out", "layers", "revision", "wandb", "whiten"}
_VERSIONS = ("actkit", "torch", "transformers", "tokenizers")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Checked:
    """What a run is made of, once nothing is at fault with it.

    Parameters
    ----------
    source, scan
        Where the rows are, and which of them are taken.
    layers
        Component to the blocks at which it is kept, sorted.
    measure
        How long the prompts are.
    """

    config: Config
    source: Source
    scan: Scan
    checkpoint: Checkpoint
    architecture: Architecture
    encoder: Encoder
    layers: dict[str, tuple[int, ...]]
    measure: Measure


def window_variables(config: Config, layers: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the variables of a cube that are written by window, in the order of the schema."""
    left_out = {name for name in OF_RESIDUAL if "residual" not in layers}
    left_out |= {name for name in ("attention", "mlp") if name not in layers}
    unsaved = {name for name in SAVABLE if name not in config.save}
    left_out |= unsaved
    left_out |= {"position"} if config.tokens == "all" else set()
    left_out |= {"generated"} if config.generate is None else set()
    return tuple(
        variable.name
        for variable in VARIABLES.values()
        if variable.by_window
        and variable.name.rpartition("/")[2] not in (unsaved if variable.group else left_out)
        and (variable.group != VISION or VISION in layers)
    )


def weights_dtype(run: Checked) -> str:
    """Return the dtype in which the weights will be loaded, as transformers will decide it."""
    if run.config.dtype != "auto":
        return run.config.dtype
    declared = getattr(run.architecture.config, "dtype", None)
    if declared is not None:
        return str(declared).removeprefix("torch.")
    with safe_open(min(run.checkpoint.folder.glob("*.safetensors")), framework="np") as weights:
        found = (weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118
        return next((_DTYPES[dtype] for dtype in found if dtype in _DTYPES), "float32")


def describe_run(run: Checked, plan: Plan, batch_tokens: int) -> dict[str, str | int | float | bool]:
    """Return the attributes of the cube: all that is needed to repeat the run, and all that decides it.

    Parameters
    ----------
    run, plan
        What is asked for, and how it is cut.
    batch_tokens
        Most tokens of a batch, where its size is ``auto``.
    """
    config, measure = run.config, run.measure
    device = pick_device(config.device).type
    asked = config.model_dump(mode="json", exclude_defaults=True, exclude=_ASIDE)
    # the others are in the run folder; attributes are read whenever a cube is opened
    skipped = json.dumps(run.scan.skipped[:MOST_LISTED], ensure_ascii=False)
    return {
        "options": json.dumps(asked, ensure_ascii=False, sort_keys=True),
        "model": run.checkpoint.name,
        "model_revision": run.checkpoint.revision,
        "model_type": str(run.architecture.config.model_type),
        "model_layers": run.architecture.n_layers,
        "weights_dtype": weights_dtype(run),
        "device": device,
        # other numbers of threads give other last bits
        **({"threads": share_cores(config).threads} if device == "cpu" else {}),
        "data": run.source.name,
        "data_sha256": run.scan.digest,
        "layers": grammar.describe_all(run.layers),
        "storage": config.storage,
        "tokens_kept": config.tokens,
        "content_rule": CONTENT_RULE + ("" if measure.first_is_content else "; not position 0"),
        # a mean is made of content alone
        "first_is_content": measure.first_is_content or config.tokens == "mean",
        "truncated_samples": int(measure.truncated.sum()),
        "window_samples": plan.window,
        **({"batch_tokens": batch_tokens} if config.batch_size == "auto" else {}),
        **run.encoder.description,
        **({"images_sha256": measure.images_digest} if config.image_column else {}),
        **({"skipped_rows": len(run.scan.skipped)} if config.on_bad_row == "skip" else {}),
        **({"skipped": skipped} if run.scan.skipped else {}),
        **{f"{name}_version": importlib.metadata.version(name) for name in _VERSIONS},
    }
