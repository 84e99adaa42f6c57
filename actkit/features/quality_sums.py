"""Sums over tokens from which the quality of an autoencoder follows, so that no token is kept."""

from typing import Any

import torch

EXTREME = 10.0  # times the median norm


def sums_device(device: torch.device) -> torch.device:
    """Return the device of sums in float64, which MPS lacks.

    Examples
    --------
    >>> sums_device(torch.device("mps"))
    device(type='cpu')
    """
    return torch.device("cpu") if device.type == "mps" else device


class QualitySums:
    """Sums over the tokens of one layer, in float64.

    Parameters
    ----------
    hidden, n_features
        Width of the activations, and number of features.
    device
        Device of the activations, and of the sums unless it has no float64.
    """

    def __init__(self, hidden: int, n_features: int, device: torch.device) -> None:
        self._device = device = sums_device(device)
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.n_tokens = 0
        self._shift: torch.Tensor | None = None  # near the mean, so that squares do not cancel
        self._sum, self._squares = torch.zeros(hidden, **wide), torch.zeros(hidden, **wide)
        self._error, self._error_squares = torch.zeros(hidden, **wide), torch.zeros(hidden, **wide)
        self._n_active = torch.zeros(n_features, dtype=torch.int64, device=device)
        self._feature_sum = torch.zeros(n_features, **wide)
        self._feature_max = torch.zeros(n_features, device=device)
        self._norms: list[torch.Tensor] = []

    def add(self, x: torch.Tensor, features: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Add a batch of activations, dims ``(token, hidden)``, with its features and reconstruction."""
        x, features, reconstruction = (part.to(self._device) for part in (x, features, reconstruction))
        if self._shift is None:
            self._shift = x.double().mean(0)
        centred, error = x.double() - self._shift, x.double() - reconstruction.double()
        self.n_tokens += len(x)
        self._sum += centred.sum(0)
        self._squares += centred.square().sum(0)
        self._error += error.sum(0)
        self._error_squares += error.square().sum(0)
        self._n_active += (features != 0).sum(0)
        self._feature_sum += features.sum(0, dtype=torch.float64)
        self._feature_max = torch.maximum(self._feature_max, features.amax(0))
        self._norms.append(x.norm(dim=1).cpu())

    @property
    def mean(self) -> torch.Tensor:
        """Mean of the activations, dims ``(hidden,)``, float64."""
        assert self._shift is not None
        mean: torch.Tensor = self._shift + self._sum / self.n_tokens
        return mean

    @property
    def variance(self) -> float:
        """Mean squared distance of a token from the mean."""
        return float((self._squares / self.n_tokens - (self._sum / self.n_tokens).square()).sum())

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: mean squared error divided by the variance, NaN if that is 0."""
        return _ratio(float(self._error_squares.sum()) / self.n_tokens, self.variance)

    @property
    def explained_variance(self) -> float:
        """Explained variance: as 1 - FVU, except that a constant error does not count."""
        variances = self._error_squares / self.n_tokens - (self._error / self.n_tokens).square()
        return 1 - _ratio(float(variances.sum()), self.variance)

    @property
    def l0(self) -> float:
        """Mean number of active features of a token."""
        return float(self._n_active.sum()) / self.n_tokens

    @property
    def frequency(self) -> torch.Tensor:
        """Share of tokens in which each feature is active, dims ``(feature,)``."""
        frequency: torch.Tensor = self._n_active.double().cpu() / self.n_tokens
        return frequency

    @property
    def feature_mean(self) -> torch.Tensor:
        """Mean value of each feature over the tokens in which it is active; NaN if there are none."""
        return (self._feature_sum / self._n_active).cpu()

    @property
    def feature_max(self) -> torch.Tensor:
        """Largest value of each feature; 0 if it is never active."""
        return self._feature_max.cpu()

    @property
    def share_of_extreme_norms(self) -> float:
        """Share of tokens whose norm exceeds 10 times the median norm."""
        norms = torch.cat(self._norms)
        return float((norms > EXTREME * norms.median()).double().mean())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
