"""Computation of windows in this process: the model is loaded when it is first needed."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from ...layer_spec import describe_all
from ...store.writer import CubeWriter
from ..capture.hooks import call
from ..models.hook_points import check_sum_rule
from ..models.loader import LoadedModel, load_model
from ..monitoring.progress import Meter
from ..monitoring.run_log import logger
from ..preflight.preparation import RunPlan
from .data_loader import Rows, batches
from .moment_accumulator import MomentAccumulator
from .pipeline import compute


class LocalEngine:
    """Computes windows in this process.

    Parameters
    ----------
    prepared
        The run.
    """

    def __init__(self, prepared: RunPlan) -> None:
        self._prepared = prepared

    @cached_property
    def model(self) -> LoadedModel:
        """The model."""
        prepared, checkpoint = self._prepared, self._prepared.spec.checkpoint
        model = load_model(checkpoint, prepared.spec.architecture, prepared.config)
        checkpoint.check_unchanged()  # a run may have queued for its device for hours
        logger.info("loaded %s as %s on %s", checkpoint.name, model.dtype, model.device)
        logger.info("layers %s, %d windows", describe_all(prepared.layers), prepared.plan.n_windows)
        return model

    def start(self) -> None:
        """Load the model, unless it is loaded."""
        _ = self.model

    def check_model(
        self, prepared: RunPlan | None = None, rows: Rows | None = None
    ) -> dict[str, str | float]:
        """Load the model, check the sum rule on the first batch, and return the result as attributes.

        Parameters
        ----------
        prepared, rows
            The run with the lengths of the first window, and its rows; by default, the whole run.
        """
        prepared = prepared or self._prepared
        model = self.model
        if not {"attention", "mlp"} & prepared.layers.keys():
            return {}
        prompts = next(batches(prepared, [0], rows)).prompts
        with torch.inference_mode():
            errors = check_sum_rule(model.hook_points, lambda: call(model, prompts))
        finite = [error for error in errors if not math.isnan(error)]
        if len(finite) < len(errors):
            checked = f"checked in {len(finite)} of {len(errors)} blocks"
            result = f"{checked}; the first outputs of the others are not finite"
            logger.warning("sum rule: %s", result)
            return {"sum_rule": result}
        logger.info("largest relative error of the sum rule: %.1e", max(finite))
        return {
            "sum_rule": model.hook_points.exception or "holds",
            "sum_rule_error": float(f"{max(finite):.1e}"),
        }

    def compute(
        self,
        writer: CubeWriter,
        todo: Sequence[int],
        meter: Meter,
        accumulator: MomentAccumulator | None = None,
    ) -> None:
        """Compute and commit windows, as :func:`~actkit.extraction.loop.pipeline.compute` does."""
        compute(self._prepared, self.model, writer, todo, meter, accumulator)

    def device_bytes(self) -> Mapping[str, int]:
        """Return the memory of the accelerator; nothing on the CPU, or before the model is loaded."""
        if "model" not in vars(self) or self.model.device.type != "cuda":
            return {}
        device = self.model.device
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "total": torch.cuda.get_device_properties(device).total_memory,
        }


def compression_threads() -> int:
    """Return the number of threads that compress."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)
