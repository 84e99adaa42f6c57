"""Writes the page, its figures and its tables."""

import os
from collections import Counter
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import holoviews as hv
import pandas as pd
import xarray as xr
from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment

from ..errors import Fault, InputError
from ..plots.style import figure, load_matplotlib
from ..stats import parts
from ..store.runs import replace_text
from .sections import Choice, Section, choose, sections

_MOST_ROWS = 400  # of a table in the page; files have all
_FACTS = (
    ("model", "model"),
    ("revision", "revision"),
    ("weights", "dtype"),
    ("data", "data"),
    ("storage", "storage"),
    ("tokens kept", "tokens_kept"),
)


def report(
    cube: xr.Dataset,
    *,
    out: str | Path,
    by: str | None = None,
    pairs: str | None = None,
    values: str = "pooled",
    figures: bool = False,
    tables: bool = False,
) -> Path:
    """Write one HTML page that says what a cube shows.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`; a partial one too.
    out
        The file; what is there is replaced once the page is complete. With ``figures`` and ``tables``,
        folders of these names are made beside it.
    by
        The label column of two groups; by default `gender`, or the first with two values; "" for none.
    pairs
        The label column of samples that are not independent; by default what twins share, else `image_id`.
    values
        ``pooled`` or ``last``.
    figures
        Whether to write each picture as PNG and SVG too.
    tables
        Whether to write each table as CSV too.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    InputError
        Where there is no such label, or the file cannot be written.
    """
    out = Path(out)
    _check(out)
    choice = choose(cube, by, pairs, values)
    if figures:
        load_matplotlib()
    noted, made = _cautions(cube), []
    for section, more in sections(cube, choice):
        made.append(section)
        noted += more
    if tables:
        _write_tables(out, made)
    if figures:
        _write_figures(out, made)
    replace_text(out, _page(cube, choice, made, noted))
    return out


def _check(out: Path) -> None:
    if out.suffix not in (".html", ".htm"):
        raise InputError([Fault("out", f"{out} is no HTML file", "end it in .html")])
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else "is in no folder that exists"
        raise InputError([Fault("out", f"{out} {what}", "give a file in a folder that exists")])
    if not os.access(out.absolute().parent, os.W_OK):
        raise InputError(
            [Fault("out", f"{out.absolute().parent} may not be written to", "choose another folder")]
        )


def _cautions(cube: xr.Dataset) -> list[str]:
    """Return what whoever reads the numbers should know first."""
    said, count = [], cube.sizes["sample"]
    truncated = int(cube.truncated.sum()) if "truncated" in cube.coords else 0
    if truncated:
        said.append(f"max_tokens cut {truncated:,} of {count:,} texts.")
    skipped = int(cube.attrs.get("skipped_rows", 0))
    if skipped:
        said.append(f"{skipped:,} rows of the data were skipped; skipped.jsonl in the run folder lists them.")
    if "nonfinite" in cube:
        met = int(cube.nonfinite.sum())
        if met:
            said.append(f"The model gave {met:,} values that are NaN or infinite.")
    for language, places in parts.languages(cube):
        if len(places) < 100:
            said.append(f"{language} has {len(places)} samples: intervals are wide.")
    return said


def _page(cube: xr.Dataset, choice: Choice, made: list[Section], noted: list[str]) -> str:
    renderer = hv.renderer("bokeh")
    shown = {
        f"{section.name} {name}": renderer.get_plot(picture).state
        for section in made
        for name, picture in section.pictures.items()
    }
    script, divs = components(shown) if shown else ("", {})
    template = files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    model = "/".join(Path(str(cube.attrs.get("model", "a model"))).parts[-2:])
    languages = Counter(cube.language.values.astype(str).tolist())
    counts = ", ".join(f"{count:,} {language}" for language, count in languages.items())
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=f"{model}: layer by layer",
            subtitle=f"{cube.sizes['sample']:,} samples ({counts}), {cube.sizes['layer']} layers",
            resources=_scripts(),
            script=script,
            warnings=noted,
            sections=[
                {
                    "name": section.name,
                    "title": section.title,
                    "sentences": section.sentences,
                    "methods": section.methods,
                    "divs": [divs[f"{section.name} {name}"] for name in section.pictures],
                    "tables": [
                        {"name": name.replace("_", " "), "html": _html(result)}
                        for name, result in section.results.items()
                    ],
                }
                for section in made
            ],
            facts=_facts(cube, choice),
        )
    )


def _scripts() -> str:
    """Return Bokeh's own code: what Panel puts beside it is for pages that have a server."""
    return "\n".join(
        f"<script>{code}</script>" for code in Resources(mode="inline", components=["bokeh"]).js_raw
    )


def _facts(cube: xr.Dataset, choice: Choice) -> list[tuple[str, str]]:
    attrs = cube.attrs
    facts = [(label, str(attrs[name])) for label, name in _FACTS if attrs.get(name)]
    facts.append(("layers", ", ".join(map(str, cube.layer.values.tolist()))))
    for name in parts.label_names(cube):
        values = Counter(parts.column(cube, name, "label").tolist())
        shown = ", ".join(f"{value or '(none)'} {count:,}" for value, count in values.most_common(6))
        facts.append((name, shown if len(values) <= 6 else f"{len(values):,} different values"))
    facts.append(("compared", choice.by or "nothing"))
    facts.append(("groups of samples", choice.pairs or "each sample stands alone"))
    known = {name for _, name in _FACTS} | {"skipped"}
    facts += [(name, str(value)) for name, value in attrs.items() if name not in known]
    facts.append(("analysed with", f"actkit {version('actkit')}"))
    return facts


def table_of(result: xr.Dataset) -> pd.DataFrame:
    """Return a result as a table, a row for each combination of its labels; vectors are left out."""
    small = result.drop_vars([name for name, values in result.data_vars.items() if "hidden" in values.dims])
    small = small.drop_vars([name for name in small.coords if name not in small.dims])
    dims = max((values.dims for values in small.data_vars.values()), key=len)
    kept = small[[name for name, values in small.data_vars.items() if set(values.dims) <= set(dims)]]
    return kept.to_dataframe(dim_order=[dim for dim in dims if dim in kept.dims]).reset_index()


def _html(result: xr.Dataset) -> str:
    table = table_of(result).head(_MOST_ROWS)
    return str(
        table.to_html(
            index=False, escape=True, border=0, float_format=lambda value: f"{value:.4g}", na_rep="–"
        )
    )


def _write_tables(out: Path, made: list[Section]) -> None:
    folder = out.with_name(f"{out.stem}_tables")
    folder.mkdir(exist_ok=True)
    for section in made:
        for name, result in section.results.items():
            table_of(result).to_csv(folder / f"{name}.csv", index=False)


def _write_figures(out: Path, made: list[Section]) -> None:
    folder = out.with_name(f"{out.stem}_figures")
    folder.mkdir(exist_ok=True)
    for section in made:
        for name, picture in section.pictures.items():
            for kind in ("png", "svg"):
                figure(picture, folder / f"{name}.{kind}")
