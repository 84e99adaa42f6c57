"""What follows the last block of a model: its final norm and its head, applied to any hidden states."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import ModelError
from ..extraction.models.hook_points import HookPoints
from ..extraction.models.loader import LoadedModel
from ..features.replacement import replaced

_PROBE = 8  # tokens of the check
# largest difference of logits, as a share of their largest value
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass(frozen=True)
class Unembedding:
    """A function from hidden states after a block to logits, as if that block were the last one.

    It runs the model's own forward pass, in which the last block alone is left and its output replaced. The
    final norm, scales and caps of the logits are thus those of transformers.

    Parameters
    ----------
    model
        Model that was loaded with its head.
    """

    model: LoadedModel

    @torch.inference_mode()
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits, float32, dims ``(vector, vocabulary)``.

        Parameters
        ----------
        hidden
            Hidden states after a block, dims ``(vector, hidden)``.
        """
        place = self.model.device
        ids = torch.zeros((len(hidden), 1), dtype=torch.long, device=place)
        points = self.model.hook_points

        def given(output: torch.Tensor) -> torch.Tensor:
            return hidden.to(output)[:, None]

        last = len(points.blocks) - 1
        with replaced(points, "residual", last, given), _last_block_alone(points):
            logits: torch.Tensor = self.model.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            ).logits
        return logits[:, 0].float()

    @torch.inference_mode()
    def check(self) -> None:
        """Compare the logits of the last block with those of an intact forward pass.

        Raises
        ------
        ModelError
            If they differ, so that a lens of this architecture would mislead.
        """
        points = self.model.hook_points
        count = min(_PROBE, int(points.decoder.config.vocab_size))
        ids = torch.arange(count, device=self.model.device)[None]
        entered: list[torch.Tensor] = []

        def keep(output: torch.Tensor) -> torch.Tensor:
            entered.append(output)
            return output

        with replaced(points, "residual", len(points.blocks) - 1, keep):
            expected = self.model.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            ).logits[0]
        found = self(entered[0][0])
        error = float((found - expected.float()).abs().max() / expected.float().abs().max())
        if not error <= _TOLERANCE.get(self.model.dtype, _TOLERANCE[torch.bfloat16]):
            name = type(self.model.model).__name__
            raise ModelError(
                f"{name}: its logits do not follow from the output of the last block alone (relative "
                f"difference {error:.2g}), so that the logit lens is not defined"
            )


@contextmanager
def _last_block_alone(points: HookPoints) -> Iterator[None]:
    """Remove all blocks but the last from forward passes within the context."""
    for parent in points.decoder.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and tuple(child) == points.blocks:
                setattr(parent, name, nn.ModuleList([points.blocks[-1]]))
                try:
                    yield
                finally:
                    setattr(parent, name, child)
                return
    raise ModelError(f"{type(points.decoder).__name__}: its blocks cannot be left out")
