"""One autoencoder in training: its weights, a step of Adam, and its state.

BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) and TopK with an auxiliary loss for dead features
(Gao et al. 2024, arXiv 2406.04093). Gradients are computed by formula, because autograd would compute the
gradient of the input as well, and knows nothing of sparse features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np
import torch

from ..errors import NonfiniteError
from .active_features import Features, encode_above, encode_largest, encode_top
from .training_settings import TrainingSettings

_AUXILIARY = 1 / 32  # weight of the loss of dead features
_MOMENTUM = 0.99  # of the threshold's average
_THRESHOLD_FROM = 0.1  # share of the steps after which the threshold is averaged
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_WEIGHTS = ("w_enc", "w_dec", "b_enc", "b_dec")
_AUXILIARY_VALUES = 2**23  # pre-activations of dead features computed at once


class StepMeasures(NamedTuple):
    """Loss of a batch (squared error of a token, in scaled units), and its unexplained share of variance."""

    loss: float
    fvu: float


@dataclass(frozen=True)
class HeldOutMeasures:
    """Measures on held-out tokens, with the threshold that inference uses."""

    fvu: float
    l0: float


class LayerTrainer:
    """The autoencoder of one layer in training, in units in which activations have a mean norm of √hidden.

    Parameters
    ----------
    settings
        Settings of the run.
    layer
        Layer, from which the initial weights follow together with the seed.
    scale
        Factor of the activations.
    device
        Device of the weights.
    """

    def __init__(self, settings: TrainingSettings, layer: int, scale: float, device: torch.device) -> None:
        self.settings, self.layer, self.scale, self.device = settings, layer, scale, device
        rng = np.random.default_rng([settings.seed, layer])
        w_dec = torch.from_numpy(rng.standard_normal((settings.width, settings.hidden), dtype=np.float32))
        self.w_dec = (w_dec / w_dec.norm(dim=1, keepdim=True)).to(device)
        self.w_enc = self.w_dec.clone()
        self.b_enc = torch.zeros(settings.width, device=device)
        self.b_dec = torch.zeros(settings.hidden, device=device)
        self.moments = {
            name: (torch.zeros_like(getattr(self, name)), torch.zeros_like(getattr(self, name)))
            for name in _WEIGHTS
        }
        self.since_fired = torch.zeros(settings.width, dtype=torch.int64, device=device)
        self.threshold: float | None = None
        self._smallest = 0.0

    @property
    def n_dead(self) -> int:
        """Number of features that have not fired for as many tokens as the settings allow."""
        return int((self.since_fired >= self.settings.dead_after).sum())

    def step(self, batch: torch.Tensor, step: int) -> StepMeasures:
        """Update the weights.

        Parameters
        ----------
        batch
            Activations, dims ``(token, hidden)``.
        step
            Number of steps made before.

        Raises
        ------
        NonfiniteError
            If the loss is NaN or Inf; the weights are unchanged.
        """
        x = batch.to(self.device, torch.float32) * self.scale
        if step == 0:
            self.b_dec.copy_(x.mean(0))
        centered = x - self.b_dec
        features = self._encode(centered)
        error = features.decode(self.w_dec).add_(self.b_dec).sub_(x)
        loss = float(error.square().sum()) / len(x)
        if not isfinite(loss):
            what = f"the loss of layer {self.layer} is {loss} at step {step:,}"
            raise NonfiniteError(f"{what}; find the samples with actkit.massive_activations, or lower lr")
        gradient = error * (2 / len(x))
        by_features = features.gradients(gradient, centered, self.w_dec)
        gradients = dict(zip(("w_dec", "w_enc", "b_enc"), by_features, strict=True))
        dead = torch.nonzero(self.since_fired >= self.settings.dead_after)[:, 0]
        self._count_fired(features, len(x))
        if len(dead):
            self._add_auxiliary(gradients, dead, centered, error)
        gradients["b_dec"] = gradient.sum(0).addmv_(self.w_enc.t(), gradients["b_enc"], alpha=-1)
        variance = float((x - x.mean(0)).square().sum()) / len(x)
        self._update(gradients, step)
        self._average_threshold(features, step)
        return StepMeasures(loss, loss / variance if variance else float("nan"))

    def evaluate(self, batch: torch.Tensor) -> HeldOutMeasures:
        """Return measures on held-out activations, dims ``(token, hidden)``."""
        x = batch.to(self.device, torch.float32) * self.scale
        centered = x - self.b_dec
        if self.settings.architecture == "topk":
            features = encode_top(centered, self.w_enc, self.b_enc, self.settings.k)
        else:
            threshold = self._smallest if self.threshold is None else self.threshold
            features = encode_above(centered, self.w_enc, self.b_enc, threshold)
        error = features.decode(self.w_dec).add_(self.b_dec).sub_(x)
        variance = float((x - x.mean(0)).square().sum())
        fvu = float(error.square().sum()) / variance if variance else float("nan")
        return HeldOutMeasures(fvu, features.n_active / len(x))

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that later steps depend on, except the settings and the scale."""
        tensors = {name: getattr(self, name) for name in (*_WEIGHTS, "since_fired")}
        for name, (mean, square) in self.moments.items():
            tensors |= {f"{name}.mean": mean, f"{name}.square": square}
        threshold = float("nan") if self.threshold is None else self.threshold
        # the previous smallest value is only a hint to the selection, but measures use it before a threshold
        scalars = torch.tensor([threshold, self._smallest], dtype=torch.float64)
        return {**tensors, "threshold": scalars}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from what :meth:`state` returned."""
        for name in (*_WEIGHTS, "since_fired"):
            getattr(self, name).copy_(tensors[name])
        for name, (mean, square) in self.moments.items():
            mean.copy_(tensors[f"{name}.mean"])
            square.copy_(tensors[f"{name}.square"])
        threshold, self._smallest = tensors["threshold"].tolist()
        self.threshold = None if threshold != threshold else threshold

    def _encode(self, centered: torch.Tensor) -> Features:
        if self.settings.architecture == "topk":
            return encode_top(centered, self.w_enc, self.b_enc, self.settings.k)
        count = self.settings.k * len(centered)
        features = encode_largest(centered, self.w_enc, self.b_enc, count, self._smallest)
        self._smallest = features.smallest
        return features

    def _count_fired(self, features: Features, n_tokens: int) -> None:
        self.since_fired.add_(n_tokens).masked_fill_(features.fired(), 0)

    def _add_auxiliary(
        self,
        gradients: dict[str, torch.Tensor],
        dead: torch.Tensor,
        centered: torch.Tensor,
        error: torch.Tensor,
    ) -> None:
        """Add the gradients of the loss with which dead features reconstruct the error of the live ones.

        The loss is the squared error divided by the variance of its target, which is detached. The bias of
        the decoder takes no part in it; that of the input does, through the encoder, as everywhere.
        """
        target = -error  # x - reconstruction
        variance = float((target - target.mean(0)).square().sum())
        if not variance > 0:
            return
        w_enc, w_dec, b_enc = self.w_enc[dead], self.w_dec[dead], self.b_enc[dead]
        most = min(self.settings.hidden // 2, len(dead))
        size = max(1, _AUXILIARY_VALUES // len(dead))
        sums = [torch.zeros_like(w_dec), torch.zeros_like(w_enc), torch.zeros_like(b_enc)]
        for start in range(0, len(centered), size):
            rows = slice(start, start + size)
            features = encode_top(centered[rows], w_enc, b_enc, most)
            gradient = features.decode(w_dec).sub_(target[rows]).mul_(2 * _AUXILIARY / variance)
            for total, part in zip(sums, features.gradients(gradient, centered[rows], w_dec), strict=True):
                total.add_(part)
        for name, total in zip(("w_dec", "w_enc", "b_enc"), sums, strict=True):
            gradients[name].index_add_(0, dead, total)

    def _update(self, gradients: dict[str, torch.Tensor], step: int) -> None:
        """Make a step of Adam with clipped gradients, and keep the rows of the decoder at length 1."""
        w_dec = gradients["w_dec"]
        w_dec.addcmul_((w_dec * self.w_dec).sum(1, keepdim=True), self.w_dec, value=-1)
        norm = float(sum(float(gradient.square().sum()) for gradient in gradients.values())) ** 0.5
        clip = min(1.0, 1 / (norm + 1e-6))
        rate = self.settings.rate(step)
        corrections = [1 - beta ** (step + 1) for beta in _BETAS]
        for name in _WEIGHTS:
            gradient, (mean, square) = gradients[name].mul_(clip), self.moments[name]
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            denominator = (square / corrections[1]).sqrt_().add_(_EPSILON)
            getattr(self, name).addcdiv_(mean, denominator, value=-rate / corrections[0])
        self.w_dec.div_(self.w_dec.norm(dim=1, keepdim=True).clamp_(min=1e-8))

    def _average_threshold(self, features: Features, step: int) -> None:
        is_early = step < _THRESHOLD_FROM * self.settings.steps
        if self.settings.architecture != "batchtopk" or is_early or not features.n_active:
            return
        if self.threshold is None:  # starting at 0 would admit too many features for hundreds of steps
            self.threshold = features.smallest
        self.threshold = _MOMENTUM * self.threshold + (1 - _MOMENTUM) * features.smallest
