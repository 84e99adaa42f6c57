"""One forward pass: what each block gives, cast into the arrays of a window."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from ..errors import StorageError
from ..planning import Plan
from ..schema import VARIABLES
from .model import LoadedModel, block_output, hooks
from .tokens import Tokens

FLOAT16_MAX = 65504.0


class WindowBuffer:
    """The arrays of one window, allocated once and used for every other window.

    Parameters
    ----------
    plan
        Its shape and window give the sizes.
    variables
        Names of the data variables to hold.
    """

    def __init__(self, plan: Plan, variables: Sequence[str]) -> None:
        lengths = {**vars(plan.shape), "sample": plan.window}
        self._tensors = {
            name: torch.zeros(
                [lengths[dim] for dim in VARIABLES[name].dims],
                dtype=getattr(torch, VARIABLES[name].dtype),
            )
            for name in variables
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def arrays(self, n_samples: int) -> dict[str, np.ndarray]:
        """Return the first samples of each variable as arrays that share the memory."""
        return {
            name: tensor.narrow(VARIABLES[name].sample_axis, 0, n_samples).numpy()
            for name, tensor in self._tensors.items()
        }


class _LastLayer(Exception):  # noqa: N818 - no error: it ends a pass
    """Ends a forward pass once nothing more of it is wanted."""


class Capture:
    """Runs batches and keeps what the wanted blocks give.

    Parameters
    ----------
    model
        The loaded model.
    layers
        Blocks to keep, sorted.
    tokens
        All prompts of the run.
    storage
        Rounding of `residual` and `embedding`.
    """

    def __init__(self, model: LoadedModel, layers: Sequence[int], tokens: Tokens, storage: str) -> None:
        self._model = model
        self._layers = tuple(layers)
        self._tokens = tokens
        self._content = tokens.content()
        self._storage = storage

    @torch.inference_mode()
    def run(self, samples: np.ndarray, rows: np.ndarray, buffer: WindowBuffer) -> None:
        """Run one batch and write its samples into a window.

        Parameters
        ----------
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
        """
        lengths = self._tokens.lengths[samples]
        longest = int(lengths.max())
        embedding, outputs = self._forward(samples, longest)
        device = self._model.device
        real = torch.arange(longest)[None, :] < torch.from_numpy(lengths)[:, None]
        content = torch.from_numpy(self._content[samples, :longest])
        masks = (real.to(device), content.to(device))
        if "embedding" in buffer:
            self._store(
                buffer["embedding"],
                self._rounded(embedding, masks[0], samples, "the embedding"),
                rows,
                lengths,
            )
        for index, (layer, output) in enumerate(zip(self._layers, outputs, strict=True)):
            summaries = summarize(output, *masks)
            for name, values in summaries.items():
                if name not in buffer:
                    continue
                if name == "norm":
                    self._store(buffer[name][index], values, rows, lengths)
                else:
                    buffer[name][index, rows] = values.to("cpu", buffer[name].dtype)
            if "residual" in buffer:
                rounded = self._rounded(output, masks[0], samples, f"layer {layer}")
                self._store(buffer["residual"][index], rounded, rows, lengths)

    def _forward(self, samples: np.ndarray, longest: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        # right padding, whatever the tokenizer's side: positions then need no correction in any model
        ids = torch.from_numpy(self._tokens.ids[samples, :longest].astype(np.int64)).to(self._model.device)
        mask = torch.from_numpy((self._tokens.kinds[samples, :longest] != 0).astype(np.int64)).to(
            self._model.device
        )
        embeddings: list[torch.Tensor] = []
        outputs: list[torch.Tensor] = []

        def enter(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            embeddings.append(args[0] if args else kwargs["hidden_states"])

        def leave(_module: Any, _args: Any, output: Any) -> None:
            outputs.append(block_output(output))
            if len(outputs) == len(self._layers):
                raise _LastLayer

        blocks = self._model.blocks
        handles = [blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
        handles += [blocks[layer].register_forward_hook(leave) for layer in self._layers]
        with hooks(handles), suppress(_LastLayer):
            self._model.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        return embeddings[0], outputs

    def _rounded(
        self, values: torch.Tensor, real: torch.Tensor, samples: np.ndarray, where: str
    ) -> torch.Tensor:
        if self._storage == "bfloat16":
            return values.to(torch.bfloat16)
        if self._storage == "float16":
            too_large = (values.abs() > FLOAT16_MAX) & values.isfinite() & real[..., None]
            if too_large.any():
                sample = int(samples[int(too_large.any(dim=(1, 2)).nonzero()[0])])
                raise StorageError(
                    f"{where}, sample {sample}: a value exceeds {FLOAT16_MAX:.0f}, the largest of float16; "
                    "use storage exact or bfloat16"
                )
            return values.to(torch.float16)
        return values

    @staticmethod
    def _store(target: torch.Tensor, values: torch.Tensor, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Copy each sample's real tokens into its row; NaN beyond."""
        values = values.to("cpu")
        for value, row, length in zip(values, rows.tolist(), lengths.tolist(), strict=True):
            target[row, :length] = value[:length]
            target[row, length:] = torch.nan


def summarize(output: torch.Tensor, real: torch.Tensor, content: torch.Tensor) -> dict[str, torch.Tensor]:
    """Reduce what a block gives; sums in float64.

    Parameters
    ----------
    output
        Dims ``(sample, token, hidden)``.
    real, content
        Boolean, dims ``(sample, token)``: positions that hold tokens, and content tokens.

    Returns
    -------
    dict
        `norm` (sample, token), `pooled` and `last` (sample, hidden), `nonfinite` (sample).
    """
    # MPS has no float64
    wide = torch.float32 if output.device.type == "mps" else torch.float64
    values = output.to(wide)
    counts = content.sum(dim=1)
    last = (content * torch.arange(1, content.shape[1] + 1, device=content.device)).argmax(dim=1)
    empty = (counts == 0)[:, None]
    # where, not multiplication: what lies at a pad may be NaN
    total = torch.where(content[..., None], values, 0).sum(dim=1)
    at_last = values[torch.arange(len(values), device=values.device), last]
    return {
        "norm": torch.linalg.vector_norm(values, dim=-1),
        "pooled": (total / counts[:, None]).masked_fill(empty, torch.nan),
        "last": at_last.masked_fill(empty, torch.nan),
        "nonfinite": (~values.isfinite() & real[..., None]).sum(dim=(1, 2)),
    }
