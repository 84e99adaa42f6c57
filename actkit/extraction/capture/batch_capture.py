"""Forward pass of one batch, whose outputs are written into the arrays of a window as they appear."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ...schema import PROMPT_END, VISION, sparse_names
from ..models.architecture import Architecture
from ..models.loader import LoadedModel
from ..prompts.encoder import Prompt
from .device_copy import Mark, Transfer
from .hooks import EMBEDDING, run
from .packing import Packing, pack, pack_whole
from .pooling import last_of, means_of, norms_of, wide
from .spec import Rules
from .vision import Layout, lay_out, split
from .window_buffer import Count, CountKind, Dtypes, Slot, WindowBuffer

FLOAT16_MAX = 65504.0
_REDUCED = ("norm", "pooled", "last", PROMPT_END)
_INDEX_OF_EMBEDDING = sparse_names(EMBEDDING)[0]
_AHEAD = 1  # batches whose copies may be under way while the next one is computed
_STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class _Batch:
    """The part of a batch that is the same for every layer.

    Parameters
    ----------
    packing
        Indices of its positions in an output.
    slot
        Part of the window that it fills.
    """

    packing: Packing
    slot: Slot


class Capture:
    """Runs batches and keeps the outputs of the wanted blocks.

    Parameters
    ----------
    model
        The loaded model.
    architecture
        The architecture of the model.
    rules
        What to keep.
    transfer
        Copies the values to the host.
    """

    def __init__(
        self, model: LoadedModel, architecture: Architecture, rules: Rules, transfer: Transfer
    ) -> None:
        self._model = model
        self._architecture = architecture
        self._rules = rules
        self._transfer = transfer
        self._marks: deque[Mark] = deque()

    @torch.inference_mode()
    def run(self, prompts: Sequence[Prompt], rows: np.ndarray, buffer: WindowBuffer) -> None:
        """Run one batch and write its outputs into a window.

        Parameters
        ----------
        prompts
            The batch.
        rows
            Positions of its samples in the window.
        buffer
            The arrays of the window; values may arrive in them later.
        """
        packing = pack(prompts, self._rules)
        text = _Batch(packing, buffer.place(rows, packing))
        vision = layout = None
        if VISION in self._rules.layers:
            layout = lay_out(self._architecture, [prompt.features for prompt in prompts])
            patches = pack_whole(layout.lengths)
            vision = _Batch(patches, buffer.place(rows, patches, VISION))
        keep = partial(self._keep, text, vision, layout)
        run(self._model, prompts, self._rules.layers, self._rules.axis[-1], keep)
        for row, prompt, kept in zip(rows.tolist(), prompts, packing.kept, strict=True):
            buffer.prompts[row] = dataclasses.replace(prompt, features={})
            buffer.kept[row] = kept
        self._marks.append(self._transfer.mark())
        if len(self._marks) > _AHEAD:  # values that wait to be copied occupy device memory
            self._marks.popleft().wait()

    @torch.inference_mode()
    def record_dtypes(self, prompts: Sequence[Prompt], dtypes: Dtypes) -> None:
        """Record the dtypes in which the blocks output their values.

        Parameters
        ----------
        prompts
            Prompts to run; one is enough.
        dtypes
            Receives the dtypes, and is closed.
        """

        def note(component: str, _layer: int, output: torch.Tensor) -> None:
            key = (VISION, "residual") if component == VISION else ("", component)
            means = self._rules.keep_tokens == "mean" and component != VISION
            dtype = self._stored(torch.float32 if means else output.dtype)
            dtypes.add(key, dtype)
            if self._rules.sparse is not None:
                dtypes.add(("", sparse_names(component)[1]), dtype)

        run(self._model, prompts, self._rules.layers, self._rules.axis[-1], note)
        dtypes.closed = True

    def wait(self) -> None:
        """Return once no values on the device wait to be copied."""
        while self._marks:
            self._marks.popleft().wait()

    def _keep(
        self,
        text: _Batch,
        vision: _Batch | None,
        layout: Layout | None,
        component: str,
        layer: int,
        output: torch.Tensor,
    ) -> None:
        """Keep the output of a hook point; called during the pass."""
        if component == VISION:
            assert vision is not None
            assert layout is not None
            self._keep_block("residual", layer, torch.cat(split(output, layout)), vision)
        elif component != EMBEDDING or text.slot.holds(EMBEDDING) or text.slot.holds(_INDEX_OF_EMBEDDING):
            self._keep_block(component, layer, output.reshape(-1, output.shape[-1]), text)

    def _keep_block(self, name: str, layer: int, output: torch.Tensor, batch: _Batch) -> None:
        """Keep the requested variables of an output, dims ``(position, hidden)``, padding included."""
        packing, slot = batch.packing, batch.slot
        values = self._pack(name, layer, output, batch)
        exact = wide(values)
        norms = norms_of(exact)
        # in float64 the sum of the squares of finite values is finite
        if values.device.type != "cpu" or not norms.isfinite().all():
            norms = self._treat_nonfinite(name, layer, values, exact, norms, batch)
        reduced = [part for part in _REDUCED if name == "residual" and slot.holds(part)]
        means = means_of(exact, packing) if packing.keeps_means or "pooled" in reduced else None
        kept = values
        if packing.keeps_means:
            assert means is not None
            exact = means.index_select(0, packing.on("chosen", values.device))
            kept, norms = exact.to(torch.float32), norms_of(exact)
        elif not packing.keeps_all:
            chosen = packing.on("chosen", values.device)
            kept, norms = values.index_select(0, chosen), norms.index_select(0, chosen)
        if slot.holds(name):
            self._store(name, layer, kept, batch)
        if self._rules.sparse is not None and slot.holds(sparse_names(name)[0]):
            self._store_largest(name, layer, kept, batch)
        if "norm" in reduced:
            self._copy(slot.view("norm", layer, torch.float32), norms)
        if means is not None and "pooled" in reduced:
            self._copy(slot.view("pooled", layer, torch.float32), means)
        if "last" in reduced:
            self._copy(slot.view("last", layer, torch.float32), last_of(values, packing))
        if PROMPT_END in reduced:
            ends = packing.on("prompt_ends", values.device)
            self._copy(slot.view(PROMPT_END, layer, torch.float32), values.index_select(0, ends))

    def _pack(self, name: str, layer: int, output: torch.Tensor, batch: _Batch) -> torch.Tensor:
        """Copy the real positions of an output, if possible directly into the window."""
        packing = batch.packing
        target = None
        if (
            output.device.type == "cpu"
            and packing.keeps_all
            and batch.slot.holds(name)
            and self._stored(output.dtype) == output.dtype
        ):
            view = batch.slot.view(name, layer, output.dtype)
            target = view if view.dtype == output.dtype else None
        if packing.real is None:
            return output.clone() if target is None else target.copy_(output)
        real = packing.on("real", output.device)
        if target is None:
            return output.index_select(0, real)
        return torch.index_select(output, 0, real, out=target)

    def _treat_nonfinite(
        self,
        name: str,
        layer: int,
        values: torch.Tensor,
        exact: torch.Tensor,
        norms: torch.Tensor,
        batch: _Batch,
    ) -> torch.Tensor:
        """Count NaN and Inf values, set them to 0 if the options say so, and return the norms."""
        finite = values.isfinite()
        self._count("nonfinite", name, layer, finite, batch.packing.on("owners", values.device), batch)
        if self._rules.on_nonfinite == "zero":
            values.masked_fill_(~finite, 0)
            exact.masked_fill_(~finite, 0)
            return norms_of(exact)
        return norms

    def _store_largest(self, name: str, layer: int, values: torch.Tensor, batch: _Batch) -> None:
        """Keep the entries with the largest absolute values, largest first; NaN counts as largest."""
        index_name, value_name = sparse_names(name)
        index = values.abs().topk(self._rules.sparse or 0, dim=-1).indices
        # PyTorch computes little with unsigned integers; the bits are the same
        self._copy(batch.slot.view(index_name, layer, torch.int16), index.to(torch.int32).to(torch.int16))
        self._store(name, layer, values.gather(-1, index), batch, target=value_name)

    def _store(
        self, name: str, layer: int, values: torch.Tensor, batch: _Batch, target: str | None = None
    ) -> None:
        """Copy kept values in the dtype in which they are stored, and count those too large for it."""
        dtype = self._stored(values.dtype)
        if dtype == torch.float16 != values.dtype:
            owners = np.repeat(np.arange(len(batch.packing.kept)), batch.packing.kept_lengths)
            fits = ~((values.abs() > FLOAT16_MAX) & values.isfinite())
            self._count("overflows", name, layer, fits, torch.from_numpy(owners).to(values.device), batch)
        self._copy(batch.slot.view(target or name, layer, dtype), values)

    def _count(
        self,
        kind: CountKind,
        name: str,
        layer: int,
        valid: torch.Tensor,
        owners: torch.Tensor,
        batch: _Batch,
    ) -> None:
        """Count invalid values by sample; `valid` has dims ``(position, hidden)``."""
        counts = torch.zeros(len(batch.packing.kept), dtype=torch.int32, device=valid.device)
        counts.index_add_(0, owners, valid.shape[-1] - valid.sum(dim=-1, dtype=torch.int32))
        self._copy(batch.slot.view(Count(kind, name), layer, torch.int32), counts)

    def _copy(self, target: torch.Tensor, values: torch.Tensor) -> None:
        if target.data_ptr() != values.data_ptr():  # unless they were packed there
            self._transfer.copy(target, values)

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which values of a dtype are stored."""
        return _STORED.get(self._rules.storage, dtype)
