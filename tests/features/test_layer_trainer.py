"""Steps of training against autograd, torch's Adam and planted dictionaries."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actkit.errors import NonfiniteError
from actkit.features.layer_trainer import LayerTrainer
from actkit.features.training_settings import TrainingSettings, dead_after, default_rate

HIDDEN, DIRECTIONS = 48, 96


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def settings(**options: Any) -> TrainingSettings:
    sizes = {"width": 128, "steps": 800, "batch": 512, **options}
    return TrainingSettings(
        **{
            "layers": (0,),
            "component": "residual",
            "hidden": HIDDEN,
            "k": 4,
            "architecture": "batchtopk",
            "tokens": "content",
            "where": "{}",
            "holdout_cluster": "",
            "holdout_share": 0.1,
            "lr": default_rate(sizes["width"]),
            "seed": 0,
            "dead_after": dead_after(sizes["steps"], sizes["batch"]),
            "n_tokens": 40_000,
            "buffer_bytes": 0,
            "is_held": True,
            "device": "cpu",
            "model": "",
            "cube_sha256": "",
            **sizes,
        }
    )


def trainer(scale: float = 1.0, **options: Any) -> LayerTrainer:
    return LayerTrainer(settings(**options), 0, scale, torch.device("cpu"))


def directions(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.standard_normal((count, HIDDEN))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def mixtures(rng: np.random.Generator, rows: np.ndarray, n_tokens: int) -> torch.Tensor:
    """Return tokens in which four of some directions are active on average."""
    is_active = rng.random((n_tokens, len(rows))) < 4 / len(rows)
    return torch.from_numpy(
        (is_active * (0.5 + rng.exponential(size=is_active.shape)) @ rows).astype(np.float32)
    )


def best_cosines(learned: np.ndarray, planted: np.ndarray) -> np.ndarray:
    return np.asarray((learned @ planted.T).max(axis=0))


def test_a_planted_dictionary_is_found() -> None:
    rng = np.random.default_rng(0)
    planted = directions(rng, DIRECTIONS)
    tokens = mixtures(rng, planted, 40_000)
    model = trainer(scale=HIDDEN**0.5 / float(tokens.norm(dim=1).mean()))
    for step in range(model.settings.steps):
        model.step(tokens[rng.integers(0, len(tokens), model.settings.batch)], step)
    cosines = best_cosines(model.w_dec.numpy(), planted)
    assert cosines.mean() >= 0.95
    assert (cosines > 0.9).mean() >= 0.95
    # a dictionary that learned nothing
    assert best_cosines(directions(rng, 128), planted).mean() < 0.5
    held_out = model.evaluate(mixtures(rng, planted, 4096))
    assert held_out.fvu < 0.15
    assert held_out.l0 == pytest.approx(4, rel=0.1)
    assert model.n_dead == 0


def reference_gradients(model: LayerTrainer, x: torch.Tensor, dead: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients of the published loss by autograd."""
    with torch.enable_grad():
        weights = {name: getattr(model, name).clone().requires_grad_() for name in model.moments}
        pre = (x - weights["b_dec"]) @ weights["w_enc"].t() + weights["b_enc"]
        kept = pre * (pre >= pre.flatten().topk(model.settings.k * len(x)).values.min())
        error = x - (kept @ weights["w_dec"] + weights["b_dec"])
        loss = error.square().sum(1).mean()
        if dead.any():
            most = min(HIDDEN // 2, int(dead.sum()))
            top = pre.relu().masked_fill(~dead, -1).topk(most, dim=1)
            reconstruction = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ weights["w_dec"]
            target = error.detach()
            scale = (target - target.mean(0)).square().sum(1).mean()
            loss = loss + (reconstruction - target).square().sum(1).mean() / scale / 32
        loss.backward()
        return {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


@pytest.mark.parametrize("n_dead", [0, 10, 60])
def test_a_step_is_that_of_autograd_and_of_adam(n_dead: int) -> None:
    rng = np.random.default_rng(1)
    model = trainer(dead_after=10**6, lr=0.01, steps=40)
    batches = [mixtures(rng, directions(rng, DIRECTIONS), 64) for _ in range(3)]
    model.step(batches[0], 0)
    model.b_enc.add_(torch.from_numpy(rng.normal(0, 0.1, 128).astype(np.float32)))
    reference = {name: getattr(model, name).clone() for name in model.moments}
    adam = torch.optim.Adam([torch.nn.Parameter(value) for value in reference.values()], lr=0.01)
    for parameter, (mean, square) in zip(adam.param_groups[0]["params"], model.moments.values(), strict=True):
        step = torch.tensor(1.0)
        adam.state[parameter] = {"step": step, "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
    for step, x in enumerate(batches[1:], 1):
        dead = torch.zeros(128, dtype=torch.bool)
        dead[:n_dead] = True
        model.since_fired[:n_dead] = 10**6
        gradients = reference_gradients(model, x, dead)
        rows = model.w_dec
        gradients["w_dec"] -= (gradients["w_dec"] * rows).sum(1, keepdim=True) * rows
        for parameter, name in zip(adam.param_groups[0]["params"], reference, strict=True):
            parameter.grad = gradients[name]
        torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 1.0)
        adam.param_groups[0]["lr"] = model.settings.rate(step)
        adam.step()
        adam.param_groups[0]["params"][1].div_(adam.param_groups[0]["params"][1].norm(dim=1, keepdim=True))
        model.step(x, step)
        for parameter, name in zip(adam.param_groups[0]["params"], reference, strict=True):
            # an entry whose gradient is nearly 0 moves by lr in either direction
            difference = (getattr(model, name) - parameter).abs()
            assert float((difference > 1e-4).float().mean()) < 0.002, name


def test_dead_features_come_back_to_life() -> None:
    rng = np.random.default_rng(2)
    tokens = mixtures(rng, directions(rng, DIRECTIONS), 8000)
    scale = HIDDEN**0.5 / float(tokens.norm(dim=1).mean())
    shares = []
    for after in (10**9, 4 * 128):
        model = trainer(scale=scale, batch=128, steps=200, dead_after=after)
        model.b_enc[:64] = -4.0
        for step in range(200):
            model.step(tokens[rng.integers(0, len(tokens), 128)], step)
        shares.append(float((model.since_fired[:64] < 20 * 128).float().mean()))
    without, with_auxiliary = shares
    assert with_auxiliary > without + 0.15


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
def test_a_restored_state_continues_to_the_bit(architecture: Any) -> None:
    rng = np.random.default_rng(3)
    batches = [mixtures(rng, directions(rng, DIRECTIONS), 64) for _ in range(12)]
    options = {"architecture": architecture, "steps": 12, "batch": 64, "dead_after": 200}
    whole, first, second = (trainer(**options) for _ in range(3))
    for step, x in enumerate(batches):
        whole.step(x, step)
        (first if step < 7 else second).step(x, step)
        if step == 6:
            second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    for name, tensor in whole.state().items():
        assert torch.equal(tensor.nan_to_num(-1), second.state()[name].nan_to_num(-1)), name


def test_the_threshold_starts_at_its_first_value() -> None:
    rng = np.random.default_rng(4)
    model = trainer(steps=20, batch=64)
    smallest = []
    for step in range(20):
        model.step(mixtures(rng, directions(rng, DIRECTIONS), 64), step)
        smallest.append(model._smallest)
        assert (model.threshold is None) == (step < 2)
    average = smallest[2]
    for value in smallest[2:]:
        average = 0.99 * average + 0.01 * value
    assert model.threshold == pytest.approx(average)


def test_the_rate_warms_up_and_decays() -> None:
    plan = replace(settings(), steps=100, lr=1.0)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(rates[5:80]) == {1.0}
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    model = trainer()
    with pytest.raises(NonfiniteError, match=r"the loss of layer 0 is (inf|nan) at step 0"):
        model.step(torch.full((8, HIDDEN), 3e38), 0)
