"""Train sparse autoencoders on the layers of a run."""

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from ..canonical import Cube
from ..errors import CorruptError
from ..extraction.models.devices import pick_device
from ..extraction.monitoring.run_log import log_file, logger
from ..layer_spec import Spec
from ..schema import Component
from ..stats.selection import AUTO, TokenSelection
from ..store.folders import Folder
from ..store.run_folder import locked
from ..store.writer import storage_errors
from .deferred_signals import deferred_signals
from .layer_trainer import LayerTrainer, StepMeasures
from .manifest import MANIFEST, layer_folder, read_manifest, write_manifest
from .sae import Sae
from .sae_files import write_sae
from .sae_loader import load_saes
from .sae_origin import sae_metadata
from .sae_set import SaeSet
from .training_input import check_wandb, training_input, with_memory_of
from .training_log import LOG_FILE, TrainingLog
from .training_progress import (
    TrainingBar,
    TrainingListener,
    TrainingProgress,
    TrainingStatus,
    tracked_training,
)
from .training_settings import (
    SETTINGS_FILE,
    TrainedArchitecture,
    TrainingSettings,
    check_same,
    stored_settings,
)
from .training_state import (
    STATE,
    STATES,
    Position,
    load_position,
    remove_state,
    restore_state,
    save_state,
)
from .training_tokens import TrainingTokens

_LOG_ENTRIES = 50
_MANY_EXTREMES = 0.001  # share of tokens


def train_saes(
    run: Cube,
    *,
    out: str | os.PathLike[str],
    layers: Spec = "all",
    component: Component = "residual",
    width: int | None = None,
    k: int = 32,
    architecture: TrainedArchitecture = "batchtopk",
    tokens: TokenSelection = "content",
    where: Mapping[str, Any] | None = None,
    holdout: str | None = AUTO,
    steps: int | None = None,
    epochs: int | None = None,
    batch: int = 4096,
    lr: float | None = None,
    seed: int = 0,
    device: str = "auto",
    memory: int | str = "auto",
    resume: bool = True,
    checkpoint_seconds: float = 60,
    wandb: str | Mapping[str, Any] | None = None,
    listeners: Sequence[TrainingListener] | None = None,
) -> SaeSet:
    r"""Train a sparse autoencoder on each of several layers, in one pass over the cube.

    Parameters
    ----------
    run
        Run folder, which is read fastest, or cube.
    out
        Folder of the autoencoders, one folder for each layer in SAELens' inference format. A run that was
        interrupted continues from its last state; on a CPU, with as many threads, it ends with the same bits.
    layers
        Layer specification, as for an extraction; ``all`` means all in the cube.
    component
        ``residual``, ``attention`` or ``mlp``.
    width
        Number of features; 8 times the width of the activations by default.
    k
        Mean number of active features of a token, or their exact number with ``topk``.
    architecture
        ``batchtopk`` keeps the ``k × batch`` largest features of a batch, and uses a threshold afterwards;
        ``topk`` keeps the ``k`` largest of each token.
    tokens
        Tokens to train on, as for :func:`actkit.layer_norms`.
    where
        Required value of each label given, or of ``language``.
    holdout
        Label that dependent samples share: a tenth of its values is held out with all of their samples. It is
        detected by default; None holds out single samples.
    steps, epochs
        Number of steps, or of passes over the training tokens; by default one pass, but at least 1,000 steps.
    batch
        Tokens in a step.
    lr
        Peak learning rate; :math:`2\cdot10^{-4}/\sqrt{width/2^{14}}` by default.
    seed
        Seed of the initial weights, the order of tokens and the held-out samples.
    device
        ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
    memory
        Memory for tokens, in bytes or as ``"4GB"``; a quarter of what is available by default. If all tokens
        fit into it, they are read once.
    resume
        Whether to continue what is in the folder; otherwise it is replaced.
    checkpoint_seconds
        Time between two saved states, which take three times the space of the weights.
    wandb
        Options of Weights & Biases, as for an extraction, such as ``"project=NAME"``.
    listeners
        Called with each :class:`~actkit.features.training_progress.TrainingProgress`; by default, a
        progress bar.

    Returns
    -------
    SaeSet
        The autoencoders, as :func:`actkit.load_saes` reads them. :func:`actkit.training_log` returns the
        measures of the run.

    Raises
    ------
    InputError, MissingError
        If the request is malformed, or the cube lacks what it needs; nothing is computed.
    ChangedError
        If the folder holds a run with other settings; each is named.
    NonfiniteError
        If an activation or the loss is NaN or Inf.
    LockedError, StorageError, CorruptError
        If another process trains there, the disk cannot be written, or a state is damaged.

    Warns
    -----
    UserWarning
        If there are fewer than 100 tokens for each feature, or tokens with extreme norms.
    """
    options = {name: value for name, value in locals().items() if name != "run"}
    tracking = check_wandb(wandb)
    data = training_input(run, options)
    folder = Path(out)
    before = stored_settings(folder) if resume else None
    if before is not None:
        if memory == AUTO:
            data = replace(data, settings=with_memory_of(data.settings, before))
        check_same(before, data.settings, str(folder))
        manifest = read_manifest(folder)
        if manifest is not None and manifest.complete:
            _remove_left_state(folder)
            return load_saes(folder, component=component)
    with storage_errors("cannot create the folder of the autoencoders", "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as opened, log_file(opened):
        if not resume:
            _remove_former(opened)
        opened.replace(SETTINGS_FILE, _settings_text(data))
        shown = [TrainingBar()] if listeners is None else list(listeners)
        with torch.no_grad(), tracked_training(tracking, folder, data.settings.dump()) as trackers:
            told = [TrainingStatus(opened), *shown, *trackers]
            _Training(opened, data, told, checkpoint_seconds, pick_device(device)).run()
    return load_saes(folder, component=component)


class _Training:
    """One session of a training run.

    Parameters
    ----------
    folder
        Folder of the autoencoders, locked.
    data
        Tokens and settings.
    listeners
        Called with each event.
    checkpoint_seconds
        Time between two states.
    device
        Device to compute on; the settings hold only its kind.
    """

    def __init__(
        self,
        folder: Folder,
        data: TrainingTokens,
        listeners: Sequence[TrainingListener],
        checkpoint_seconds: float,
        device: torch.device,
    ) -> None:
        self.folder, self.data, self.settings, self.listeners = folder, data, data.settings, listeners
        self.checkpoint_seconds, self.device = checkpoint_seconds, device
        self.process = psutil.Process()
        self.measures: dict[int, dict[str, float]] = {}
        self.trainers: list[LayerTrainer] = []
        self.position = self.first = Position(0, 0.0, (), ())
        self.started = self.saved = time.monotonic()

    def run(self) -> None:
        """Train to the end, and write the autoencoders."""
        try:
            held_out = self._begin()
            write_manifest(self.folder.path, complete=False)  # what is written is refused until all is
            self._steps(held_out)
            self._write()
        except BaseException as error:
            is_interrupt = isinstance(error, KeyboardInterrupt)
            try:
                if is_interrupt and self.trainers:
                    save_state(self.folder, self.trainers, self.position)
            finally:
                self._emit("interrupted" if is_interrupt else "failed")
            raise
        self._emit("done")

    def _begin(self) -> list[torch.Tensor]:
        """Make the trainers, from the state if there is one, and return held-out tokens of each layer."""
        stored = load_position(self.folder)
        if stored is None:
            scales, extremes = self.data.scales()
            self.position = Position(0, 0.0, tuple(scales), tuple(extremes))
        else:
            self.position = stored
        self.first = self.position
        _warn_of_extremes(self.settings, self.position)
        sites = zip(self.settings.layers, self.position.scales, strict=True)
        trainers = [LayerTrainer(self.settings, layer, scale, self.device) for layer, scale in sites]
        if stored is not None:
            restore_state(self.folder, trainers)
            logger.info("the training continues after %s steps", f"{stored.step:,}")
        self.log = TrainingLog(self.folder, self.position.step)
        held_out = self.data.held_out_tokens
        self.started = self.saved = time.monotonic()
        self.trainers = trainers  # from now on, there is a state to save
        return held_out

    def _steps(self, held_out: list[torch.Tensor]) -> None:
        self._emit("running")
        every = max(1, self.settings.steps // _LOG_ENTRIES)
        batches = self.data.batches(self.position.step)
        for step in range(self.position.step, self.settings.steps):
            batch = next(batches)
            with deferred_signals():  # a step of all layers, or of none
                measures = [trainer.step(x, step) for trainer, x in zip(self.trainers, batch, strict=True)]
                self.position = replace(self.position, step=step + 1, seconds=self._seconds())
            if (step + 1) % every == 0 or step + 1 == self.settings.steps:
                self._measure(measures, held_out, step)
            self._emit("running")
            if time.monotonic() - self.saved >= self.checkpoint_seconds:
                save_state(self.folder, self.trainers, self.position)
                self.saved = time.monotonic()

    def _measure(self, measures: list[StepMeasures], held_out: list[torch.Tensor], step: int) -> None:
        for trainer, of_batch, tokens in zip(self.trainers, measures, held_out, strict=True):
            of_held_out = trainer.evaluate(tokens)
            self.measures[trainer.layer] = {
                "loss": of_batch.loss,
                "train_fvu": of_batch.fvu,
                "fvu": of_held_out.fvu,
                "l0": of_held_out.l0,
                "n_dead": trainer.n_dead,
            }
        run = {"lr": self.settings.rate(step), "tokens": (step + 1) * self.settings.batch}
        self.log.append(step + 1, self.measures, **run, seconds=round(self.position.seconds, 3))

    def _seconds(self) -> float:
        return self.first.seconds + time.monotonic() - self.started

    def _emit(self, state: str) -> None:
        step, seconds = self.position.step, self._seconds()
        done, took = step - self.first.step, seconds - self.first.seconds
        rate = done / took if took > 0 else 0.0
        values = list(self.measures.values())
        means = {
            name: sum(value[name] for value in values) / len(values) if values else float("nan")
            for name in ("loss", "fvu", "l0")
        }
        is_cuda = self.device.type == "cuda"
        event = TrainingProgress(
            state,
            step=step,
            total_steps=self.settings.steps,
            tokens=step * self.settings.batch,
            seconds=seconds,
            tokens_per_second=rate * self.settings.batch,
            eta_seconds=(self.settings.steps - step) / rate if rate else None,
            host_bytes=self.process.memory_info().rss,
            device_bytes=torch.cuda.memory_allocated(self.device) if is_cuda else 0,
            n_dead=int(sum(value["n_dead"] for value in values)),
            layers=dict(self.measures),
            **means,
        )
        for listener in self.listeners:
            listener(event)

    def _write(self) -> None:
        """Write all autoencoders, then the manifest, then remove the state."""
        for trainer, extremes in zip(self.trainers, self.position.extremes, strict=True):
            path = self.folder.path / layer_folder(trainer.layer, self.settings.component)
            write_sae(path, _sae(trainer, self.data, extremes))
        write_manifest(self.folder.path)
        remove_state(self.folder)


def _sae(trainer: LayerTrainer, data: TrainingTokens, extremes: float) -> Sae:
    """Return the autoencoder in the units of the cube: the scale is folded into biases and threshold."""
    settings, scale = trainer.settings, trainer.scale
    is_top = settings.architecture == "topk"
    threshold = torch.full_like(trainer.b_enc, (trainer.threshold or 0.0) / scale)
    metadata = {
        **sae_metadata(data.cube, trainer.layer, settings.component),
        "training_tokens": settings.n_tokens,
        "training_steps": settings.steps,
        "training_batch": settings.batch,
        "training_k": settings.k,
        "tokens": settings.tokens,
        "where": settings.where,
        "scale": scale,
        "share_of_extreme_norms": extremes,
        "n_dead": trainer.n_dead,
        "dead_after": settings.dead_after,
        "holdout_cluster": settings.holdout_cluster,
        "holdout_share": settings.holdout_share,
        "holdout_seed": settings.seed,
        "lr": settings.lr,
        "seed": settings.seed,
    }
    return Sae(
        layer=trainer.layer,
        component=settings.component,
        architecture=settings.architecture,
        w_enc=trainer.w_enc.t().contiguous(),
        b_enc=trainer.b_enc / scale,
        w_dec=trainer.w_dec,
        b_dec=trainer.b_dec / scale,
        threshold=None if is_top else threshold,
        k=settings.k if is_top else None,
        metadata=metadata,
    )


def _settings_text(data: TrainingTokens) -> bytes:
    return json.dumps({"settings": data.settings.dump()}, indent=2, ensure_ascii=False).encode() + b"\n"


def _remove_left_state(folder: Path) -> None:
    """Remove the state of a run that was killed after its end, unless the folder is read-only."""
    if any(os.path.lexists(folder / name) for name in (STATE, STATES)):
        with suppress(OSError), closing(Folder(folder)) as opened:
            remove_state(opened)


def _remove_former(folder: Folder) -> None:
    """Remove what an earlier run wrote, so that nothing of it is taken for this one."""
    before = None
    with suppress(CorruptError):
        before = stored_settings(folder.path)
    folder.remove(MANIFEST)
    remove_state(folder)
    folder.remove(LOG_FILE)
    if before is not None:
        for layer in before.layers:
            folder.remove_tree(layer_folder(layer, before.component))


def _warn_of_extremes(settings: TrainingSettings, position: Position) -> None:
    extreme = {
        layer: share
        for layer, share in zip(settings.layers, position.extremes, strict=True)
        if share > _MANY_EXTREMES
    }
    if extreme:
        layer = max(extreme, key=lambda layer: extreme[layer])
        warnings.warn(
            f"at {len(extreme)} layers, up to {extreme[layer]:.1%} of tokens (at {layer}) have norms above "
            "10 times the median and dominate the loss; leave them out with tokens=actkit.TokenFilter(...)",
            stacklevel=4,
        )
