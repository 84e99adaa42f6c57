"""Specification of a checked run, and the variables and attributes of its cube."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass

from ... import layer_spec as grammar
from ...batch_plan import Plan
from ...config import Config
from ...data_scan import Scan
from ...schema import (
    GIVEN_IDS,
    OF_FEATURES,
    OF_RESIDUAL,
    ROW_IDS,
    SAVABLE,
    SPARSABLE,
    VARIABLES,
    VISION,
    WIDTH,
    sparse_names,
)
from ...sources import Source
from ..models.architecture import Architecture
from ..models.checkpoint import Checkpoint
from ..models.devices import device_description, pick_device, share_cores
from ..models.load_options import is_quantized, weights_dtype
from ..models.quantization import METHODS, Quantization
from ..prompts.encoder import Encoder
from .prompt_lengths import Measure

MOST_LISTED = 1000
CONTENT_RULE = "text and image tokens; not pads, special, template or generated tokens"
# options that are recorded elsewhere, or do not affect the cube
_NOT_RECORDED = {"model", "adapter", "data", "out", "layers", "revision", "wandb", "whiten"}
_VERSIONS = ("actkit", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class RunSpec:
    """Specification of a run without faults: options, data and model.

    Parameters
    ----------
    source, scan
        Source of the rows, and those that are taken.
    layers
        Blocks at which each component is kept, sorted.
    measure
        Lengths of the prompts.
    """

    config: Config
    source: Source
    scan: Scan
    checkpoint: Checkpoint
    architecture: Architecture
    encoder: Encoder
    layers: dict[str, tuple[int, ...]]
    measure: Measure

    @property
    def weights_dtype(self) -> str:
        """Dtype of the loaded weights, or of computations with quantized weights."""
        return weights_dtype(self.checkpoint, self.architecture.full, self.config)

    @property
    def quantized(self) -> bool:
        """Whether the model computes with quantized weights."""
        return is_quantized(self.architecture.full, self.config)


def window_variables(config: Config, layers: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the variables of a cube that are written by window, in schema order."""
    left_out = {name for name in OF_RESIDUAL if "residual" not in layers}
    left_out |= {name for name in ("attention", "mlp") if name not in layers}
    unsaved = {name for name in SAVABLE if name not in config.save}
    left_out |= unsaved
    sparse = {name: set(sparse_names(name)) for name in SPARSABLE}
    without = {*SPARSABLE} if config.sparse is None else {*SPARSABLE} & left_out
    left_out |= {part for name in without for part in sparse[name]} | {*OF_FEATURES}
    left_out |= {*SPARSABLE} if config.sparse is not None else set()
    left_out |= {"position"} if config.keep_tokens == "all" else set()
    left_out |= {"generated"} if config.generate is None else set()
    return tuple(
        variable.name
        for variable in VARIABLES.values()
        if variable.by_window
        and variable.name.rpartition("/")[2] not in (unsaved if variable.group else left_out)
        and (variable.group != VISION or VISION in layers)
    )


def machine_settings(config: Config) -> dict[str, str]:
    """Return the attributes of a cube that depend on the machine and its packages."""
    device = pick_device(config.device).type
    return {"device": device, "device_name": device_description(config), **_versions()}


def _versions() -> dict[str, str]:
    return {f"{name}_version": importlib.metadata.version(name) for name in _VERSIONS}


def describe_run(run: RunSpec, plan: Plan, batch_tokens: int) -> dict[str, str | int | float | bool]:
    """Return the attributes of the cube, which are needed to repeat the run or determine its result.

    Parameters
    ----------
    run, plan
        Specification of the run, and its windows and batches.
    batch_tokens
        Maximum number of tokens of a batch if ``batch_size`` is ``auto``.
    """
    config, measure = run.config, run.measure
    device = pick_device(config.device).type
    recorded = config.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_RECORDED)
    # all of them are in the run folder; attributes are read whenever a cube is opened
    skipped = json.dumps(run.scan.skipped[:MOST_LISTED], ensure_ascii=False)
    return {
        "options": json.dumps(recorded, ensure_ascii=False, sort_keys=True),
        "model": run.checkpoint.name,
        "model_revision": run.checkpoint.revision,
        "model_type": str(run.architecture.config.model_type),
        **(
            {"adapter": str(adapter.folder), "adapter_sha256": adapter.digest}
            if (adapter := run.checkpoint.adapter)
            else {}
        ),
        "model_layers": run.architecture.n_layers,
        "weights_dtype": run.weights_dtype,
        **_quantization(run),
        "device": device,
        "device_name": device_description(config),
        # the number of threads affects the last bits
        **({"threads": share_cores(config, quantized=run.quantized).threads} if device == "cpu" else {}),
        "data": run.source.name,
        "data_sha256": run.scan.digest,
        "ids": ROW_IDS if run.source.numbered else GIVEN_IDS,
        "layers": grammar.describe_all(run.layers),
        "storage": config.storage,
        # the lengths of dimensions do not tell it
        **({WIDTH: run.architecture.hidden} if config.sparse is not None else {}),
        "tokens_kept": config.keep_tokens,
        "content_rule": CONTENT_RULE + ("" if measure.first_is_content else "; not position 0"),
        # a mean covers only content tokens
        "first_is_content": measure.first_is_content or config.keep_tokens == "mean",
        "truncated_samples": int(measure.truncated.sum()),
        "window_samples": plan.window,
        **({"batch_tokens": batch_tokens} if config.batch_size == "auto" else {}),
        **run.encoder.description,
        **({"images_sha256": measure.images_digest} if config.image_column else {}),
        **({"skipped_rows": len(run.scan.skipped)} if config.on_bad_row == "skip" else {}),
        **({"skipped": skipped} if run.scan.skipped else {}),
        **_versions(),
    }


def _quantization(run: RunSpec) -> dict[str, str]:
    """Return the quantization of the weights, and the versions of the packages that compute with them."""
    if run.checkpoint.gguf is not None:
        return {"weights_quantization": run.checkpoint.gguf.description}
    option, quantization = run.config.quantization, run.architecture.quantization
    if option is not None:
        quantization = Quantization(f"bitsandbytes_{option}", {})
    if quantization is None:
        return {}
    # accelerate places weights without changing them
    packages = [name for name in METHODS[quantization.method].packages if name != "accelerate"]
    distributions = importlib.metadata.packages_distributions() if packages else {}
    versions = {
        f"{name}_version": importlib.metadata.version(distributions.get(name, [name])[0]) for name in packages
    }
    return {"weights_quantization": str(quantization), **versions}
