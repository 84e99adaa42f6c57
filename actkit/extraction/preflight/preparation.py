"""Preparation of a run: checks of all inputs before the model is loaded, and the plan."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ... import layer_spec as grammar
from ...batch_plan import Plan
from ...config import Config
from ...config_faults import check
from ...data_scan import Scan, scan
from ...errors import Fault, InputError
from ...estimates import Estimate, Rates
from ...object_urls import is_url
from ...samples import portions
from ...schema import COMPONENTS, OF_RESIDUAL, VISION, current_options
from ...sources import open_source
from ...store.layout import COORD_CHUNK, CUBE, open_group
from ...store.object_clients import work_folder
from ...store.remote_run import RemoteRun
from ...store.run_folder import check_folder, frozen_folder
from ...yaml_files import read_yaml
from ..capture.spec import Rules, layer_axis
from ..capture.vision import check_vision
from ..models.architecture import Architecture, read_architecture
from ..models.checkpoint import find_checkpoint
from ..models.loader import check_model_options
from ..monitoring.wandb_sink import check_tracking
from ..prompts.encoder import load_encoder
from .plan_summary import summary_lines
from .prompt_lengths import Measure
from .run_metadata import RunSpec, describe_run
from .run_size import RunSize, size_run
from .scan_cache import ScanCache
from .suggestions import find_excess


@dataclass(frozen=True)
class RunPlan:
    """A checked run with its cost, as returned by :func:`actkit.plan`; it prints as a table.

    Parameters
    ----------
    spec
        Options, data and model.
    size
        Windows and batches, and estimates of disk, memory and time.
    attrs
        Attributes of the cube; a run is continued only if they are the same.
    disk_folder, free
        A folder on the disk of the run folder, and the number of bytes free there.
    checking
        Seconds that the checks took.
    rates
        Rates measured by a trial; None without one.
    parts, network
        Number of parts that run at once, and the bandwidth that they share, in gigabits per second.
    scan_cache
        File in which parts of the run store the scan; None if it cannot be stored.
    """

    spec: RunSpec
    size: RunSize
    attrs: dict[str, str | int | float | bool]
    disk_folder: Path
    free: int
    checking: float
    rates: Rates | None = None
    parts: int | None = None
    network: float | None = None
    scan_cache: ScanCache | None = None

    @property
    def config(self) -> Config:
        """The options, :class:`actkit.Config`."""
        return self.spec.config

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Blocks at which each component is kept, sorted."""
        return self.spec.layers

    @property
    def scan(self) -> Scan:
        """Rows of the data that are taken, and those that are skipped, with the reasons."""
        return self.spec.scan

    @property
    def plan(self) -> Plan:
        """Windows and batches; ``tokens``, ``n_windows`` and ``n_batches`` count them."""
        return self.size.plan

    @property
    def estimate(self) -> Estimate:
        """The cost, with ``disk``, ``host`` and ``device`` in bytes, ``time`` in seconds after a trial."""
        return self.size.estimate

    @property
    def run(self) -> Path:
        """The run folder; of a run in an object store, the local folder of its lock, status and log."""
        return _local_folder(self.config)

    @property
    def rules(self) -> Rules:
        """Specification of the outputs that the cube keeps."""
        return Rules(
            self.layers,
            layer_axis(self.layers),
            self.config.keep_tokens,
            self.config.storage,
            self.config.on_nonfinite,
            self.spec.measure.first_is_content,
            self.config.sparse,
        )

    def lines(self) -> list[tuple[str, str]]:
        """Return the name and the text of each line of the table."""
        return summary_lines(
            self.spec,
            self.size,
            free=self.free,
            rates=self.rates,
            parts=self.parts,
            network=self.network,
        )

    def __repr__(self) -> str:
        return "\n".join(f"{name:<14}{text}" for name, text in self.lines())

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        cells = "<tr><th style='{0}'>{1}</th><td style='{0}'>{2}</td></tr>"
        rows = [cells.format("text-align: start", escape(name), escape(text)) for name, text in self.lines()]
        return f"<table>{''.join(rows)}</table>"

    def coords(self) -> dict[str, np.ndarray]:
        """Return the coordinates that are known before the model runs, except those from the rows."""
        axis = layer_axis(self.layers)
        coords = {
            "layer": np.array(axis, dtype=np.int64),
            "sample": np.arange(self.plan.shape.sample, dtype=np.int64),
            "token": np.arange(self.plan.shape.token, dtype=np.int64),
            "prompt_tokens": self.spec.measure.lengths,
            "truncated": self.spec.measure.truncated,
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
        """Yield blocks of the coordinates and labels that come from the rows."""
        for portion in portions(self.spec.source, self.scan, self.config, size=COORD_CHUNK):
            yield {
                "sample_id": portion.sample_id,
                "language": portion.language,
                "text": portion.text,
                **portion.labels,
            }


def prepare(config: str | Path | Config | None, options: Mapping[str, Any]) -> RunPlan:
    """Check a run completely, and plan it.

    Parameters
    ----------
    config
        A YAML file or a config; None if ``options`` contain everything.
    options
        Options that override it, named as in :class:`~actkit.config.Config`.

    Raises
    ------
    InputError
        Lists all faults of options, data, model and output.
    """
    started = time.monotonic()
    checked, faults = _read_options(config, options)
    source, data_faults = open_source(checked)
    if source is not None and source.has_chats:
        checked, chat_faults = _with_chats(checked)
        faults += chat_faults
    # nothing large is downloaded or read before everything else is known to be correct
    checkpoint, model_faults = find_checkpoint(
        checked.model, checked.revision, weights=False, adapter=checked.adapter
    )
    architecture = encoder = measure = scanned = cache = None
    layers: dict[str, tuple[int, ...]] = {}
    if checkpoint is not None:
        architecture, new_faults = read_architecture(checkpoint)
        model_faults += new_faults
    if checkpoint is not None and architecture is not None:
        layers, new_faults = _resolve(checked, architecture)
        model_faults += new_faults
        encoder, new_faults = load_encoder(checkpoint, architecture, checked)
        model_faults += new_faults
        if encoder is not None and source is not None and source.has_chats:
            encoder.description = {
                **encoder.description,
                "prompt": "the turns of each row, in the chat template",
            }
    if source is not None:
        examine: Any = _no_faults
        if encoder is not None and architecture is not None:
            assert checkpoint is not None
            examine = measure = Measure(checked, architecture, encoder, vision=VISION in layers)
            cache = ScanCache.of(_local_folder(checked), checked, source, checkpoint, encoder)
            scanned = cache.load(measure) if cache else None
        if scanned is None:
            # decoded images are large
            at_once = 16 if checked.image_column else 1024
            scanned, data_faults = scan(source, checked, examine, at_once=at_once)
    faults += data_faults + _out_faults(checked) + check_tracking(checked.wandb)
    faults += check_model_options(architecture, checked, checkpoint) + model_faults
    if checkpoint is not None and not faults:
        checkpoint, faults = find_checkpoint(
            checked.model, checkpoint.revision or checked.revision, adapter=checked.adapter
        )
    if faults or source is None or scanned is None or measure is None:
        raise InputError(faults)
    if checkpoint is None or architecture is None or encoder is None:
        raise InputError(faults)
    run = RunSpec(checked, source, scanned, checkpoint, architecture, encoder, layers, measure)
    return replace(_plan_run(run, started), scan_cache=cache)


def _read_options(
    config: str | Path | Config | None, options: Mapping[str, Any]
) -> tuple[Config, list[Fault]]:
    values: dict[str, Any] = {}
    if isinstance(config, Config):
        values = config.model_dump(exclude_unset=True)
    elif config is not None:
        run = frozen_folder(Path(config))
        values, faults = read_yaml(Path(config), follow=run is None)
        if run is not None and values:
            values = {**current_options(values), "out": str(run)}  # the folder may have been moved
        if faults:  # otherwise options of the file would be reported as missing
            raise InputError(faults)
    checked, faults = check(
        {**values, **{name: value for name, value in options.items() if value is not None}}
    )
    if checked is None:
        raise InputError(faults)
    return checked, faults


def _with_chats(config: Config) -> tuple[Config, list[Fault]]:
    """Return a config that formats the chats of the data with the chat template."""
    faults = []
    if config.chat is False:
        faults.append(
            Fault("chat", "the data contain chats, which need the chat template", "leave out chat: false")
        )
    if config.template is not None:
        faults.append(
            Fault("template", "the data contain chats, which have their own template", "leave it out")
        )
    if config.image_column is not None:
        faults.append(
            Fault("image_column", "the data contain chats, whose turns are text", "use a column of texts")
        )
    return config.model_copy(update={"chat": True, "template": None, "image_column": None}), faults


def _resolve(config: Config, architecture: Architecture) -> tuple[dict[str, tuple[int, ...]], list[Fault]]:
    layers, faults = grammar.resolve(grammar.parse(config.layers)[0], architecture.components)
    if layers and not layer_axis(layers):
        hint = "add a block of the decoder, such as residual_0"
        faults.append(Fault("layers", "selects only blocks of the vision tower", hint))
    if VISION in layers and not config.image_column:
        hint = "set image_column to the column of the images"
        faults.append(Fault("layers", "the vision tower needs images", hint))
    if VISION in layers and (unknown := check_vision(architecture)):
        faults += unknown
        del layers[VISION]  # so that it is not measured
    faults += _sparse_faults(config, architecture, layers)
    new = config.generate.max_new_tokens if config.generate else 0
    if architecture.positions is not None and new >= architecture.positions:
        most = architecture.positions
        message = f"{new} new tokens leave no room for a prompt: the model takes {most} tokens"
        faults.append(Fault("generate", message, "reduce max_new_tokens"))
    unsaved = [name for name in OF_RESIDUAL if "save" in config.model_fields_set and name in config.save]
    if layers and unsaved and "residual" not in layers and VISION not in layers:
        message = f"{', '.join(unsaved)} cannot be kept: no layer of `residual` is selected"
        faults.append(Fault("save", message, "add residual layers to `layers`"))
    return layers, faults


def _sparse_faults(
    config: Config, architecture: Architecture, layers: Mapping[str, tuple[int, ...]]
) -> list[Fault]:
    if config.sparse is None:
        return []
    hidden, faults = architecture.hidden, []
    if config.sparse > hidden or hidden >= 2**16:
        hint = "leave it out to keep whole vectors"
        faults.append(Fault("sparse", f"the vectors of the model have {hidden:,} entries", hint))
    if VISION in layers:
        what = "blocks of the vision tower are kept whole"
        faults.append(Fault("sparse", what, "leave it out, or select only blocks of the decoder"))
    return faults


def _no_faults(rows: list[Any]) -> list[str]:
    return [""] * len(rows)


def _plan_run(spec: RunSpec, started: float) -> RunPlan:
    config, boundary = spec.config, spec.architecture.boundary
    run = _local_folder(config)
    # a run is resumed with the batches that it began with, even if this version would choose others
    stored = _stored_batch_tokens(config)
    size = size_run(spec, batch_tokens=stored if isinstance(stored, int) else None)
    new_tokens = config.generate.max_new_tokens if config.generate else 0
    if new_tokens and config.batch_size != 1 and _crosses(boundary, size.plan, new_tokens):
        message = f"some prompts exceed {boundary} tokens during generation, others do not"
        hint = (
            "set batch_size to 1: beyond that length the model rotates all positions of a batch differently"
        )
        raise InputError([Fault("batch_size", message, hint)])
    disk_folder = next(folder for folder in (run, *run.absolute().parents) if folder.is_dir())
    free = sys.maxsize if is_url(config.out) else shutil.disk_usage(disk_folder).free
    if faults := find_excess(spec, size, free):
        raise InputError(faults)
    return RunPlan(
        spec,
        size,
        attrs=describe_run(spec, size.plan, size.batch_tokens),
        disk_folder=disk_folder,
        free=free,
        checking=time.monotonic() - started,
    )


def _local_folder(config: Config) -> Path:
    return work_folder(config.out) if is_url(config.out) else Path(config.out)


def _out_faults(config: Config) -> list[Fault]:
    """Find reasons why a run cannot be written."""
    if not is_url(config.out):
        return check_folder(Path(config.out))
    return check_folder(work_folder(config.out))


def _stored_batch_tokens(config: Config) -> Any:
    """Return the positions per batch with which a run began; None if it has not begun."""
    if is_url(config.out):
        cube = RemoteRun(config.out).cube()
        return None if cube is None else open_group(cube).attrs.get("batch_tokens")
    path = Path(config.out) / CUBE
    return open_group(path).attrs.get("batch_tokens") if path.exists() else None


def _crosses(boundary: int | None, plan: Plan, new_tokens: int) -> bool:
    """Return whether prompts may cross the longrope boundary during generation."""
    return boundary is not None and bool(plan.lengths.min() <= boundary < plan.lengths.max() + new_tokens)
