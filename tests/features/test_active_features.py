"""Sparse and dense features of a batch, against plain formulas and autograd."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from actkit.features import active_features
from actkit.features.active_features import Features, encode_above, encode_largest, encode_top

TOKENS, FEATURES, HIDDEN, K = 37, 50, 11, 3
Encode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Features]
ENCODERS: dict[str, Encode] = {
    "largest": lambda x, w, b: encode_largest(x, w, b, K * TOKENS),
    "largest after another batch": lambda x, w, b: encode_largest(x, w, b, K * TOKENS, 99.0),
    "top": lambda x, w, b: encode_top(x, w, b, K),
    "above": lambda x, w, b: encode_above(x, w, b, 0.4),
}


@pytest.fixture(autouse=True, params=["sparse", "dense"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(active_features, "_is_sparse_fast", lambda device: request.param == "sparse")
    monkeypatch.setattr(active_features, "_CHUNK_VALUES", 10 * FEATURES)
    return str(request.param)


def drawn(*shape: int) -> torch.Tensor:
    rng = np.random.default_rng(list(shape))
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def masked(name: str, x: torch.Tensor, w_enc: torch.Tensor, b_enc: torch.Tensor) -> torch.Tensor:
    """Return all features with their zeros, by torch's own selections and with autograd."""
    pre = x @ w_enc.t() + b_enc
    if name.startswith("largest"):
        return pre * (pre >= pre.flatten().topk(K * TOKENS).values.min())
    if name == "top":
        top = pre.relu().topk(K, dim=1)
        return torch.zeros_like(pre).scatter(1, top.indices, top.values)
    return pre * (pre > 0.4)


@pytest.mark.parametrize("name", ENCODERS)
def test_values_and_gradients_are_those_of_autograd(name: str) -> None:
    x, target = drawn(TOKENS, HIDDEN), drawn(TOKENS, HIDDEN + 1)[:, 1:]
    w_enc, w_dec = drawn(FEATURES, HIDDEN).requires_grad_(), drawn(FEATURES + 1, HIDDEN)[1:].requires_grad_()
    b_enc = drawn(FEATURES).requires_grad_()
    features = masked(name, x, w_enc, b_enc)
    loss = (features @ w_dec - target).square().sum()
    loss.backward()
    with torch.no_grad():
        ours = ENCODERS[name](x, w_enc, b_enc)
        decoded = ours.decode(w_dec)
        gradients = ours.gradients(2 * (decoded - target), x, w_dec)
    assert ours.n_active == int((features > 0).sum())
    assert ours.smallest == pytest.approx(float(features[features > 0].min().detach()), rel=1e-6)
    torch.testing.assert_close(decoded, (features @ w_dec).detach(), rtol=1e-5, atol=1e-5)
    for gradient, weights in zip(gradients, (w_dec, w_enc, b_enc), strict=True):
        torch.testing.assert_close(gradient, weights.grad, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.fired(), (features > 0).any(0))


def test_a_batch_with_few_positive_features_keeps_them_all() -> None:
    x, w_enc = drawn(TOKENS, HIDDEN), drawn(FEATURES, HIDDEN)
    b_enc = torch.full((FEATURES,), -12.0)
    positive = int((x @ w_enc.t() + b_enc > 0).sum())
    assert 0 < positive < K * TOKENS
    assert encode_largest(x, w_enc, b_enc, K * TOKENS).n_active == positive


def test_as_many_features_above_the_bound_as_are_kept_are_all_that_is_kept() -> None:
    x, w_enc, b_enc = drawn(TOKENS, HIDDEN), drawn(FEATURES, HIDDEN), drawn(FEATURES)
    largest = (x @ w_enc.t() + b_enc).flatten().sort(descending=True).values
    count = K * TOKENS
    last = float(largest[count - 1 : count + 1].mean()) / active_features._MARGIN
    assert encode_largest(x, w_enc, b_enc, count, last).n_active == count


def test_no_feature_is_active_where_all_are_negative() -> None:
    x, w_enc = drawn(TOKENS, HIDDEN), drawn(FEATURES, HIDDEN)
    features = encode_largest(x, w_enc, torch.full((FEATURES,), -1e3), K * TOKENS)
    assert (features.n_active, features.smallest) == (0, 0.0)
    assert not features.decode(w_enc).any()
