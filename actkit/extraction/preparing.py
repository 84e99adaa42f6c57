"""Check everything that a run needs before a model is loaded, and say what it will take."""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .. import layers as grammar
from ..config import Config, check
from ..errors import Fault, InputError
from ..estimates import Rates
from ..planning import Plan
from ..samples import portions
from ..scanning import scan
from ..schema import COMPONENTS, OF_RESIDUAL, VISION
from ..sources import open_source
from ..store.layout import COORD_CHUNK, CUBE, open_group
from ..store.runs import check_folder
from ..yaml_files import read_yaml
from .describing import Checked, describe_run
from .knobs import find_excess
from .measuring import Measure
from .models.checkpoints import find_checkpoint
from .models.loading import Architecture, check_model_options, read_architecture
from .prompts.encoding import load_encoder
from .selection import Rules, layer_axis
from .sizing import Sized, size_up
from .telling import tell_plan
from .tracking import check_tracking
from .vision import check_vision


@dataclass(frozen=True)
class Prepared(Checked, Sized):
    """A run in which nothing is left to be checked, and how it will go.

    Parameters
    ----------
    attrs
        What the cube will say of itself; a run is continued only where this is the same.
    disk_folder, free
        A folder on the disk of the run folder, and bytes that are free there.
    checking
        Seconds that this took.
    rates
        What a trial measured; None where there was none.
    """

    attrs: dict[str, str | int | float | bool]
    disk_folder: Path
    free: int
    checking: float
    rates: Rates | None = None

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.config.out)

    @property
    def rules(self) -> Rules:
        """What is kept of what the blocks give."""
        return Rules(
            self.layers,
            layer_axis(self.layers),
            self.config.tokens,
            self.config.storage,
            self.config.on_nonfinite,
            self.measure.first_is_content,
        )

    def told(self) -> list[tuple[str, str]]:
        """Say in words what it will be and take: of what each line is, and what it says."""
        return tell_plan(self, self, free=self.free, rates=self.rates)

    def __repr__(self) -> str:
        return "\n".join(f"{name:<14}{what}" for name, what in self.told())

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        cells = "<tr><th style='{0}'>{1}</th><td style='{0}'>{2}</td></tr>"
        rows = [cells.format("text-align: start", escape(name), escape(what)) for name, what in self.told()]
        return f"<table>{''.join(rows)}</table>"

    def coords(self) -> dict[str, np.ndarray]:
        """Return the coordinates that are known before the model runs, but for those of the rows."""
        axis = layer_axis(self.layers)
        coords = {
            "layer": np.array(axis, dtype=np.int64),
            "sample": np.arange(self.plan.shape.sample, dtype=np.int64),
            "token": np.arange(self.plan.shape.token, dtype=np.int64),
            "prompt_tokens": self.measure.lengths,
            "truncated": self.measure.truncated,
        }
        for component in COMPONENTS:
            if component in self.layers:
                coords[f"has_{component}"] = np.isin(axis, self.layers[component])
        if self.plan.vision is not None:
            coords |= {
                f"{VISION}/layer": np.array(self.layers[VISION], dtype=np.int64),
                f"{VISION}/sample": coords["sample"],
                f"{VISION}/token": np.arange(self.plan.vision.token, dtype=np.int64),
            }
        return coords

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield what the data say of each sample, and the labels, in blocks."""
        for portion in portions(self.source, self.scan, self.config, size=COORD_CHUNK):
            yield {
                "sample_id": portion.sample_id,
                "language": portion.language,
                "text": portion.text,
                **portion.labels,
            }


def prepare(config: str | Path | Config | None, options: Mapping[str, Any]) -> Prepared:
    """Check a run, whole.

    Parameters
    ----------
    config
        A YAML file, or a config; None where ``options`` say everything.
    options
        Options that go over it, by the names of :class:`~actkit.config.Config`.

    Raises
    ------
    InputError
        With every fault of options, data, model and output.
    """
    started = time.monotonic()
    checked, faults = _read_options(config, options)
    source, data_faults = open_source(checked)
    # nothing large is fetched or read before all else is known to be right
    checkpoint, model_faults = find_checkpoint(checked.model, checked.revision, weights=False)
    architecture = encoder = measure = scanned = None
    layers: dict[str, tuple[int, ...]] = {}
    if checkpoint is not None:
        architecture, found = read_architecture(checkpoint)
        model_faults += found
    if checkpoint is not None and architecture is not None:
        layers, found = _resolve(checked, architecture)
        model_faults += found
        encoder, found = load_encoder(checkpoint, architecture, checked)
        model_faults += found
    if source is not None:
        examine: Any = _sound
        if encoder is not None and architecture is not None:
            examine = measure = Measure(checked, architecture, encoder, vision=VISION in layers)
        # decoded images are large
        scanned, data_faults = scan(source, checked, examine, at_once=16 if checked.image_column else 1024)
    faults += data_faults + check_folder(Path(checked.out)) + check_tracking(checked.wandb)
    faults += check_model_options(architecture, checked) + model_faults
    if checkpoint is not None and not faults:
        checkpoint, faults = find_checkpoint(checked.model, checkpoint.revision or checked.revision)
    if faults or source is None or scanned is None or measure is None:
        raise InputError(faults)
    if checkpoint is None or architecture is None or encoder is None:
        raise InputError(faults)
    run = Checked(checked, source, scanned, checkpoint, architecture, encoder, layers, measure)
    return _planned(run, started)


def _read_options(
    config: str | Path | Config | None, options: Mapping[str, Any]
) -> tuple[Config, list[Fault]]:
    given: dict[str, Any] = {}
    if isinstance(config, Config):
        given = config.model_dump(exclude_unset=True)
    elif config is not None:
        given, faults = read_yaml(Path(config))
        if faults:  # without it, options would seem to be missing
            raise InputError(faults)
    checked, faults = check(
        {**given, **{name: value for name, value in options.items() if value is not None}}
    )
    if checked is None:
        raise InputError(faults)
    return checked, faults


def _resolve(config: Config, architecture: Architecture) -> tuple[dict[str, tuple[int, ...]], list[Fault]]:
    layers, faults = grammar.resolve(grammar.parse(config.layers)[0], architecture.components)
    if layers and not layer_axis(layers):
        mend = "name a block of the decoder too, such as residual_0"
        faults.append(Fault("layers", "names blocks of the vision tower alone", mend))
    if VISION in layers and not config.image_column:
        mend = "name the column of the images in image_column"
        faults.append(Fault("layers", "the vision tower sees nothing without images", mend))
    if VISION in layers and (unknown := check_vision(architecture)):
        faults += unknown
        del layers[VISION]  # nothing of it can be measured
    new = config.generate.max_new_tokens if config.generate else 0
    if architecture.positions is not None and new >= architecture.positions:
        most = architecture.positions
        what = f"{new} new tokens leave no room for a prompt in the {most} that the model takes"
        faults.append(Fault("generate", what, "set max_new_tokens to less"))
    unsaved = [name for name in OF_RESIDUAL if "save" in config.model_fields_set and name in config.save]
    if layers and unsaved and "residual" not in layers and VISION not in layers:
        what = f"{', '.join(unsaved)} cannot be kept: no layer of `residual` is asked for"
        faults.append(Fault("save", what, "add residual layers to `layers`"))
    return layers, faults


def _sound(rows: list[Any]) -> list[str]:
    return [""] * len(rows)


def _planned(checked: Checked, started: float) -> Prepared:
    config, boundary = checked.config, checked.architecture.boundary
    run = Path(config.out)
    # a run goes on with the batches it began with, whatever this version of actkit would choose
    decided = open_group(run / CUBE).attrs.get("batch_tokens") if (run / CUBE).exists() else None
    sized = size_up(checked, batch_tokens=decided if isinstance(decided, int) else None)
    new_tokens = config.generate.max_new_tokens if config.generate else 0
    if new_tokens and config.batch_size != 1 and _crosses(boundary, sized.plan, new_tokens):
        what = f"some prompts pass {boundary} tokens while they are continued, others do not"
        mend = "set batch_size to 1: past that length the model turns all positions of a batch differently"
        raise InputError([Fault("batch_size", what, mend)])
    disk_folder = next(folder for folder in (run, *run.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(disk_folder).free
    if faults := find_excess(checked, sized, free):
        raise InputError(faults)
    return Prepared(
        **vars(checked),
        **vars(sized),
        attrs=describe_run(checked, sized.plan, sized.batch_tokens),
        disk_folder=disk_folder,
        free=free,
        checking=time.monotonic() - started,
    )


def _crosses(boundary: int | None, plan: Plan, new_tokens: int) -> bool:
    """Tell whether prompts may cross a length while they are continued, at which the model changes."""
    return boundary is not None and bool(plan.lengths.min() <= boundary < plan.lengths.max() + new_tokens)
