"""Runner of batches, which are halved if they do not fit into memory."""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from queue import SimpleQueue
from threading import Lock

import torch

from ...errors import OutOfMemoryError
from ..capture.batch_capture import Capture
from ..capture.device_copy import Transfer
from ..capture.generation import continue_prompts
from ..capture.window_buffer import Dtypes, WindowBuffer
from ..models.loader import LoadedModel
from ..monitoring.run_log import logger
from ..preflight.preparation import RunPlan
from ..prompts.encoder import Prompt
from .data_loader import Batch


class BatchRunner:
    """Runs batches through the model, and writes the outputs into windows.

    Parameters
    ----------
    prepared
        The run.
    model
        The model.
    transfer
        Copies the values to the host.
    n_threads
        Number of threads that call :meth:`run`.

    Attributes
    ----------
    most_tokens
        Maximum positions of a batch, padding included; None until a batch did not fit.
    largest
        Positions of the largest batch computed so far, padding included.
    """

    def __init__(
        self, prepared: RunPlan, model: LoadedModel, transfer: Transfer, *, n_threads: int = 1
    ) -> None:
        self._prepared, self._model = prepared, model
        self._captures: SimpleQueue[Capture] = SimpleQueue()
        for replica in (model, *(replicate(model) for _ in range(n_threads - 1))):
            self._captures.put(Capture(replica, prepared.spec.architecture, prepared.rules, transfer))
        self._lock = Lock()
        self.most_tokens: int | None = None
        self.largest = 0

    def run(self, batch: Batch, buffer: WindowBuffer) -> None:
        """Compute a batch, in parts if necessary.

        Raises
        ------
        OutOfMemoryError
            If not even one prompt fits.
        """
        if not self._is_too_large(batch):
            refusal = self._try(batch, buffer)
            if not refusal:
                self.largest = max(self.largest, batch.padded_tokens)
                return
            # only here, after the failed pass has released its memory
            self._free()
            if len(batch.prompts) == 1:
                raise OutOfMemoryError(
                    f"sample {batch.samples[0]}: a prompt of {batch.padded_tokens} tokens alone does not fit "
                    f"into memory; set max_tokens, dtype=bfloat16, quantization or device_map ({refusal})"
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

    def record_dtypes(self, batch: Batch, dtypes: Dtypes) -> None:
        """Record the dtypes that the blocks output for the shortest prompt of a batch."""
        with self._capture() as capture:
            capture.record_dtypes([min(batch.prompts, key=lambda prompt: len(prompt.ids))], dtypes)

    def _is_too_large(self, batch: Batch) -> bool:
        limit = self.most_tokens
        return limit is not None and len(batch.prompts) > 1 and batch.padded_tokens > limit

    def _try(self, batch: Batch, buffer: WindowBuffer) -> str:
        """Compute a batch; return the message of the allocator if memory ran out, else an empty string."""
        try:
            prompts = batch.prompts
            if self._prepared.config.generate is not None:
                prompts = self._continue(batch)
            with self._capture() as capture:
                # one pass over the prompts and the tokens generated after them
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
            pad_id=self._prepared.spec.encoder.tokenizer.pad_token_id or 0,
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
            capture.wait()
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # the CPU allocator raises no specific exception
    return "can't allocate memory" in str(error)


def replicate(model: LoadedModel) -> LoadedModel:
    """Return a copy of a model that shares its weights, so that passes do not run hooks of other threads.

    Parameters
    ----------
    model
        Model to copy. Weights and buffers are shared; a buffer that a pass replaces, as some rotary
        embeddings do, is replaced in only one of the copies.
    """
    tensors = chain(model.model.parameters(), model.model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
