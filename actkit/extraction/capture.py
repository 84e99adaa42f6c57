"""One batch: what each wanted block gives, cast into the arrays of a window."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import NonfiniteError, StorageError
from ..schema import VARIABLES, VISION
from .buffers import WindowBuffer
from .forward import EMBEDDING, capture
from .models.loading import Architecture, LoadedModel
from .prompts.encoding import Encoder, Prompt
from .reductions import last_of, mean_of, norm_of
from .selection import MEAN_POSITION, Rules, content_positions, describe_tokens, kept_positions
from .vision import lay_out, split

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class _Batch:
    """What is the same for every layer of a batch."""

    prompts: Sequence[Prompt]
    samples: np.ndarray
    rows: np.ndarray
    real: torch.Tensor
    content: torch.Tensor
    kept: list[np.ndarray]

    @property
    def lengths(self) -> list[int]:
        """How many positions are kept of each sample."""
        return [len(kept) for kept in self.kept]


class Capture:
    """Runs batches and keeps what the wanted blocks give.

    Parameters
    ----------
    model
        The loaded model.
    architecture
        What its config says.
    encoder
        Tells the characters of tokens.
    rules
        What to keep.
    """

    def __init__(
        self, model: LoadedModel, architecture: Architecture, encoder: Encoder, rules: Rules
    ) -> None:
        self._model = model
        self._architecture = architecture
        self._encoder = encoder
        self._rules = rules

    @torch.inference_mode()
    def run(
        self, prompts: Sequence[Prompt], samples: np.ndarray, rows: np.ndarray, buffer: WindowBuffer
    ) -> None:
        """Run one batch and write its samples into a window.

        Parameters
        ----------
        prompts
            The batch.
        samples
            Their indices in the run.
        rows
            Their positions in the window.
        buffer
            The window's arrays.

        Raises
        ------
        StorageError
            Where ``storage="float16"`` cannot hold a value; the message names layer and sample.
        NonfiniteError
            Where ``on_nonfinite="raise"`` meets one.
        """
        captured = capture(self._model, prompts, self._rules.layers, self._rules.axis[-1])
        batch = self._batch(prompts, samples, rows)
        self._keep_tokens(batch, buffer)
        buffer["nonfinite"][:, rows] = 0
        embedding = captured.pop(EMBEDDING)
        if "embedding" in buffer:
            embedding, counts = self._finite(embedding, batch.real, batch, "the embedding")
            buffer["nonfinite"][0, rows] += counts
            self._keep(buffer["embedding"], self._select(embedding, batch), batch, "the embedding")
        seen = {layer: captured.pop((VISION, layer)) for layer in self._rules.layers.get(VISION, ())}
        for (component, layer), output in captured.items():
            self._keep_layer(component, layer, output, batch, buffer)
        if seen:
            layout = lay_out(self._architecture, [prompt.features for prompt in prompts])
            for layer, output in seen.items():
                self._keep_vision(layer, split(output, layout), batch, buffer)

    def _batch(self, prompts: Sequence[Prompt], samples: np.ndarray, rows: np.ndarray) -> _Batch:
        rules = self._rules
        longest = max(len(prompt.ids) for prompt in prompts)
        content = np.zeros((len(prompts), longest), dtype=bool)
        kept = []
        for index, prompt in enumerate(prompts):
            content[index, : len(prompt.ids)] = content_positions(
                prompt.kinds, first_is_content=rules.first_is_content
            )
            kept.append(kept_positions(prompt.kinds, rules.tokens, first_is_content=rules.first_is_content))
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        real = torch.arange(longest)[None, :] < lengths[:, None]
        return _Batch(prompts, samples, rows, real, torch.from_numpy(content), kept)

    def _keep_tokens(self, batch: _Batch, buffer: WindowBuffer) -> None:
        for prompt, row, kept in zip(batch.prompts, batch.rows.tolist(), batch.kept, strict=True):
            buffer["n_tokens"][row] = len(kept)
            for name, entries in describe_tokens(prompt, kept, self._encoder.pieces).items():
                if name in buffer:
                    buffer[name][row] = MEAN_POSITION if name == "position" else VARIABLES[name].fill_value
                    buffer[name][row, : len(kept)] = entries

    def _keep_layer(
        self, component: str, layer: int, output: torch.Tensor, batch: _Batch, buffer: WindowBuffer
    ) -> None:
        index = self._rules.axis.index(layer)
        where = f"layer {layer}" + ("" if component == "residual" else f" ({component})")
        content = batch.content.to(output.device)
        output, counts = self._finite(output, batch.real, batch, where)
        buffer["nonfinite"][index, batch.rows] += counts
        selected = self._select(output, batch)
        if component in buffer:
            self._keep(buffer[component][index], selected, batch, where)
        if component != "residual":
            return
        if "norm" in buffer:
            _store(buffer["norm"][index], norm_of(selected), batch)
        for name, reduce in (("pooled", mean_of), ("last", last_of)):
            if name in buffer:
                values = reduce(output, content).to("cpu", torch.float32)
                buffer[name][index, batch.rows] = values.numpy()

    def _keep_vision(
        self, layer: int, patches: Sequence[torch.Tensor], batch: _Batch, buffer: WindowBuffer
    ) -> None:
        index = self._rules.layers[VISION].index(layer)
        where = f"layer {layer} (vision)"
        for offset, own in enumerate(patches):
            one = slice(offset, offset + 1)
            alone = dataclasses.replace(
                batch, samples=batch.samples[one], rows=batch.rows[one], kept=[np.arange(len(own))]
            )
            every = torch.ones(1, len(own), dtype=torch.bool, device=own.device)
            values, counts = self._finite(own[None], every, alone, where)
            buffer[f"{VISION}/n_tokens"][alone.rows] = len(own)
            buffer[f"{VISION}/nonfinite"][index, alone.rows] = counts
            if (name := f"{VISION}/pooled") in buffer:
                buffer[name][index, alone.rows] = mean_of(values, every).to("cpu", torch.float32).numpy()
            if (name := f"{VISION}/norm") in buffer:
                _store(buffer[name][index], norm_of(values), alone)
            if (name := f"{VISION}/residual") in buffer:
                self._keep(buffer[name][index], values, alone, where)

    def _finite(
        self, output: torch.Tensor, real: torch.Tensor, batch: _Batch, where: str
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Count the NaN and Inf values of real positions, and treat them as the rules say."""
        bad = ~output.isfinite() & real.to(output.device)[..., None]
        counts = bad.sum(dim=(1, 2)).to("cpu").numpy()
        if not counts.any():
            return output, counts
        if self._rules.on_nonfinite == "raise":
            first = int(np.flatnonzero(counts)[0])
            raise NonfiniteError(
                f"{where}, sample {batch.samples[first]}: {counts[first]} values are NaN or Inf"
                + self._model.overflow_cause
            )
        return (output.masked_fill(bad, 0) if self._rules.on_nonfinite == "zero" else output), counts

    def _select(self, output: torch.Tensor, batch: _Batch) -> torch.Tensor:
        """Return the kept positions, left-aligned; what lies beyond each sample's is arbitrary."""
        if self._rules.tokens == "all":
            return output
        if self._rules.tokens == "mean":
            return mean_of(output, batch.content.to(output.device))[:, None]
        index = torch.zeros(len(batch.kept), max(batch.lengths), dtype=torch.int64)
        for row, kept in enumerate(batch.kept):
            index[row, : len(kept)] = torch.from_numpy(kept)
        return output.gather(1, index.to(output.device)[..., None].expand(-1, -1, output.shape[-1]))

    def _keep(self, target: np.ndarray, values: torch.Tensor, batch: _Batch, where: str) -> None:
        if self._rules.storage == "float16":
            for sample, own, length in zip(batch.samples.tolist(), values, batch.lengths, strict=True):
                if ((own[:length].abs() > FLOAT16_MAX) & own[:length].isfinite()).any():
                    raise StorageError(
                        f"{where}, sample {sample}: a value exceeds {FLOAT16_MAX:.0f}, the largest of "
                        "float16; use storage exact or bfloat16"
                    )
        _store(target, self._rounded(values), batch)

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        if self._rules.storage == "exact":
            return values
        return values.to(torch.bfloat16 if self._rules.storage == "bfloat16" else torch.float16)


def _store(target: np.ndarray, values: torch.Tensor, batch: _Batch) -> None:
    """Copy each sample's kept positions into its row; NaN beyond."""
    values, shared = values.to("cpu"), torch.from_numpy(target)
    for value, row, length in zip(values, batch.rows.tolist(), batch.lengths, strict=True):
        shared[row, :length] = value[:length]
        shared[row, length:] = torch.nan
