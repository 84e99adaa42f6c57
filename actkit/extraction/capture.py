"""One batch: what each wanted block gives, cast into the arrays of a window."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import NonfiniteError, StorageError
from ..planning import Plan
from ..schema import VARIABLES, VISION
from .model import Architecture, LoadedModel
from .prompts import Encoder, Prompt, collate
from .selection import MEAN_POSITION, content_positions, describe_tokens, kept_positions
from .sites import check_sum_rule, hooks, site_output
from .vision import split

FLOAT16_MAX = 65504.0
_EMBEDDING = ("embedding", 0)


class WindowBuffer:
    """The arrays of one window, allocated once and used for every other window.

    Parameters
    ----------
    plan
        Its shape and window give the sizes.
    variables
        Names of the variables to hold.
    """

    def __init__(self, plan: Plan, variables: Sequence[str]) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        for variable in (VARIABLES[name] for name in variables):
            lengths = {**vars(plan.shape_of(variable)), "sample": plan.window}
            dtype = object if variable.dtype == "str" else variable.dtype
            # layers at which a component was not captured stay as they are here
            self._arrays[variable.name] = np.full(
                [lengths[dim] for dim in variable.dims], variable.fill_value, dtype=dtype
            )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def arrays(self, n_samples: int) -> dict[str, np.ndarray]:
        """Return the first samples of each variable, as views."""
        return {
            name: array[(slice(None),) * VARIABLES[name].sample_axis + (slice(n_samples),)]
            for name, array in self._arrays.items()
        }


@dataclass(frozen=True)
class Rules:
    """What a cube keeps of what the blocks give.

    Parameters
    ----------
    layers
        Component to the blocks at which it is kept, sorted.
    axis
        The blocks on the cube's layer axis, sorted.
    tokens, storage, on_nonfinite
        The options of :class:`~actkit.config.Config`.
    first_is_content
        Whether position 0 counts as content.
    """

    layers: Mapping[str, tuple[int, ...]]
    axis: tuple[int, ...]
    tokens: str
    storage: str
    on_nonfinite: str
    first_is_content: bool


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


class _LastLayer(Exception):  # noqa: N818 - no error: it ends a pass
    """Ends a forward pass once nothing more of it is wanted."""


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
        captured = self._forward(prompts)
        batch = self._batch(prompts, samples, rows)
        self._keep_tokens(batch, buffer)
        buffer["nonfinite"][:, rows] = 0
        embedding = captured.pop(_EMBEDDING)
        if "embedding" in buffer:
            self._keep(buffer["embedding"], self._select(embedding, batch), batch, "the embedding")
        for (component, layer), output in captured.items():
            if component == VISION:
                self._keep_vision(layer, output, batch, buffer)
            else:
                self._keep_layer(component, layer, output, batch, buffer)

    @torch.inference_mode()
    def check_sum_rule(self, prompts: Sequence[Prompt]) -> float:
        """Run a batch, whole, and return by how much the parts of a block miss it at most.

        Raises
        ------
        ModelError
            Where they do not add up, and have to.
        """
        return check_sum_rule(self._model.sites, lambda: self._call(prompts))

    def _call(self, prompts: Sequence[Prompt]) -> None:
        inputs = collate(prompts, device=self._model.device)
        # only the whole model knows where images belong; the decoder alone is enough for text
        module = self._model.base if prompts[0].features else self._model.sites.decoder
        module(**inputs, use_cache=False)

    def _forward(self, prompts: Sequence[Prompt]) -> dict[tuple[str, int], torch.Tensor]:
        """Return what the sites gave, by component and block, and `embedding`."""
        captured: dict[tuple[str, int], torch.Tensor] = {}
        sites, wanted = self._model.sites, self._rules.layers

        def enter(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            captured[_EMBEDDING] = args[0] if args else kwargs["hidden_states"]

        def leave(component: str, layer: int) -> Callable[..., None]:
            def keep(_module: Any, _args: Any, output: Any) -> None:
                tensor = site_output(output, captured.get(_EMBEDDING))
                if component in sites.components:
                    # some blocks add to what their parts give in place, once it has left them
                    tensor = tensor * sites.scale if sites.scale != 1 else tensor.clone()
                captured[component, layer] = tensor

            return keep

        def stop(_module: Any, _args: Any, _output: Any) -> None:
            raise _LastLayer

        handles = [sites.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
        sources = {"residual": sites.blocks, VISION: self._model.vision, **sites.components}
        handles += [
            sources[component][layer].register_forward_hook(leave(component, layer))
            for component, layers in wanted.items()
            for layer in layers
        ]
        handles.append(sites.blocks[self._rules.axis[-1]].register_forward_hook(stop))
        with hooks(handles), suppress(_LastLayer):
            self._call(prompts)
        return captured

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
        real, content = (mask.to(output.device) for mask in (batch.real, batch.content))
        output, counts = self._finite(output, real, batch, where)
        buffer["nonfinite"][index, batch.rows] += counts
        selected = self._select(output, batch)
        if component in buffer:
            self._keep(buffer[component][index], selected, batch, where)
        if component != "residual":
            return
        if "norm" in buffer:
            norms = torch.linalg.vector_norm(_wide(selected), dim=-1)
            _store(buffer["norm"][index], norms, batch)
        for name, reduce in (("pooled", mean_of), ("last", last_of)):
            if name in buffer:
                values = reduce(_wide(output), content).to("cpu", torch.float32)
                buffer[name][index, batch.rows] = values.numpy()

    def _keep_vision(self, layer: int, output: torch.Tensor, batch: _Batch, buffer: WindowBuffer) -> None:
        index = self._rules.layers[VISION].index(layer)
        features = [prompt.features for prompt in batch.prompts]
        where = f"layer {layer} (vision)"
        for offset, patches in enumerate(split(self._architecture, output, features)):
            one = slice(offset, offset + 1)
            alone = dataclasses.replace(
                batch, samples=batch.samples[one], rows=batch.rows[one], kept=[np.arange(len(patches))]
            )
            every = torch.ones(1, len(patches), dtype=torch.bool, device=patches.device)
            values, counts = self._finite(patches[None], every, alone, where)
            norms = torch.linalg.vector_norm(_wide(values), dim=-1)
            pooled = mean_of(_wide(values), every).to("cpu", torch.float32)
            buffer[f"{VISION}/n_tokens"][alone.rows] = len(patches)
            buffer[f"{VISION}/nonfinite"][index, alone.rows] = counts
            buffer[f"{VISION}/pooled"][index, alone.rows] = pooled.numpy()
            _store(buffer[f"{VISION}/norm"][index], norms, alone)
            self._keep(buffer[f"{VISION}/residual"][index], values, alone, where)

    def _finite(
        self, output: torch.Tensor, real: torch.Tensor, batch: _Batch, where: str
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Count the NaN and Inf values of real positions, and treat them as the rules say."""
        bad = ~output.isfinite() & real[..., None]
        counts = bad.sum(dim=(1, 2)).to("cpu").numpy()
        if not counts.any():
            return output, counts
        if self._rules.on_nonfinite == "raise":
            first = int(np.flatnonzero(counts)[0])
            cause = nonfinite_cause(self._model.dtype)
            raise NonfiniteError(
                f"{where}, sample {batch.samples[first]}: {counts[first]} values are NaN or Inf{cause}"
            )
        return (output.masked_fill(bad, 0) if self._rules.on_nonfinite == "zero" else output), counts

    def _select(self, output: torch.Tensor, batch: _Batch) -> torch.Tensor:
        """Return the kept positions, left-aligned; what lies beyond each sample's is arbitrary."""
        if self._rules.tokens == "all":
            return output
        if self._rules.tokens == "mean":
            return mean_of(_wide(output), batch.content.to(output.device))[:, None]
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


def nonfinite_cause(dtype: torch.dtype) -> str:
    """Say what most likely makes a model of these weights overflow."""
    if dtype != torch.float16:
        return ""
    return "; most likely float16 overflows, which ends at 65,504: load the weights as bfloat16 or float32"


def mean_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over the masked positions, dims ``(sample, hidden)``; NaN where there is none."""
    counts = mask.sum(dim=1)[:, None]
    # where, not multiplication: what lies at a pad may be NaN
    total = torch.where(mask[..., None], values, 0).sum(dim=1)
    return (total / counts).masked_fill(counts == 0, torch.nan)


def last_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the values at the last masked position, dims ``(sample, hidden)``; NaN where there is none."""
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
    chosen = values[torch.arange(len(values), device=values.device), last]
    return chosen.masked_fill(~mask.any(dim=1)[:, None], torch.nan)


def _wide(values: torch.Tensor) -> torch.Tensor:
    # MPS has no float64
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def _store(target: np.ndarray, values: torch.Tensor, batch: _Batch) -> None:
    """Copy each sample's kept positions into its row; NaN beyond."""
    values, shared = values.to("cpu"), torch.from_numpy(target)
    for value, row, length in zip(values, batch.rows.tolist(), batch.lengths, strict=True):
        shared[row, :length] = value[:length]
        shared[row, length:] = torch.nan
