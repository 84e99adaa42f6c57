"""Settings of the training of autoencoders, their defaults, and the checks before a run."""

import json
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from ..errors import ChangedError, CorruptError, Fault
from ..regular_files import MB, read_regular
from ..schema import Component

TrainedArchitecture = Literal["batchtopk", "topk"]
SETTINGS_FILE = "training.json"
TOKENS_PER_FEATURE = 100  # fewer make features that another seed does not find again
_FEWEST_STEPS = 1000
_DEAD_AFTER, _DEAD_SHARE = 10**7, 0.2  # tokens, and share of all tokens of a run
_LEAST = {"width": 2, "k": 1, "steps": 1, "epochs": 1, "batch": 2, "seed": 0}
_WARM_UP, _DECAY = 0.05, 0.2  # shares of the steps


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything that the weights of a run depend on, besides the activations.

    Parameters
    ----------
    layers, component, hidden
        Site and width of the activations.
    width, k, architecture
        Number of features, mean number of active ones, and how these are chosen.
    tokens, where
        Selection of tokens and samples, as text.
    holdout_cluster, holdout_share
        Label whose values are held out as a whole ("" for single samples), and the share of them.
    steps, batch, lr, seed
        Number of steps, tokens in each, peak learning rate, and seed.
    dead_after
        Number of tokens without activation after which a feature is dead.
    n_tokens
        Number of training tokens.
    buffer_bytes, is_held
        Memory for tokens, and whether all of them fit into it; both determine the order.
    device
        Kind of device.
    model, cube_sha256
        Model, and checksum of the cube's metadata; "" if unknown.
    """

    layers: tuple[int, ...]
    component: Component
    hidden: int
    width: int
    k: int
    architecture: TrainedArchitecture
    tokens: str
    where: str
    holdout_cluster: str
    holdout_share: float
    steps: int
    batch: int
    lr: float
    seed: int
    dead_after: int
    n_tokens: int
    buffer_bytes: int
    is_held: bool
    device: str
    model: str
    cube_sha256: str

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, constant, linear to 0 at the end."""
        warm_up, decay = max(1, round(_WARM_UP * self.steps)), max(1, round(_DECAY * self.steps))
        return self.lr * min(1.0, (step + 1) / warm_up, (self.steps - step) / decay)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches of the training tokens."""
        return self.n_tokens // self.batch

    def dump(self) -> dict[str, Any]:
        """Return the settings for a JSON file."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> "TrainingSettings":
        """Return settings from a JSON file.

        Raises
        ------
        ValueError
            If one is missing or malformed.
        """
        try:
            return TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error


def stored_settings(folder: Path) -> TrainingSettings | None:
    """Return the settings of a run that was begun in a folder; None if there is none.

    Raises
    ------
    CorruptError
        If they cannot be read.
    """
    path = folder / SETTINGS_FILE
    try:
        return TrainingSettings.load(json.loads(read_regular(path, MB, follow=False))["settings"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        fault = Fault(str(path), f"cannot be read: {error}", "start anew with resume=False")
        raise CorruptError([fault]) from error


def default_steps(n_tokens: int, batch: int) -> int:
    """Return the number of steps by default: one pass over the tokens, but at least 1,000 steps."""
    return max(n_tokens // batch, _FEWEST_STEPS)


def default_rate(width: int) -> float:
    """Return the peak learning rate for a number of features (Gao et al. 2024, appendix A)."""
    return float(2e-4 / (width / 2**14) ** 0.5)


def dead_after(steps: int, batch: int) -> int:
    """Return after how many tokens a feature counts as dead."""
    return min(_DEAD_AFTER, round(_DEAD_SHARE * steps * batch))


def check_options(options: Mapping[str, Any]) -> list[Fault]:
    """Return faults of the options of :func:`actkit.train_saes` that are known without the cube."""
    faults = [
        Fault(name, f"is {value!r}", f"give an integer of at least {least}")
        for name, least in _LEAST.items()
        if (value := options[name]) is not None and not _is_integer(value, least)
    ]
    if options["architecture"] not in get_args(TrainedArchitecture):
        hint = "batchtopk or topk; others can be read with actkit.load_saes"
        faults.append(Fault("architecture", f"{options['architecture']!r} cannot be trained", hint))
    if options["steps"] is not None and options["epochs"] is not None:
        faults.append(Fault("epochs", "is given besides steps", "give one of them"))
    rate = options["lr"]
    if rate is not None and not (_is_number(rate) and isfinite(rate) and 0 < rate < 1):
        faults.append(Fault("lr", f"is {rate!r}", "give a number above 0 and below 1, such as 0.0005"))
    seconds = options["checkpoint_seconds"]
    if not (_is_number(seconds) and seconds >= 0):
        faults.append(Fault("checkpoint_seconds", f"is {seconds!r}", "give a number of seconds"))
    return faults


def with_plain_integers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return checked options with integers of NumPy as those of Python, which JSON files need."""
    integers = {name: int(options[name]) for name in _LEAST if options[name] is not None}
    return {**options, **integers}


def check_sizes(width: int, k: int, n_tokens: int) -> list[Fault]:
    """Return faults of the number of features, given the number of training tokens."""
    faults = []
    if k > width:
        faults.append(Fault("k", f"is {k:,}, but there are {width:,} features", "give a smaller k"))
    elif 2 * k > width:
        what = f"is {k:,}, more than half of the {width:,} features, which is not sparse"
        faults.append(Fault("k", what, "give a smaller k, or a larger width"))
    if n_tokens < width:
        what = f"is {width:,}, but there are only {n_tokens:,} training tokens"
        faults.append(
            Fault("width", what, "give a smaller width, extract more texts, or load published SAEs")
        )
    return faults


def check_same(before: TrainingSettings, now: TrainingSettings, out: str) -> None:
    """Check that a run is continued with the settings that it began with.

    Raises
    ------
    ChangedError
        If settings differ; the message names each.
    """
    old, new = before.dump(), now.dump()
    faults = [
        Fault(name, f"was {_shown(old[name])}, and is now {_shown(new[name])}", _hint(name))
        for name in old
        if old[name] != new[name]
    ]
    if faults:
        raise ChangedError(
            faults, f"cannot continue the training in {out}: restore these settings, or use another folder"
        )


def _hint(name: str) -> str:
    return {
        "cube_sha256": "the cube was written anew",
        "n_tokens": "the samples or the selected tokens changed",
    }.get(name, "")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:60] or "unknown"


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
