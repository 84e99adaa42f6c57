"""Compare our training of BatchTopK with that of SAELens, in its environment: same tokens, steps, k and rate.

python -m tests.saelens_training_check [steps]
"""

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from actkit.features.layer_trainer import LayerTrainer
from actkit.features.training_settings import TrainingSettings, dead_after, default_rate

Result = tuple[float, float, float, np.ndarray]  # FVU, L0, CPU seconds of a step, directions

HIDDEN, DIRECTIONS, WIDTH, K, BATCH = 48, 96, 128, 4, 512
TOLERANCE = 0.1
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 800
RNG = np.random.default_rng(0)
PLANTED = RNG.standard_normal((DIRECTIONS, HIDDEN))
PLANTED /= np.linalg.norm(PLANTED, axis=1, keepdims=True)
RATE = default_rate(WIDTH)


def mixtures(n_tokens: int) -> torch.Tensor:
    is_active = RNG.random((n_tokens, DIRECTIONS)) < K / DIRECTIONS
    values = is_active * (0.5 + RNG.exponential(size=is_active.shape))
    return torch.from_numpy((values @ PLANTED).astype(np.float32))


def batches(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    rng = np.random.default_rng(1)
    while True:
        yield tokens[rng.integers(0, len(tokens), BATCH)]


def train_ours(tokens: torch.Tensor, held_out: torch.Tensor) -> Result:
    settings = TrainingSettings(
        layers=(0,), component="residual", hidden=HIDDEN, width=WIDTH, k=K, architecture="batchtopk",
        tokens="content", where="{}", holdout_cluster="", holdout_share=0.1, steps=STEPS, batch=BATCH,
        lr=RATE, seed=0, dead_after=dead_after(STEPS, BATCH), n_tokens=len(tokens), buffer_bytes=0,
        is_held=True, device="cpu", model="", cube_sha256="",
    )  # fmt: skip
    model = LayerTrainer(settings, 0, 1.0, torch.device("cpu"))
    started = time.process_time()
    with torch.no_grad():
        for step, x in zip(range(STEPS), batches(tokens), strict=False):
            model.step(x, step)
        took = time.process_time() - started
        measured = model.evaluate(held_out)
    return measured.fvu, measured.l0, took / STEPS, model.w_dec.numpy()


def train_theirs(tokens: torch.Tensor, held_out: torch.Tensor) -> Result:
    torch.manual_seed(0)
    config = BatchTopKTrainingSAEConfig(
        d_in=HIDDEN, d_sae=WIDTH, k=K, decoder_init_norm=1.0, rescale_acts_by_decoder_norm=False
    )
    sae = BatchTopKTrainingSAE(config)
    plan = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=RATE,
        lr_warm_up_steps=round(0.05 * STEPS),
        lr_decay_steps=round(0.2 * STEPS),
        lr_end=0.0,
        dead_feature_window=STEPS // 5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=plan, sae=sae, data_provider=batches(tokens))
    started = time.process_time()
    trainer.fit()
    took = time.process_time() - started
    with torch.no_grad():
        pre = (held_out - sae.b_dec) @ sae.W_enc + sae.b_enc
        features = pre * (pre > float(sae.topk_threshold))
        error = (features @ sae.W_dec + sae.b_dec - held_out).square().sum()
        fvu = float(error / (held_out - held_out.mean(0)).square().sum())
        rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
        return fvu, float((features > 0).sum()) / len(held_out), took / STEPS, rows.numpy()


def main() -> None:
    tokens, held_out = mixtures(40_000), mixtures(8192)
    tokens *= HIDDEN**0.5 / float(tokens.norm(dim=1).mean())
    held_out *= HIDDEN**0.5 / float(held_out.norm(dim=1).mean())
    results = {"actkit": train_ours(tokens, held_out), "SAELens": train_theirs(tokens, held_out)}
    for name, (fvu, l0, seconds, rows) in results.items():
        cosines = (rows @ PLANTED.T).max(axis=0)
        print(f"{name}: FVU {fvu:.4f}, L0 {l0:.2f}, MMCS {cosines.mean():.3f}, {1000 * seconds:.1f} CPU ms")
    (fvu, l0, *_), (their_fvu, their_l0, *_) = results.values()
    assert fvu <= their_fvu * (1 + TOLERANCE), "the unexplained variance is more than 10% above SAELens'"
    assert abs(l0 / their_l0 - 1) <= TOLERANCE, "L0 differs by more than 10%"


if __name__ == "__main__":
    main()
