"""Searchable list of the samples of a cube with their texts, usable by mouse and keyboard."""

from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from ..stats import selection

_ROWS = 10
_LONGEST = 200  # characters of a text
_LOOK = {
    "justifyContent": "flex-start",
    "textAlign": "start",
    "textTransform": "none",
    "overflowWrap": "anywhere",
}


class SampleList(pn.viewable.Viewer):  # type: ignore[misc]
    """Paginated list of samples, each a button.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    """

    sample = param.Integer(-1, doc="the selected sample; -1 for none")

    def __init__(self, cube: xr.Dataset, **chosen: Any) -> None:
        super().__init__(**chosen)
        self._numbers = cube.sample.values
        self._texts = cube.text.values.astype(str)
        named = ("language", *selection.label_names(cube))
        labels = (selection.column(cube, name, "label").cell_texts() for name in named)
        self._labels = [values for values in labels if len(np.unique(values)) > 1]
        self._found = np.arange(len(self._numbers))
        self._find = pmui.TextInput(label="Search texts", width=300, margin=(6, 6))
        self._pages = pmui.Pagination(count=1, value=0, size="small", margin=(6, 6))
        self._buttons = [
            pmui.Button(
                label="",
                variant="text",
                color="default",
                size="small",
                sx=_LOOK,
                margin=(0, 6),
                sizing_mode="stretch_width",
            )
            for _ in range(_ROWS)
        ]
        for place, button in enumerate(self._buttons):
            button.on_click(lambda _event, place=place: self._choose(place))
        self._find.param.watch(self._look, "value")
        self._pages.param.watch(self._show, "value")
        self.param.watch(self._show, "sample")
        self._look()
        if len(at := np.flatnonzero(self._numbers == self.sample)):
            self._pages.value = int(at[0]) // _ROWS
        self._view = pn.Column(self._find, *self._buttons, self._pages, sizing_mode="stretch_width")

    def __panel__(self) -> Any:
        return self._view

    def _look(self, *_events: Any) -> None:
        """Find the samples whose texts contain the search string."""
        asked = self._find.value.casefold()
        self._found = np.flatnonzero([asked in text.casefold() for text in self._texts])
        self._pages.param.update(count=max(1, -(-len(self._found) // _ROWS)), value=0)
        self._find.helper_text = f"{len(self._found):,} of {len(self._texts):,} samples"
        self._show()

    def _on_page(self) -> np.ndarray:
        start = (self._pages.value or 0) * _ROWS
        return self._found[start : start + _ROWS]

    def _show(self, *_events: Any) -> None:
        rows = self._on_page()
        for place, button in enumerate(self._buttons):
            if place < len(rows):
                at = rows[place]
                is_chosen = self._numbers[at] == self.sample
                button.param.update(
                    label=self._line(at), visible=True, variant="outlined" if is_chosen else "text"
                )
            else:
                button.visible = False

    def _line(self, at: int) -> str:
        """Return the line of a sample; its text keeps its own writing direction."""
        text = self._texts[at]
        text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
        fields = [str(self._numbers[at]), *(values[at] or "–" for values in self._labels)]
        return f"{' · '.join(fields)} · \N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"

    def _choose(self, place: int) -> None:
        self.sample = int(self._numbers[self._on_page()[place]])
