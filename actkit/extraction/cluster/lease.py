"""Messages between the coordinator of an extraction and its workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...batch_plan import Plan
from ...config import Config
from ...errors import ActkitError
from ...samples import Samples
from ..models.architecture import Architecture
from ..models.checkpoint import Checkpoint
from ..preflight.preparation import RunPlan
from ..preflight.run_size import RunSize


@dataclass(frozen=True)
class Job:
    """What every worker needs of a run; its size does not depend on the number of samples.

    Parameters
    ----------
    topic
        Topic under which workers send reports.
    size
        Windows and batches, whose plan lacks the lengths and batches of the samples.
    settings
        Attributes of the cube that the machine of a worker has to share.
    threads
        Threads per batch on a CPU; None on other devices.
    cores
        Threads with which the coordinator would check the model.
    first_is_content
        Whether position 0 may be a content token.
    """

    topic: str
    config: Config
    checkpoint: Checkpoint
    architecture: Architecture
    layers: dict[str, tuple[int, ...]]
    size: RunSize
    settings: dict[str, str]
    threads: int | None
    cores: int
    first_is_content: bool

    @classmethod
    def of(cls, prepared: RunPlan, *, topic: str, settings: dict[str, str], cores: int) -> "Job":
        """Return the job of a run."""
        spec, nothing = prepared.spec, np.empty(0, dtype=np.int32)
        config, device = prepared.config, prepared.config.device
        paths = {"out": str(prepared.run.absolute()), "device": device.partition(":")[0]}
        if config.image_column is not None:
            paths["image_root"] = str(config.image_folder.absolute())
        plan = replace(prepared.plan, lengths=nothing, stored=nothing, batches=nothing)
        threads = prepared.attrs.get("threads")
        return cls(
            topic=topic,
            config=config.model_copy(update=paths),
            checkpoint=replace(spec.checkpoint, folder=spec.checkpoint.folder.absolute()),
            architecture=spec.architecture,
            layers=prepared.layers,
            size=replace(prepared.size, plan=plan),
            settings=settings,
            threads=threads if isinstance(threads, int) else None,
            cores=cores,
            first_is_content=spec.measure.first_is_content,
        )


@dataclass(frozen=True)
class WindowInput:
    """The samples of a window, with their part of the plan.

    Parameters
    ----------
    window
        The window.
    rows
        Its rows.
    lengths, stored, batches
        As in :class:`~actkit.batch_plan.Plan`, dims ``(sample,)``.
    image_hashes
        Truncated digests of the images; empty for texts.
    """

    window: int
    rows: Samples
    lengths: np.ndarray
    stored: np.ndarray
    batches: np.ndarray
    image_hashes: bytes

    @classmethod
    def of(cls, prepared: RunPlan, window: int, rows: Samples) -> "WindowInput":
        """Return the input of a window of a run."""
        plan, samples = prepared.plan, prepared.plan.samples_of(window)
        part = slice(samples.start, samples.stop)
        hashes = prepared.spec.measure.image_hashes(samples)
        return cls(window, rows, plan.lengths[part], plan.stored[part], plan.batches[part], hashes)


@dataclass(frozen=True)
class Lease:
    """Consecutive windows that a worker computes.

    Parameters
    ----------
    number
        Number of the lease in this extraction.
    windows
        The windows with their samples.
    seal
        Checksum of the metadata of the cube; empty to load and check the model only.
    """

    number: int
    windows: tuple[WindowInput, ...]
    seal: str = ""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(len(window.rows) for window in self.windows)

    @property
    def tokens(self) -> int:
        """Number of tokens of the prompts."""
        return sum(int(window.lengths.sum()) for window in self.windows)

    def plan(self, whole: Plan) -> Plan:
        """Return a plan that knows the lengths and batches of the samples of this lease only."""
        lengths, stored, batches = (np.zeros(whole.shape.sample, dtype=np.int32) for _ in range(3))
        for window in self.windows:
            samples = whole.samples_of(window.window)
            part = slice(samples.start, samples.stop)
            lengths[part], stored[part], batches[part] = window.lengths, window.stored, window.batches
        return replace(whole, lengths=lengths, stored=stored, batches=batches)

    def rows(self, windows: Sequence[int]) -> Iterator[tuple[int, Samples]]:
        """Yield some windows of this lease, and their rows."""
        for window in self.windows:
            if window.window in windows:
                yield window.window, window.rows


@dataclass(frozen=True)
class LeaseResult:
    """What a worker returns.

    Parameters
    ----------
    seconds
        Time that it took, without loading the model.
    bytes_written
        Bytes committed.
    batch_tokens
        Positions of the largest batch.
    computed
        Windows that were not committed before.
    sum_rule
        Attributes that record the check of the model.
    error
        The error that ends the run, if any.
    """

    seconds: float = 0.0
    bytes_written: int = 0
    batch_tokens: int = 0
    computed: tuple[int, ...] = ()
    sum_rule: dict[str, str | float] = field(default_factory=dict)
    error: ActkitError | None = None
