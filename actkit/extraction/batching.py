"""Batches through the model, halved where they do not fit into its memory."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock

import torch

from ..errors import OutOfMemoryError
from .buffers import Dtypes, WindowBuffer
from .capture import Capture
from .feeding import Batch
from .generation import continue_prompts
from .logs import logger
from .models.loading import LoadedModel
from .models.replicas import replicate
from .preparing import Prepared
from .prompts.encoding import Prompt
from .transfer import Transfer


class Batcher:
    """Puts batches through the model, and what it gives into windows.

    Parameters
    ----------
    prepared
        The run.
    model
        Its model.
    transfer
        Brings the values to the host.
    at_once
        How many threads call it.

    Attributes
    ----------
    most_tokens
        Positions of the largest batch that is tried, pads included; None until one did not fit.
    largest
        Positions of the largest batch that was computed, pads included.
    """

    def __init__(
        self, prepared: Prepared, model: LoadedModel, transfer: Transfer, *, at_once: int = 1
    ) -> None:
        self._prepared, self._model = prepared, model
        self._captures: SimpleQueue[Capture] = SimpleQueue()
        for own in (model, *(replicate(model) for _ in range(at_once - 1))):
            self._captures.put(Capture(own, prepared.architecture, prepared.rules, transfer))
        self._lock = Lock()
        self.most_tokens: int | None = None
        self.largest = 0

    def run(self, batch: Batch, buffer: WindowBuffer) -> None:
        """Compute a batch, whole or in parts.

        Raises
        ------
        OutOfMemoryError
            Where not even one prompt fits.
        """
        if not self._is_too_large(batch):
            refused = self._try(batch, buffer)
            if not refused:
                self.largest = max(self.largest, batch.padded_tokens)
                return
            # only here, where the failed pass and all that it held are gone
            self._free()
            if len(batch.prompts) == 1:
                raise OutOfMemoryError(
                    f"sample {batch.samples[0]}: a prompt of {batch.padded_tokens} tokens alone does not fit "
                    f"into memory; set max_tokens, dtype=bfloat16, quantization or device_map ({refused})"
                )
            with self._lock:
                self.most_tokens = min(self.most_tokens or batch.padded_tokens, batch.padded_tokens // 2)
            logger.warning(
                "a batch of %d tokens did not fit into memory; from now on %d at most",
                batch.padded_tokens,
                self.most_tokens,
            )
        for half in batch.halves():
            self.run(half, buffer)

    def learn(self, batch: Batch, dtypes: Dtypes) -> None:
        """Find out, by the shortest prompt of a batch, in what precision the blocks give their values."""
        with self._capture() as capture:
            capture.learn([min(batch.prompts, key=lambda prompt: len(prompt.ids))], dtypes)

    def _is_too_large(self, batch: Batch) -> bool:
        limit = self.most_tokens
        return limit is not None and len(batch.prompts) > 1 and batch.padded_tokens > limit

    def _try(self, batch: Batch, buffer: WindowBuffer) -> str:
        """Return what the allocator said where it refused; nothing where the batch was computed."""
        try:
            prompts = batch.prompts
            if self._prepared.config.generate is not None:
                prompts = self._continue(batch)
            with self._capture() as capture:
                # one pass over prompts and what was generated after them, if anything was
                capture.run(prompts, batch.rows, buffer)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            return " ".join(str(error).split())[:160] or type(error).__name__
        return ""

    def _continue(self, batch: Batch) -> list[Prompt]:
        config, plan = self._prepared.config, self._prepared.plan
        assert config.generate is not None
        return continue_prompts(
            self._model,
            batch.prompts,
            config.generate,
            samples=batch.samples,
            batch=int(plan.batches[batch.samples[0]]),
            pad_id=self._prepared.encoder.tokenizer.pad_token_id or 0,
        )

    @contextmanager
    def _capture(self) -> Iterator[Capture]:
        capture = self._captures.get()
        try:
            yield capture
        finally:
            self._captures.put(capture)

    def _free(self) -> None:
        with self._capture() as capture:
            capture.settle()
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # the allocator of the CPU raises nothing of its own
    return "can't allocate memory" in str(error)
