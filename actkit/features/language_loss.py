"""Next-token cross-entropy of a cube's own prompts, with outputs of the model left intact or replaced."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from ..errors import Fault, InputError, ModelError
from ..extraction.capture.hooks import run
from ..extraction.models.loader import LoadedModel
from ..extraction.prompts.encoder import Prompt, collate
from ..schema import Component, TokenKind
from ..stats import selection
from .cube_model import CubeModel, find_model
from .replacement import Replace, replaced

_LOGIT_BYTES = 256 * 10**6  # of a batch
_DIFFERENCE = 0.1  # median over tokens; rounding of bfloat16 and other kernels cause less than 0.05


@dataclass(frozen=True)
class Batch:
    """Prompts of a cube, padded on the right, and the tokens from which predictions are counted.

    Parameters
    ----------
    samples
        Indices of the samples in the cube.
    prompts
        The prompts.
    mask
        Selected tokens, boolean, dims ``(sample, token)``.
    """

    samples: np.ndarray
    prompts: Sequence[Prompt]
    mask: torch.Tensor


@dataclass(frozen=True)
class LanguageLoss:
    """A model with its head, and the prompts of a cube on which its loss is measured.

    Parameters
    ----------
    model
        The loaded model.
    tokenizer
        Its tokenizer.
    batches
        The prompts.
    """

    model: LoadedModel
    tokenizer: PreTrainedTokenizerBase
    batches: Sequence[Batch]

    @property
    def n_predictions(self) -> int:
        """Number of tokens that are predicted from a selected token."""
        return sum(int(counted(batch, self._inputs(batch)).sum()) for batch in self.batches)

    @torch.inference_mode()
    def mean(
        self, component: Component = "residual", layer: int = 0, replace: Replace | None = None
    ) -> float:
        """Return the mean cross-entropy of the tokens that follow the selected tokens, in nats.

        Parameters
        ----------
        component, layer
            Site whose output is replaced.
        replace
            Replacement of the output at the selected tokens; None leaves the model intact.
        """
        total, count = 0.0, 0
        for batch in self.batches:
            inputs = self._inputs(batch)
            if replace is None:
                logits = self._logits(inputs)
            else:
                where = batch.mask.to(self.model.device)
                with replaced(self.model.hook_points, component, layer, replace, where=where):
                    logits = self._logits(inputs)
            is_counted = counted(batch, inputs)
            targets = inputs["input_ids"][:, 1:].to(logits.device)[is_counted.to(logits.device)]
            predicted = logits[:, :-1][is_counted.to(logits.device)].float()
            losses = cross_entropy(predicted, targets, reduction="none")
            total, count = total + float(losses.cpu().double().sum()), count + len(losses)
        return total / count

    def _inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        return collate(batch.prompts, device=self.model.device)

    def _logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.model.model(**inputs, use_cache=False).logits
        return logits

    @torch.inference_mode()
    def check(self, cube: xr.Dataset, component: Component, layers: Sequence[int]) -> None:
        """Compare the outputs of the model with those of the cube, on the first batch with selected tokens.

        Raises
        ------
        ModelError
            If they differ by more than rounding, so that it is another model or other prompts.
        """
        batch = next(batch for batch in self.batches if bool(batch.mask.any()))
        captured: dict[int, torch.Tensor] = {}

        def keep(name: str, layer: int, output: torch.Tensor) -> None:
            if name == component:
                captured[layer] = output.float().cpu()

        run(self.model, batch.prompts, {component: layers}, max(layers), keep)
        n_tokens = batch.mask.shape[1]
        stored = cube[component].isel(sample=batch.samples, token=slice(n_tokens))
        for layer in layers:
            expected = torch.from_numpy(stored.sel(layer=layer).values.astype(np.float32))[batch.mask]
            error = (captured[layer][batch.mask] - expected).norm(dim=-1) / expected.norm(dim=-1)
            if not float(error.median()) <= _DIFFERENCE:
                raise ModelError(
                    f"{self.model.model.config.name_or_path}: its {component} of layer {layer} is not that "
                    f"of the cube (relative difference {float(error.median()):.2g}); "
                    "give the model that the cube was extracted with"
                )


def load_language_loss(
    cube: xr.Dataset,
    model: str | Path,
    *,
    rows: np.ndarray,
    tokens: selection.TokenSelection = "content",
    device: str = "auto",
    check: Callable[[CubeModel], object] | None = None,
) -> LanguageLoss:
    """Load the model of a cube with its head, and prepare the prompts of some samples.

    Parameters
    ----------
    cube
        Cube from :func:`actkit.canonical.as_cube`, restricted to the selected tokens, which must hold all
        tokens of its prompts.
    model
        Name, folder or GGUF file of the model, as for :func:`actkit.extract`. The options that determine what
        it computes are those of the cube.
    rows
        Indices of the samples.
    tokens
        Description of the selected tokens, for messages.
    device
        Device of the model.
    check
        Called with the model before its weights are loaded, to raise errors of the caller's arguments.

    Raises
    ------
    InputError
        Lists why the loss cannot be measured: the model is an encoder, the cube holds parts of its prompts,
        or prompts with images.
    """
    found, faults = find_model(cube, model, device)
    faults = prompt_faults(cube, rows) + faults
    if faults or found is None:
        raise InputError(faults)
    single = found.config.batch_size == 1
    batches = list(_batches(cube, rows, int(found.architecture.config.vocab_size), single))
    if not any(bool(counted(batch).any()) for batch in batches):
        raise InputError([Fault("tokens", f"no token follows a token of {tokens!r}")])
    if check is not None:
        check(found)
    return LanguageLoss(found.load(), found.tokenizer, batches)


def prompt_faults(cube: xr.Dataset, rows: np.ndarray) -> list[Fault]:
    """Return reasons why the prompts of a cube cannot be run again from their token ids."""
    if "position" in cube.coords or cube.attrs.get("tokens_kept", "all") != "all":
        what = "holds only some tokens of its prompts"
        return [Fault("model", f"the cube {what}", "extract again with keep_tokens=all")]
    some = cube.isel(sample=rows)
    if (some.n_tokens.values < some.prompt_tokens.values).any() or (some.token_id.values < 0).any():
        what = "the cube lacks token ids of its prompts"
        return [Fault("model", what, "select no tokens of the cube, and no imported samples")]
    if bool((some.token_kind == TokenKind.IMAGE).any()):
        return [Fault("model", "the prompts contain images, which the cube does not hold", "use texts")]
    return []


def _batches(cube: xr.Dataset, rows: np.ndarray, vocabulary: int, single: bool) -> Iterator[Batch]:
    """Yield prompts of similar lengths, as many as the logits of a batch leave room for."""
    cube = cube.isel(sample=rows)
    ids, kinds = cube.token_id.values, cube.token_kind.values
    lengths, mask = cube.n_tokens.values, selection.token_mask(cube).values
    most = _LOGIT_BYTES // (4 * vocabulary)
    batch: list[int] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        if batch and (single or (len(batch) + 1) * lengths[row] > most):
            yield _batch(rows, batch, ids, kinds, lengths, mask)
            batch = []
        batch.append(row)
    if batch:
        yield _batch(rows, batch, ids, kinds, lengths, mask)


def _batch(
    rows: np.ndarray,
    batch: list[int],
    ids: np.ndarray,
    kinds: np.ndarray,
    lengths: np.ndarray,
    mask: np.ndarray,
) -> Batch:
    prompts = [Prompt(ids[row, : lengths[row]], kinds[row, : lengths[row]]) for row in batch]
    longest = int(lengths[batch].max())
    return Batch(rows[batch], prompts, torch.from_numpy(mask[batch][:, :longest]))


def counted(batch: Batch, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Return the positions whose next token is predicted, dims ``(sample, token - 1)``."""
    is_token = (inputs or collate(batch.prompts))["attention_mask"].bool().cpu()
    return batch.mask[:, :-1] & is_token[:, 1:]
