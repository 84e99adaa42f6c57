"""One batch: what each wanted block gives, put into the arrays of a window as soon as it is there."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ..schema import VISION
from .buffers import Dtypes, Place, WindowBuffer, counted
from .forward import EMBEDDING, run
from .models.loading import Architecture, LoadedModel
from .packing import Packing, pack, pack_whole
from .prompts.encoding import Prompt
from .reductions import last_of, means_of, norms_of, wide
from .selection import Rules
from .transfer import Mark, Transfer
from .vision import Layout, lay_out, split

FLOAT16_MAX = 65504.0
_AHEAD = 1  # batches whose copies may be under way while the next one is computed
_STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class _Batch:
    """What is the same for every layer of a batch."""

    packing: Packing
    place: Place
    buffer: WindowBuffer
    group: str = ""

    def holds(self, name: str) -> bool:
        """Tell whether a variable is kept."""
        return self.buffer.holds(name, self.group)


class Capture:
    """Runs batches and keeps what the wanted blocks give.

    Parameters
    ----------
    model
        The loaded model.
    architecture
        What its config says.
    rules
        What to keep.
    transfer
        Brings the values to the host.
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
        """Run one batch and put what it gives into a window.

        Parameters
        ----------
        prompts
            The batch.
        rows
            Their positions in the window.
        buffer
            The window's arrays; their values may arrive later.
        """
        packing = pack(prompts, self._rules)
        batch = _Batch(packing, buffer.place(rows, packing), buffer)
        seen = None
        if VISION in self._rules.layers:
            layout = lay_out(self._architecture, [prompt.features for prompt in prompts])
            patches = pack_whole(layout.lengths)
            seen = _Batch(patches, buffer.place(rows, patches, VISION), buffer, VISION)
            keep = partial(self._keep, batch, seen, layout)
        else:
            keep = partial(self._keep, batch, None, None)
        run(self._model, prompts, self._rules.layers, self._rules.axis[-1], keep)
        for row, prompt, kept in zip(rows.tolist(), prompts, packing.kept, strict=True):
            buffer.prompts[row] = dataclasses.replace(prompt, features={})
            buffer.kept[row] = kept
        self._marks.append(self._transfer.mark())
        if len(self._marks) > _AHEAD:  # what waits to be copied is held on the device
            self._marks.popleft().wait()

    @torch.inference_mode()
    def learn(self, prompts: Sequence[Prompt], dtypes: Dtypes) -> None:
        """Find out in what precision the blocks give their values.

        Parameters
        ----------
        prompts
            What they are given; one is enough.
        dtypes
            Is told.
        """

        def note(component: str, _layer: int, output: torch.Tensor) -> None:
            of = (VISION, "residual") if component == VISION else ("", component)
            means = self._rules.tokens == "mean" and component != VISION
            dtypes.add(of, self._stored(torch.float32 if means else output.dtype))

        run(self._model, prompts, self._rules.layers, self._rules.axis[-1], note)
        dtypes.closed = True

    def settle(self) -> None:
        """Return once nothing waits on the device to be copied."""
        while self._marks:
            self._marks.popleft().wait()

    def _keep(
        self,
        batch: _Batch,
        seen: _Batch | None,
        layout: Layout | None,
        component: str,
        layer: int,
        output: torch.Tensor,
    ) -> None:
        """Take the output of a site, inside of the pass."""
        if component == VISION:
            assert seen is not None
            assert layout is not None
            self._keep_block("residual", layer, torch.cat(split(output, layout)), seen)
        elif component != EMBEDDING or batch.holds(EMBEDDING):
            self._keep_block(component, layer, output.reshape(-1, output.shape[-1]), batch)

    def _keep_block(self, name: str, layer: int, output: torch.Tensor, batch: _Batch) -> None:
        """Keep what is asked for of the positions of a batch, dims ``(position, hidden)``, pads included."""
        packing = batch.packing
        values = self._pack(name, layer, output, batch)
        exact = wide(values)
        norms = norms_of(exact)
        # in float64 the sum of the squares of finite values is finite
        if values.device.type != "cpu" or not norms.isfinite().all():
            norms = self._treat_nonfinite(name, layer, values, exact, norms, batch)
        reduced = [part for part in ("norm", "pooled", "last") if name == "residual" and batch.holds(part)]
        means = means_of(exact, packing) if packing.keeps_means or "pooled" in reduced else None
        kept = values
        if packing.keeps_means:
            assert means is not None
            exact = means.index_select(0, packing.on("chosen", values.device))
            kept, norms = exact.to(torch.float32), norms_of(exact)
        elif not packing.keeps_all:
            chosen = packing.on("chosen", values.device)
            kept, norms = values.index_select(0, chosen), norms.index_select(0, chosen)
        if batch.holds(name):
            self._put(name, layer, kept, batch, self._stored(kept.dtype))
        if "norm" in reduced:
            self._put("norm", layer, norms, batch)
        if means is not None and "pooled" in reduced:
            self._put("pooled", layer, means, batch)
        if "last" in reduced:
            self._put("last", layer, last_of(values, packing), batch)

    def _pack(self, name: str, layer: int, output: torch.Tensor, batch: _Batch) -> torch.Tensor:
        """Return the real positions alone, in memory of their own: where they belong, if that can be."""
        packing = batch.packing
        target = None
        if (
            output.device.type == "cpu"
            and packing.keeps_all
            and batch.holds(name)
            and self._stored(output.dtype) == output.dtype
        ):
            target = self._target(name, layer, int(packing.lengths.sum()), output.dtype, batch)
            target = target if target.dtype == output.dtype else None
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
        """Count NaN and Inf values, set them to 0 where that is the rule, and return the norms."""
        finite = values.isfinite()
        self._count("nonfinite", name, layer, finite, batch.packing.on("owners", values.device), batch)
        if self._rules.on_nonfinite == "zero":
            values.masked_fill_(~finite, 0)
            exact.masked_fill_(~finite, 0)
            return norms_of(exact)
        return norms

    def _put(
        self,
        name: str,
        layer: int,
        values: torch.Tensor,
        batch: _Batch,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype == torch.float16 != values.dtype:
            owners = np.repeat(np.arange(len(batch.packing.kept)), batch.packing.kept_lengths)
            fits = ~((values.abs() > FLOAT16_MAX) & values.isfinite())
            self._count("overflows", name, layer, fits, torch.from_numpy(owners).to(values.device), batch)
        target = self._target(name, layer, len(values), dtype, batch)
        if target.data_ptr() != values.data_ptr():
            self._transfer.copy(target, values)

    def _count(
        self, kind: str, name: str, layer: int, right: torch.Tensor, owners: torch.Tensor, batch: _Batch
    ) -> None:
        """Count by sample how many values are not right, dims ``(position, hidden)``."""
        counts = torch.zeros(len(batch.packing.kept), dtype=torch.int32, device=right.device)
        counts.index_add_(0, owners, right.shape[-1] - right.sum(dim=-1, dtype=torch.int32))
        self._put(counted(kind, name), layer, counts, batch, torch.int32)

    def _target(self, name: str, layer: int, count: int, dtype: torch.dtype, batch: _Batch) -> torch.Tensor:
        return batch.buffer.target(name, layer, batch.place, count, dtype, batch.group)

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        return _STORED.get(self._rules.storage, dtype)
