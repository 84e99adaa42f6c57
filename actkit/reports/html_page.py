"""Write the report page, its figures and its tables."""

import csv
import os
import re
import warnings
from collections import Counter
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import holoviews as hv
import pandas as pd
import xarray as xr
from bokeh.document import Document
from bokeh.embed import components
from bokeh.model import Model
from bokeh.resources import Resources
from jinja2 import Environment
from tqdm import tqdm

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError
from ..plots.style import figure, load_matplotlib
from ..stats import selection
from ..stats.finiteness import finite_cube
from ..store.run_folder import replace_text
from . import findings, summaries
from .section import Choice, Section
from .sections import choose, sections, titles
from .summaries import Summaries, is_unmodified

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MOST_ROWS = 400  # per table in the page; the files have all
_FACTS = (
    ("model", "model"),
    ("revision", "model_revision"),
    ("weights", "weights_dtype"),
    ("data", "data"),
    ("storage", "storage"),
    ("tokens kept", "tokens_kept"),
)


def report(
    cube: Cube,
    *,
    out: str | Path,
    by: str | None = None,
    cluster: str | None = selection.AUTO,
    vectors: selection.Pooling = "pooled",
    figures: bool = False,
    tables: bool = False,
    progress: bool = False,
) -> Path:
    """Write an HTML report of a cube.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, complete or partial.
    out
        The HTML file, replaced only once the new page is complete. With ``figures`` and ``tables``, folders
        whose names end in ``_figures`` and ``_tables`` are created next to it.
    by
        Label column that defines the two groups; by default `gender`, or else the first label with two
        values; "" for none.
    cluster
        The label that dependent samples share; by default detected (see "Dependent
        samples" in the methods). None if all samples are independent.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    figures
        Whether to write each figure as PNG and SVG too.
    tables
        Whether to write each table as CSV too.
    progress
        Whether to show which section is being computed, in a terminal.

    Returns
    -------
    pathlib.Path
        The HTML file.

    Raises
    ------
    InputError
        If the cube lacks the label or the file cannot be written.

    Notes
    -----
    Results for a whole cube are cached in the folder ``summaries`` of its run, which the explorer uses too.
    """
    out = Path(out)
    _check(out)
    whole = as_cube(cube)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        cube = finite_cube(whole)
    choice = choose(cube, by, cluster, vectors)
    if figures:
        load_matplotlib()
    noted, made = [*_cautions(whole), *(f"{warning.message}." for warning in caught)], []
    if choice.warning:
        noted.append(f"{choice.warning[0].upper()}{choice.warning[1:]}")
    is_cached = is_unmodified(whole)
    compute = partial(Summaries().get_several if is_cached else summaries.compute, whole)
    known = {str(warning.message) for warning in caught}
    titled = [title for _, title, _ in titles(cube, choice)]
    with tqdm(total=len(titled), unit=" sections", disable=None if progress else True) as bar:
        bar.set_description(titled[0])
        for place, (section, more) in enumerate(sections(cube, choice, compute, known), start=1):
            made.append(section)
            noted += more
            bar.set_description(titled[place] if place < len(titled) else "report")
            bar.update()
    if tables:
        _write_tables(out, made)
    if figures:
        _write_figures(out, made)
    replace_text(out, _page(cube, choice, made, noted))
    return out


def _check(out: Path) -> None:
    if out.suffix not in (".html", ".htm"):
        raise InputError([Fault("out", f"{out} is not an HTML file", "use a name that ends in .html")])
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else "is in a folder that does not exist"
        raise InputError([Fault("out", f"{out} {what}", "give a file in a folder that exists")])
    if not os.access(out.absolute().parent, os.W_OK):
        raise InputError([Fault("out", f"{out.absolute().parent} is not writable", "choose another folder")])


def _cautions(cube: xr.Dataset) -> list[str]:
    """Return caveats that a reader needs before the numbers."""
    notes, count = [], cube.sizes["sample"]
    truncated = int(cube.truncated.sum()) if "truncated" in cube.coords else 0
    if truncated:
        notes.append(f"max_tokens truncated {truncated:,} of {count:,} texts.")
    skipped = int(cube.attrs.get("skipped_rows", 0))
    if skipped:
        notes.append(
            f"{skipped:,} rows of the data were skipped; they are listed in skipped.jsonl in the run folder."
        )
    if "nonfinite" in cube:
        met = int(cube.nonfinite.sum())
        if met:
            notes.append(f"The model produced {met:,} NaN or infinite values.")
    for language, places in selection.languages(cube):
        if len(places) < 100:
            notes.append(f"{language}: only {len(places)} samples, so intervals are wide.")
    return notes if findings.specifies_language(cube) else findings.without_language(notes)


def _page(cube: xr.Dataset, choice: Choice, made: list[Section], noted: list[str]) -> str:
    renderer = hv.renderer("bokeh")
    shown = {
        f"{section.name} {name}": renderer.get_plot(picture).state
        for section in made
        for name, picture in section.pictures.items()
    }
    script, divs = components(_in_one_document(shown)) if shown else ("", {})
    template = files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    model = "/".join(Path(str(cube.attrs.get("model", "a model"))).parts[-2:])
    languages = Counter(cube.language.values.astype(str).tolist())
    counts = ", ".join(f"{count:,} {language}" for language, count in languages.items())
    counts = f" ({counts})" if findings.specifies_language(cube) else ""
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=f"{model}: layer-by-layer report",
            subtitle=f"{cube.sizes['sample']:,} samples{counts}, {cube.sizes['layer']} layers",
            resources=_scripts(),
            script=script,
            warnings=noted,
            sections=[
                {
                    "name": section.name,
                    "title": section.title,
                    "sentences": section.sentences,
                    "methods": section.methods,
                    "lead": _html(section.results[section.lead]) if section.lead else "",
                    "divs": [divs[f"{section.name} {name}"] for name in section.pictures],
                    "tables": [
                        {"name": name.replace("_", " "), "html": _html(result)}
                        for name, result in section.results.items()
                        if name != section.lead
                    ]
                    + [
                        {"name": name.replace("_", " "), "html": _html_of(table)}
                        for name, table in section.tables.items()
                    ],
                }
                for section in made
            ],
            facts=_facts(cube, choice),
        )
    )


def _in_one_document(shown: dict[str, Model]) -> dict[str, Model]:
    """Move figures to one document, which looks for the models of all figures once instead of after each."""
    document = Document()
    for model in shown.values():
        if model.document is not None:
            model.document.remove_root(model)
    with document.models.freeze():
        for model in shown.values():
            document.add_root(model)
    return shown


def _scripts() -> str:
    """Return the scripts of Bokeh alone; those that Panel adds are for pages with a server."""
    return "\n".join(
        f"<script>{code}</script>" for code in Resources(mode="inline", components=["bokeh"]).js_raw
    )


def _facts(cube: xr.Dataset, choice: Choice) -> list[tuple[str, str]]:
    attrs = cube.attrs
    facts = [(label, str(attrs[name])) for label, name in _FACTS if attrs.get(name)]
    facts.append(("layers", ", ".join(map(str, cube.layer.values.tolist()))))
    for name in selection.label_names(cube):
        values = Counter(selection.column(cube, name, "label").cell_texts().tolist())
        shown = ", ".join(f"{value or '(none)'} {count:,}" for value, count in values.most_common(6))
        facts.append((name, shown if len(values) <= 6 else f"{len(values):,} distinct values"))
    facts.append(("compared", choice.by or "nothing"))
    facts.append(("clusters", choice.clusters))
    known = {name for _, name in _FACTS} | {"layers", "skipped"}
    facts += [(name, str(value)) for name, value in attrs.items() if name not in known]
    facts.append(("analysed with", f"actkit {version('actkit')}"))
    return facts


def table_of(result: xr.Dataset) -> pd.DataFrame:
    """Return a result as a table with a row for each combination of its coordinates; vectors are omitted."""
    small = result.drop_vars([name for name, values in result.data_vars.items() if "hidden" in values.dims])
    small = small.drop_vars([name for name in small.coords if name not in small.dims])
    dims = max((values.dims for values in small.data_vars.values()), key=len)
    kept = small[[name for name, values in small.data_vars.items() if set(values.dims) <= set(dims)]]
    return kept.to_dataframe(dim_order=[dim for dim in dims if dim in kept.dims]).reset_index()


def csv_of(result: xr.Dataset) -> str:
    """Return a result as CSV in which no text can be read as a formula by a spreadsheet.

    Texts that begin with ``=``, ``+``, ``-``, ``@``, a tab or a line break are prefixed with an apostrophe;
    numbers are unchanged.
    """
    return csv_text(table_of(result))


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV in which no text can be read as a formula, as :func:`csv_of` does."""
    table = table.copy()
    for number, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            table.isetitem(number, [_escaped(cell) for cell in table.iloc[:, number]])
    table = table.set_axis([_escaped(name) for name in table.columns], axis=1)
    text = str(table.to_csv(index=False))
    # pandas does not quote a lone "\r", which would then begin a new row
    return str(table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)) if "\r" in text else text


def _escaped(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(_FORMULA):
        return cell
    return cell if _NUMBER.fullmatch(cell) else f"'{cell}"


def _html(result: xr.Dataset) -> str:
    return _html_of(table_of(result))


def _html_of(table: pd.DataFrame) -> str:
    return str(
        table.head(_MOST_ROWS).to_html(
            index=False, escape=True, border=0, float_format=_number_text, na_rep="–"
        )
    )


def _number_text(value: float) -> str:
    """Return four significant digits, or all digits of a count."""
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _write_tables(out: Path, made: list[Section]) -> None:
    folder = out.with_name(f"{out.stem}_tables")
    folder.mkdir(exist_ok=True)
    for section in made:
        for name, result in section.results.items():
            replace_text(folder / f"{name}.csv", csv_of(result))
        for name, table in section.tables.items():
            replace_text(folder / f"{name}.csv", csv_text(table))


def _write_figures(out: Path, made: list[Section]) -> None:
    folder = out.with_name(f"{out.stem}_figures")
    folder.mkdir(exist_ok=True)
    for section in made:
        for name, picture in section.pictures.items():
            for kind in ("png", "svg"):
                figure(picture, folder / f"{name}.{kind}")
