"""What a cube holds of a run, and what it says of itself."""

import importlib.metadata
import json
from collections.abc import Mapping

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

MOST_LISTED = 1000
CONTENT_RULE = "text and image tokens; not pads, special or template tokens"
_VERSIONS = ("actkit", "torch", "transformers", "tokenizers")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


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


def describe_run(
    config: Config,
    source: Source,
    scanned: Scan,
    checkpoint: Checkpoint,
    architecture: Architecture,
    encoder: Encoder,
    layers: Mapping[str, tuple[int, ...]],
    measure: Measure,
    plan: Plan,
) -> dict[str, str | int | float | bool]:
    """Return the attributes of the cube: all that is needed to repeat the run, and all that decides it."""
    asked = config.model_dump(
        mode="json", exclude_defaults=True, exclude={"model", "data", "out", "layers", "revision"}
    )
    # the others are in the run folder; attributes are read whenever a cube is opened
    skipped = json.dumps(scanned.skipped[:MOST_LISTED], ensure_ascii=False)
    return {
        "options": json.dumps(asked, ensure_ascii=False, sort_keys=True),
        "model": checkpoint.name,
        "model_revision": checkpoint.revision,
        "model_type": str(architecture.config.model_type),
        "model_layers": architecture.n_layers,
        "weights_dtype": weights_dtype(checkpoint, architecture, config),
        "device": pick_device(config.device).type,
        "data": source.name,
        "data_sha256": scanned.digest,
        "layers": grammar.describe_all(layers),
        "storage": config.storage,
        "tokens_kept": config.tokens,
        "content_rule": CONTENT_RULE + ("" if measure.first_is_content else "; not position 0"),
        # a mean is made of content alone
        "first_is_content": measure.first_is_content or config.tokens == "mean",
        "truncated_samples": int(measure.truncated.sum()),
        "window_samples": plan.window,
        **encoder.description,
        **({"images_sha256": measure.images_digest} if config.image_column else {}),
        **({"skipped_rows": len(scanned.skipped)} if config.on_bad_row == "skip" else {}),
        **({"skipped": skipped} if scanned.skipped else {}),
        **{f"{name}_version": importlib.metadata.version(name) for name in _VERSIONS},
    }
