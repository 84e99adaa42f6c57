"""What a run is asked for, chosen in a notebook."""

from html import escape
from typing import Any, Literal, get_args, get_origin

import ipywidgets

from ..config import Config, check
from ..errors import ActkitError, Fault, FaultsError, InputError
from . import markup
from .layer_choice import echo, layer_counts
from .watching import styled

_FIELDS = (
    "model", "data", "out", "layers", "languages", "tokens", "storage", "max_tokens", "batch_size", "limit"
)  # fmt: skip


class ExtractionForm(ipywidgets.VBox):  # type: ignore[misc]
    """The options that most runs need, checked as they are typed.

    ``actkit.extract(**form.options)`` runs what is chosen; other options go beside it.

    Parameters
    ----------
    **chosen
        What it begins with, by the names of :class:`actkit.config.Config`.

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
            mend = "give it to extract beside the form"
            raise InputError([Fault(name, "is no field of the form", mend) for name in chosen])
        self._told = {name: ipywidgets.HTML() for name in _FIELDS}
        self._plan = ipywidgets.HTML()
        button = ipywidgets.Button(description="Plan", icon="list", tooltip="check everything, run nothing")
        button.on_click(lambda _button: self.plan())
        rows = [ipywidgets.HBox([self.fields[name], self._told[name]]) for name in _FIELDS]
        super().__init__([*rows, button, self._plan], layout=ipywidgets.Layout(max_width="860px"))
        for field in self.fields.values():
            field.observe(lambda _change: self._check(), "value")
        self._check()

    @property
    def options(self) -> dict[str, str]:
        """What is chosen, as :func:`actkit.extract` and :func:`actkit.plan` take it."""
        return {name: field.value.strip() for name, field in self.fields.items() if field.value.strip()}

    def plan(self) -> None:
        """Say what the run will be and take, or everything that is at fault with it; no model is loaded."""
        from ..extraction.engine import plan

        self._plan.value = styled("<span class='figures'>looking at data and model …</span>")
        try:
            told = markup.pairs(plan(trial=False, **self.options).told())
        except FaultsError as error:
            told = markup.faults(error.faults, heading=str(error).splitlines()[0])
        except ActkitError as error:
            told = markup.faults([], heading=str(error))
        self._plan.value = styled(told)

    def _check(self) -> None:
        faults = {fault.where.split(".")[0]: fault for fault in check(self.options)[1]}
        for name, told in self._told.items():
            told.value = escape(faults[name].told) if name in faults else ""
        if "layers" not in faults:
            counts = layer_counts(self.fields["model"].value.strip())
            meaning, fault, _ = echo(self.fields["layers"].value, counts)
            self._told["layers"].value = escape(fault or meaning)
        self._plan.value = ""


def _field(name: str, value: Any) -> Any:
    own = Config.model_fields[name]
    default = "" if own.default is None or own.is_required() else str(own.default)
    choices = get_args(own.annotation) if get_origin(own.annotation) is Literal else ()
    kind = ipywidgets.Dropdown if choices else ipywidgets.Text
    return kind(
        **({"options": choices} if choices else {"placeholder": str(own.description)}),
        value=default if value is None else str(value),
        description=name.replace("_", " "),
        tooltip=str(own.description),
        style={"description_width": "90px"},
        layout=ipywidgets.Layout(width="420px"),
    )
