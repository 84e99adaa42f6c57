"""Extraction form, generated from `Config` and validated as it is filled in."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from html import escape
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import panel as pn
import panel_material_ui as pmui

from actkit.config import Config
from actkit.errors import ActkitError, Fault, InputError
from actkit.layer_spec import COMPONENTS, describe_all
from actkit.store.folders import Folder
from actkit.store.writer import storage_errors
from actkit.tables import FORMATS
from actkit.widgets import markup
from actkit.widgets.background import in_background
from actkit.widgets.layer_choice import echo, layer_counts
from actkit.widgets.panel_style import ACCORDION, heading, html
from actkit.yaml_files import read_yaml

from ..allowed_paths import inside
from ..choices import BUNDLED_DATA, BUNDLED_MODEL, data_files, data_of, models, preview
from ..form import COLUMNS, FIRST, from_options, options, read_form
from ..jobs import Jobs
from ..planner import Planned, Planner
from ..settings import Settings
from ..uploads import Upload
from .form_fields import WIDE, cell, cluster_choice, table, widget_of

_NONE = "(none)"


class ExtractForm(pn.viewable.Viewer):  # type: ignore[misc]
    """Form with the options of a run; ``start`` holds the plan and the buttons.

    Parameters
    ----------
    settings, jobs, planner
        Services of the server.
    started
        Called with the name of each run that was started.
    """

    def __init__(
        self, settings: Settings, jobs: Jobs, planner: Planner, started: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._settings, self._jobs, self._planner, self._started = settings, jobs, planner, started
        self._config: Config | None = None
        self._counts: dict[str, int] = {}
        self._is_setting = False  # while several widgets are set, which are checked once
        self._make_widgets()
        self._view = self._lay_out()
        self.start = self._lay_out_start()
        self.set_values({"model": BUNDLED_MODEL, "data": BUNDLED_DATA})

    def __panel__(self) -> Any:
        return self._view

    # widgets

    def _make_widgets(self) -> None:
        self._make_input_widgets()
        self._make_layer_widgets()
        self._make_option_fields()
        self._make_run_widgets()
        self._make_config_widgets()
        for upload in (self._upload, self._load):
            upload.param.watch(lambda event: self._respond(event.new), "fault")

    def _make_input_widgets(self) -> None:
        settings = self._settings
        chooser = pmui.AutocompleteInput if settings.typed_models else pmui.Select
        free = {"restrict": False} if settings.typed_models else {}
        self._model = chooser(label="Model", options=list(models(settings)), **free, **WIDE)
        self._data = pmui.Select(label="Prompts", options=list(data_files(settings)), **WIDE)
        self._preview = html(sizing_mode="stretch_width", margin=(6, 6))
        self._upload = Upload(
            label="Upload prompts",
            accept=",".join(FORMATS),
            max_file_size=settings.max_upload,
            variant="text",
        )
        self._model.param.watch(self._layers_changed, "value")
        self._data.param.watch(self._data_changed, "value")
        self._upload.param.watch(self._uploaded, "value")

    def _make_layer_widgets(self) -> None:
        self._layers = pmui.TextInput(label="Layers", value="all", **WIDE)
        self._strip = pmui.CheckButtonGroup(
            label="Layer selection",
            options=[],
            size="small",
            sx={"flexWrap": "wrap", "& .MuiButtonBase-root": {"width": "auto", "flex": "0 0 auto"}},
            sizing_mode="stretch_width",
            margin=(0, 6),
        )
        self._components = pmui.CheckButtonGroup(
            label="Components", options=[], value=["residual"], size="small", margin=(6, 6)
        )
        self._meaning = html(margin=(0, 8))
        self._layers.param.watch(self._layers_changed, "value_input")
        self._strip.param.watch(self._layers_clicked, "value")
        self._components.param.watch(self._layers_clicked, "value")

    def _make_option_fields(self) -> None:
        self._fields: dict[str, Any] = {option.name: widget_of(option) for option in options()}
        for name in ("text_column", "language_column", "id_column"):
            self._fields[name] = pmui.Select(label=self._fields[name].label, options=[], **WIDE)
        self._fields["labels"] = pmui.MultiChoice(label="Labels", options=[], **WIDE)
        self._fields["languages"] = pmui.MultiChoice(label="Languages", options=[], placeholder="all", **WIDE)
        for field in self._fields.values():
            field.param.watch(self._changed, "value")

    def _make_run_widgets(self) -> None:
        self._name = pmui.TextInput(label="Run name", value=_fresh_name(), **WIDE)
        self._cluster = cluster_choice(self._settings.clusters)
        self._start = pmui.Button(label="Start", color="primary", icon="play_arrow", size="large")
        self._estimate = pmui.Button(label="Estimate time", variant="outlined", icon="schedule", size="large")
        self._planned = html(sizing_mode="stretch_width", margin=(6, 6))
        # separate, so that a check in another thread does not erase the response to a click
        self._fault_alert, self._response_alert = (
            pmui.Alert(visible=False, severity="error", sizing_mode="stretch_width") for _ in range(2)
        )
        self._start.on_click(self._start_run)
        self._estimate.on_click(lambda _event: self.show_plan(trial=True))

    def _make_config_widgets(self) -> None:
        self._load = Upload(
            label="Load YAML", accept=".yaml,.yml", max_file_size=self._settings.max_yaml, variant="text"
        )
        self._save = pmui.FileDownload(
            label="Download YAML", callback=self._yaml, filename="config.yaml", variant="text"
        )
        self._load.param.watch(self._loaded, "value")

    def _lay_out(self) -> Any:
        columns = pn.FlexBox(*(cell(self._fields[name]) for name in COLUMNS))
        first = pn.FlexBox(*(cell(self._fields[name]) for name in FIRST))
        rest = [name for name in self._fields if name not in (*FIRST, *COLUMNS)]
        self._rest = rest
        more = pn.FlexBox()
        self._more = pmui.Accordion(
            ("More options", more), title_variant="h3", sx=ACCORDION, sizing_mode="stretch_width"
        )
        # created on demand, because the fields are many and rarely used

        def fill(_event: Any) -> None:
            if not more.objects:
                more.objects = [cell(self._fields[name]) for name in rest]

        self._more.param.watch(fill, "active")
        return pn.Column(
            heading("Model and prompts"),
            pn.FlexBox(cell(self._model, 420), cell(self._data, 420)),
            self._upload,
            self._preview,
            columns,
            heading("Layers and options"),
            pn.FlexBox(cell(self._layers, 420), self._components),
            self._strip,
            self._meaning,
            first,
            self._more,
            sizing_mode="stretch_width",
        )

    def _lay_out_start(self) -> Any:
        return pn.Column(
            heading("Plan"),
            self._planned,
            self._fault_alert,
            self._response_alert,
            self._name,
            self._cluster,
            pn.FlexBox(self._start, self._estimate, self._save, self._load, gap="8px"),
            sizing_mode="stretch_width",
        )

    # values

    @property
    def values(self) -> dict[str, Any]:
        """Values of the fields, as :func:`app.form.read_form` accepts them."""
        fields = {name: widget.value for name, widget in self._fields.items()}
        fields |= {name: None for name in ("language_column", "id_column") if fields[name] == _NONE}
        return fields | {
            "model": self._model.value,
            "data": self._data.value,
            "layers": self._layers.value_input or self._layers.value,
        }

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Fill in fields, then check all of them once."""
        with self._setting():
            if "model" in values:
                self._model.value = values["model"]
            if "data" in values:
                self._data.value = values["data"]
            self._show_data()
            for name, value in values.items():
                if name in self._fields:
                    several = name in ("labels", "languages") and isinstance(value, str)
                    self._fields[name].value = value.split(",") if several else value
            if "layers" in values:
                self._layers.value = self._layers.value_input = values["layers"]
            self._show_layers()
        self._check()

    def _yaml(self) -> StringIO:
        config, _, _ = read_form(self._settings, self.values)
        return StringIO(config.to_yaml() if config else "# the form has errors, shown at its fields\n")

    @contextmanager
    def _setting(self) -> Iterator[None]:
        """Suppress checks while several widgets are set; the caller checks them once."""
        before, self._is_setting = self._is_setting, True
        try:
            yield
        finally:
            self._is_setting = before

    # events

    def _changed(self, _event: Any = None) -> None:
        if not self._is_setting:
            self._check()

    def _data_changed(self, _event: Any) -> None:
        if not self._is_setting:
            self._show_data()
            self._check()

    def _layers_changed(self, _event: Any) -> None:
        if not self._is_setting:
            self._show_layers()
            self._check()

    def _layers_clicked(self, _event: Any) -> None:
        if self._is_setting or not self._counts:
            return
        every = tuple(self._strip.value)
        chosen = {name: every for name in COMPONENTS if name in self._components.value and name != "vision"}
        if "vision" in self._components.value:
            chosen["vision"] = tuple(range(self._counts["vision"]))
        with self._setting():
            self._layers.value = self._layers.value_input = describe_all(chosen)
        self._show_layers()
        self._check()

    def _show_layers(self) -> None:
        """Describe the layer specification and select its layers in the buttons."""
        model = models(self._settings).get(self._model.value or "", self._model.value or "")
        self._counts = layer_counts(model)
        spec = self._layers.value_input or self._layers.value
        meaning, fault, chosen = echo(spec, self._counts)
        self._meaning.object = escape(meaning)
        self._layers.param.update(error_state=bool(fault), helper_text=fault)
        with self._setting():
            count = self._counts.get("residual", 0)
            self._strip.param.update(options=list(range(count)), value=list(chosen))
            kept = [name for name in COMPONENTS if name in self._counts]
            named = {part.split(":")[0] for part in meaning.split("; ") if ":" in part}
            components = [name for name in kept if name in named or (name == "residual" and chosen)]
            self._components.param.update(options=kept, value=components)

    def _show_data(self) -> None:
        """Show the first rows, and fill in the guessed roles of the columns."""
        try:
            previewed = preview(self._settings, data_of(self._settings, self._data.value or ""))
        except (InputError, OSError) as error:
            self._preview.object = f"<p role='alert'>{escape(str(error))}</p>"
            return
        self._preview.object = table(previewed)
        with self._setting():
            columns = list(previewed.columns)
            self._fields["text_column"].param.update(options=columns, value=previewed.text)
            for name, value in (("language_column", previewed.language), ("id_column", previewed.name)):
                self._fields[name].param.update(options=[_NONE, *columns], value=value or _NONE)
            self._fields["labels"].param.update(options=columns, value=list(previewed.labels))
            self._fields["languages"].param.update(options=list(previewed.languages), value=[])

    def _check(self) -> None:
        """Show each error at its field."""
        self._config, faults, _ = read_form(self._settings, self.values)
        widgets = {"model": self._model, "data": self._data, **self._fields}
        for name, widget in widgets.items():
            if "error_state" in widget.param:
                widget.param.update(error_state=name in faults, helper_text=faults.get(name, ""))
        if "layers" in faults:
            self._layers.param.update(error_state=True, helper_text=faults["layers"])
        wrong = [
            text for name, text in faults.items() if name == "" or "error_state" not in widgets[name].param
        ]
        self._fault_alert.param.update(title=wrong[0] if wrong else "", visible=bool(wrong))
        if faults.keys() & self._rest:
            self._more.active = [0]
        self._start.disabled = self._estimate.disabled = bool(faults)
        self._planned.object = "" if self._config else "<p>Fix the marked fields to see the plan.</p>"
        if self._config and pn.state.loaded:
            self.show_plan(trial=False)

    def show_plan(self, *, trial: bool) -> None:
        """Show the plan of the run, computed in a server thread if there is one."""
        config = self._config
        if config is None:
            return
        self._planned.loading = True

        def ask() -> None:
            planned = self._planner.plan(config, trial=trial)
            if config is self._config:  # unchanged in the meantime
                self._planned.param.update(object=_rows(planned), loading=False)

        in_background(ask)

    def _start_run(self, _event: Any) -> None:
        if self._config is None:
            return
        name = self._name.value_input or self._name.value
        try:
            self._jobs.start(name, self._config, self._cluster.value)
        except (ActkitError, OSError) as error:
            self._respond(str(error))
            return
        self._respond("")
        self._name.value = _fresh_name()
        self._started(name)

    def _uploaded(self, event: Any) -> None:
        if event.new is None:
            return
        try:
            path = self._keep(str(self._upload.filename), event.new)
        except (ActkitError, OSError) as error:
            self._respond(str(error))
            return
        self._respond("")
        self._data.options = list(data_files(self._settings))
        self._data.value = path.name

    def _keep(self, name: str, content: bytes) -> Path:
        """Save an uploaded file under the name given by the browser."""
        path = inside(self._settings.data, Path(name).name, "file", longest=self._settings.max_name)
        if path.suffix.lower() not in FORMATS:
            raise InputError([Fault(name, "is not a prompt file", f"use {', '.join(FORMATS)}")])
        with storage_errors("cannot save", "nothing was saved"):
            path.parent.mkdir(
                parents=True, exist_ok=True
            )  # missing if the workspace was read-only at startup
            with closing(Folder(path.parent)) as folder, folder.writing(path.name, len(content)):
                try:
                    with path.open("xb") as file:
                        file.write(content)
                except FileExistsError as error:
                    fault = Fault(name, "already exists", "choose it from the list, or rename your file")
                    raise InputError([fault]) from error
                except OSError:
                    path.unlink(missing_ok=True)
                    raise
        return path

    def _loaded(self, event: Any) -> None:
        if event.new is None:
            return
        asked, faults = _read_upload(event.new)
        values, more = from_options(self._settings, asked)
        if not faults:
            self.set_values(values)
        self._respond("; ".join(map(str, [*faults, *more])))

    def _respond(self, text: str) -> None:
        self._response_alert.param.update(title=text, visible=bool(text))


def _read_upload(content: bytes) -> tuple[dict[str, Any], list[Fault]]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "the file")
        path.write_bytes(content)
        options, faults = read_yaml(path)
    return options, [replace(fault, where=fault.where.removeprefix(f"{folder}/")) for fault in faults]


def _rows(planned: Planned) -> str:
    if planned.heading:
        return markup.faults(planned.faults, heading=planned.heading)
    return markup.pairs(planned.rows)


def _fresh_name() -> str:
    return time.strftime("run-%Y%m%d-%H%M%S")
