"""Form for the options of an extraction, for notebooks."""

from html import escape
from typing import Any, Literal, get_args, get_origin

import ipywidgets

from ..config import Config
from ..config_faults import check
from ..demo import MODEL
from ..demo.llm import llm_folder
from ..errors import ActkitError, Fault, FaultsError, InputError
from . import markup
from .layer_choice import echo, layer_counts
from .progress_widget import styled

_FIELDS = (
    "model", "data", "out", "layers", "languages",
    "keep_tokens", "storage", "max_tokens", "batch_size", "limit",
)  # fmt: skip


class ExtractionForm(ipywidgets.VBox):  # type: ignore[misc]
    """The options that most runs need, validated while you type.

    ``actkit.extract(**form.options)`` starts the run; other options can be passed along.

    Parameters
    ----------
    **chosen
        Initial values, named as the fields of :class:`actkit.config.Config`.

    Examples
    --------
    >>> form = ExtractionForm(model="google/gemma-3-4b-it", data="captions.csv", out="runs/gemma")
    >>> form.fields["layers"].value = "0-3"
    >>> form.options["layers"]
    '0-3'
    """

    def __init__(self, **chosen: Any) -> None:
        self.fields = {name: _field(name, chosen.pop(name, None)) for name in _FIELDS}
        if chosen:
            hint = "pass it to extract along with the form's options"
            raise InputError([Fault(name, "is not a field of the form", hint) for name in chosen])
        self._notes = {name: ipywidgets.HTML() for name in _FIELDS}
        self._plan = ipywidgets.HTML()
        button = ipywidgets.Button(
            description="Plan",
            icon="list",
            tooltip="Check the options and the data, without running the model",
        )
        button.on_click(lambda _button: self.plan())
        rows = [ipywidgets.HBox([self.fields[name], self._notes[name]]) for name in _FIELDS]
        super().__init__([*rows, button, self._plan], layout=ipywidgets.Layout(max_width="860px"))
        for field in self.fields.values():
            field.observe(lambda _change: self._check(), "value")
        self._check()

    @property
    def options(self) -> dict[str, Any]:
        """Selected options, as accepted by :func:`actkit.extract` and :func:`actkit.plan`."""
        return {name: field.value.strip() for name, field in self.fields.items() if field.value.strip()}

    def plan(self) -> None:
        """Show the plan of the run and its cost, or all of its faults; the model is not loaded."""
        from ..extraction.run import plan

        self._plan.value = styled("<span class='figures'>checking data and model …</span>")
        try:
            outcome = markup.pairs(plan(trial=False, **self.options).lines())
        except FaultsError as error:
            outcome = markup.faults(error.faults, heading=str(error).splitlines()[0])
        except ActkitError as error:
            outcome = markup.faults([], heading=str(error))
        self._plan.value = styled(outcome)

    def _check(self) -> None:
        faults = {fault.where.split(".")[0]: fault for fault in check(self.options)[1]}
        for name, note in self._notes.items():
            note.value = escape(faults[name].message) if name in faults else ""
        if "layers" not in faults:
            counts = layer_counts(self.fields["model"].value.strip())
            meaning, fault, _ = echo(self.fields["layers"].value, counts)
            self._notes["layers"].value = escape(fault or meaning)
        self._plan.value = ""


def _field(name: str, value: Any) -> Any:
    option = Config.model_fields[name]
    default = "" if option.default is None or option.is_required() else str(option.default)
    choices = get_args(option.annotation) if get_origin(option.annotation) is Literal else ()
    settings: dict[str, Any] = {"placeholder": str(option.description)}
    kind = ipywidgets.Text
    if choices:
        kind, settings = ipywidgets.Dropdown, {"options": choices}
    elif name == "model":
        local = [str(folder) for folder in (MODEL, llm_folder()) if folder]
        kind, settings["options"] = ipywidgets.Combobox, local
    return kind(
        **settings,
        value=default if value is None else str(value),
        description=name.replace("_", " "),
        tooltip=str(option.description),
        style={"description_width": "90px"},
        layout=ipywidgets.Layout(width="420px"),
    )
