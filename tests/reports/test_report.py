"""The report: one file that opens in a browser without a network and contains what was requested."""

import csv
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from playwright.sync_api import Browser, Page, sync_playwright

import actkit
from actkit.cli import main
from actkit.errors import InputError
from actkit.reports import findings
from actkit.reports.html_page import _html_of, csv_of, table_of
from actkit.reports.sections import choose, sections
from actkit.reports.summaries import compute
from actkit.sources import NO_LANGUAGE
from actkit.testing import write_cube
from tests.browser import CHROMIUM, FLAGS
from tests.stats.conftest import planted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("reporting") / "run")


@pytest.fixture(scope="module")
def written(run: Path) -> Path:
    """A report, written from the command line."""
    out = run.parent / "report.html"
    assert main(["report", str(run), "--out", str(out), "--tables", "--figures"]) == 0
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():  # .ci/run sees to it that it does
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_a_browser_shows_it_without_a_network(
    written: Path, browser: Browser, width: int, height: int
) -> None:
    page: Page = browser.new_page(viewport={"width": width, "height": height}, offline=True)
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written.as_uri())
    page.wait_for_function("window.Bokeh && Bokeh.index && Bokeh.documents.every(d => d.is_idle)")
    assert faults == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    # all pictures are drawn, and nothing is wider than the screen
    n_roots = page.evaluate("Bokeh.documents.flatMap(d => d.roots()).length")
    assert n_roots >= 10, n_roots
    heights = page.evaluate(
        "[...document.querySelectorAll('.picture')].map(d => d.getBoundingClientRect().height)"
    )
    assert len(heights) == n_roots
    assert min(heights) > 200
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("link", name="Groups: gender").click()
    assert page.get_by_role("heading", name="Groups: gender").is_visible()
    page.get_by_text("group differential", exact=True).click()
    assert page.locator("#groups table").first.is_visible()
    page.close()


@pytest.mark.slow
def test_it_says_what_is_planted_and_how_it_was_found(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert "no step can be tested, so this is descriptive" in text
    assert "all steps: 5 layers are too few to estimate how uneven steps are, which takes 6" in text
    assert re.search(r"english: the probe separates the groups best at layer \d \(AUROC \d\.\d+, 95% ", text)
    assert re.search(
        r"The difference to the strongest baseline, .*, is \+0\.\d+ \(95% interval \+0\.\d+ to \+0\.\d+; p",
        text,
    )
    assert re.search(
        r"english: (\d of 4 other layers cannot be told|the AUROC of every other layer is lower)", text
    )
    assert "corrected over layers and languages" in text
    assert re.search(r"english: the intrinsic dimension is between \d+\.\d \(95% interval", text)
    assert re.search(r"arabic: the mean cosine of vectors of different clusters is at most 0\.\d\d, at", text)
    assert re.search(
        r"english: of the layers 0, 1, 2, 3 and 4, consecutive ones are least similar from layer", text
    )
    assert re.search(r"by CKA \(-?0\.\d\d\)", text)
    assert re.search(
        r"arabic: of the layers 0, 1, 2, 3 and 4, the order of tokens by norm changes most from", text
    )
    assert re.search(
        r"english: of 2, 4 or 8 k-means clusters at layer 2, \d have the largest silhouette", text
    )
    assert re.search(
        r"agreement with gender: (negligible, )?adjusted Rand index -?0\.\d\d \(0\.\d\d by chance, p", text
    )
    assert "TF-IDF of the text" in text
    assert "unbiased HSIC of Song et al. (2012)" in text
    assert "Samples that share a value of image_id are treated as one cluster" in text
    assert "image_id (detected)" in text
    assert "english: only 60 samples, so intervals are wide" in text
    assert ": omitted" not in text


def test_change_points_are_named_and_untested_steps_are_descriptive(run: Path) -> None:
    cube = actkit.open_cube(run)
    adjacent, steps = actkit.adjacent_cka(cube).compute(), actkit.transitions(cube).compute()
    assert "no step can be tested, so this is descriptive" in findings.of_neighbours(adjacent, steps)[0]
    steps["ratio"][:, 1:3] = 1.0
    assert "; no tested step exceeds a smooth trend" in findings.of_neighbours(adjacent, steps)[0]
    steps["change_point"][0, 2] = True
    sentences = findings.of_neighbours(adjacent, steps)
    assert ". The step after layer 2 is larger than a smooth trend of the other steps" in sentences[0]
    assert sentences[-1].startswith("Not tested against a trend: all steps: 5 layers are too few")


def test_an_unspecified_language_is_not_named(run: Path, tmp_path: Path) -> None:
    cube = actkit.open_cube(run).isel(sample=slice(60), layer=[0, 3]).compute()
    cube = cube.assign_coords(language=("sample", np.full(60, NO_LANGUAGE, dtype=object)))
    choice = choose(cube, "", None, "pooled")
    made = [section for section, _ in sections(cube, choice, partial(compute, cube))]
    sentences = [sentence for section in made for sentence in section.sentences]
    assert any(sentence.startswith("The mean norm changes from ") for sentence in sentences)
    assert not [sentence for sentence in sentences if sentence[0].islower() or NO_LANGUAGE in sentence]
    text = actkit.report(cube, out=tmp_path / "r.html", by="").read_text(encoding="utf-8")
    assert "60 samples, 2 layers" in text
    assert "Only 60 samples, so intervals are wide." in text


def test_the_largest_change_of_the_norm_is_between_two_layers(run: Path) -> None:
    norms = actkit.layer_norms(actkit.open_cube(run)).compute().isel(language=[0])
    norms["mean"][0] = [1.0, 2.0, 10.0, 9.0, 8.0]
    assert findings.of_norms(norms)[0] == (
        "english: the mean norm changes from 1 at layer 0 to 8 at layer 4. The largest relative change "
        "between adjacent layers is by a factor of 5, from layer 1 to layer 2."
    )
    norms["mean"][0, 0] = 0.0
    assert findings.of_norms(norms)[0].endswith("to 8 at layer 4.")


def test_massive_activations_are_counted_at_the_layer_with_the_most(run: Path) -> None:
    massive = actkit.massive_activations(actkit.open_cube(run)).compute().isel(language=[0])
    massive["n_massive"][0], massive["n_massive_samples"][0] = 0, 0
    assert findings.of_massive(massive)[0].endswith(". There are no massive activations.")
    massive["n_massive"][0, 3], massive["n_massive_samples"][0, 3] = 1450, 12
    assert findings.of_massive(massive)[0].endswith(
        ". Layer 3 has the largest number of massive activations: 1,450 (samples with at least one: 12)."
    )


@pytest.mark.slow
def test_tables_are_the_results(run: Path, written: Path) -> None:
    folder = written.with_name("report_tables")
    table = pd.read_csv(folder / "adjacent_cka.csv")
    wanted = actkit.adjacent_cka(actkit.open_cube(run), cluster="image_id").compute()
    np.testing.assert_allclose(table.cka.to_numpy().reshape(2, -1), wanted.cka, atol=1e-12)
    assert table.language.tolist() == ["english"] * 4 + ["arabic"] * 4
    assert {path.stem for path in folder.iterdir()} >= {
        "anisotropy",
        "auroc_difference",
        "cka",
        "erasure_probe",
        "group_differential",
        "intrinsic_dimension",
        "layer_difference",
        "norms",
        "transfer",
    }


@pytest.mark.slow
def test_figures_are_there_in_both_formats(written: Path) -> None:
    folder = written.with_name("report_figures")
    names = {path.stem for path in folder.iterdir()}
    assert names >= {"norms", "group_differential", "adjacent_cka", "cka", "tokens_of_sample_1"}
    assert {path.suffix for path in folder.iterdir()} == {".png", ".svg"}
    assert all(
        (folder / f"{name}{kind}").stat().st_size > 1000 for name in names for kind in (".png", ".svg")
    )


def test_an_unfinished_cube_of_one_language_without_labels(tmp_path: Path) -> None:
    run = write_cube(tmp_path / "run", n_samples=48, window=8, windows=[0, 2, 3], languages=["english"])
    cube = actkit.open_cube(run, partial=True).drop_vars(["gender", "image_id"])
    out = actkit.report(cube, out=tmp_path / "r.html")
    text = out.read_text(encoding="utf-8")
    assert "24 samples (24 english)" in text
    assert 'id="groups"' not in text
    assert 'id="languages"' not in text
    # steps between three layers are shown, and the report says that they are descriptive
    assert "Not tested against a trend: all steps: 3 layers are too few" in text
    assert "Layer alignment: omitted" not in text


@pytest.mark.slow
def test_what_a_cube_lacks_is_said(run: Path, tmp_path: Path) -> None:
    cube = actkit.open_cube(run).drop_vars(["residual", "embedding"])
    text = actkit.report(cube, out=tmp_path / "r.html", by="").read_text(encoding="utf-8")
    assert "Layer updates: omitted (the cube has no `residual`" in text
    assert "Norms: omitted" not in text


@pytest.mark.slow
def test_texts_are_shown_as_texts(run: Path, tmp_path: Path) -> None:
    cube = actkit.open_cube(run).compute()
    evil = "<script>alert(1)</script>"
    cube = cube.assign_coords(
        text=("sample", np.array([evil] * 120, dtype=object)),
        language=("sample", np.array([evil] * 120, dtype=object)),
    ).assign_attrs(model=evil)
    text = actkit.report(cube, out=tmp_path / "r.html", by="").read_text(encoding="utf-8")
    assert evil not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "r.txt"}, "use a name that ends in .html"),
        ({"out": "nowhere/r.html"}, "in a folder that does not exist"),
        ({"out": "r.html", "by": "colour"}, "by: the cube has no label `colour`; it has gender, image_id"),
        ({"out": "r.html", "cluster": "twin"}, "cluster: the cube has no label `twin`"),
    ],
)
def test_what_cannot_be_written(
    run: Path, tmp_path: Path, options: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cube: xr.Dataset = actkit.open_cube(run)
    with pytest.raises(InputError, match=message):
        actkit.report(cube, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_is_wrong(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "x" / "r.html")]) == 1
    assert "in a folder that does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-", "-x", "=-0.5"]
)
def test_no_text_of_a_table_is_a_formula(text: str) -> None:
    result = xr.Dataset({"mean": ("group", [-0.5]), text: ("group", [1.0])}, {"group": [text]})
    table = pd.read_csv(io.StringIO(csv_of(result), newline=""))
    assert table["group"].tolist() == [f"'{text}"]
    assert f"'{text}" in table.columns
    assert table["mean"].tolist() == [-0.5]


def test_no_cell_of_a_table_begins_a_row(tmp_path: Path) -> None:
    result = xr.Dataset({"mean": ("group", [-0.5])}, {"group": ["a\r=1+1"]})
    (tmp_path / "a.csv").write_text(csv_of(result), newline="")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["group", "mean"], ["a\r=1+1", "-0.5"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (82650.0, "82650"),
        (257600.0, "257600"),
        (0.0, "0"),
        (-3.0, "-3"),
        (0.123456, "0.1235"),
        (1e20, "1e+20"),
    ],
)
def test_counts_have_all_their_digits(value: float, text: str) -> None:
    assert f"<td>{text}</td>" in _html_of(pd.DataFrame({"n_tokens": [value, np.nan]}))


@pytest.mark.parametrize("text", ["-0.5", "+3", "-1e-05", "plain", "a=b", "'=1", " x", ""])
def test_numbers_and_other_texts_stay_as_they_are(text: str) -> None:
    result = xr.Dataset({"mean": ("group", [-1e-300, np.nan, -np.inf])}, {"group": [text, "b", "c"]})
    assert csv_of(result) == table_of(result).to_csv(index=False)


@pytest.mark.slow
def test_a_written_table_has_no_formula(tmp_path: Path) -> None:
    cube = actkit.open_cube(write_cube(tmp_path / "run", n_layers=3, n_samples=40))
    named = {"english": "=cmd", "arabic": "-arabic"}
    languages = [named.get(language, language) for language in cube.language.values.tolist()]
    cube = cube.assign_coords(language=("sample", np.array(languages, object), cube.language.attrs))
    actkit.report(cube, out=tmp_path / "report.html", by="", tables=True)
    for path in (tmp_path / "report_tables").iterdir():
        content = path.read_text()
        assert not re.search(r"(^|,)\"?(=|-a)", content, re.MULTILINE), path.name
    assert "'=cmd" in (tmp_path / "report_tables" / "norms.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "name", "said"),
    [
        ("kind", "classification_probe", "english: the probe tells the classes apart best at layer"),
        ("rating", "regression_probe", "english: the probe predicts rating best at layer"),
    ],
)
def test_classes_and_numbers_have_their_probe(run: Path, by: str, name: str, said: str) -> None:
    cube = actkit.open_cube(run).isel(layer=[3])
    n_samples = cube.sizes["sample"]
    kind = np.array(["abc"[at // 2 % 3] for at in range(n_samples)], dtype=object)
    cube = cube.assign_coords(
        kind=("sample", kind, {"label": True}),
        rating=("sample", np.sqrt(np.arange(n_samples)), {"label": True}),
    )
    choice = choose(cube, by, "image_id", "pooled")
    found = {
        section.name: (section, notes) for section, notes in sections(cube, choice, partial(compute, cube))
    }
    section, notes = found["groups"]
    assert not notes
    assert name in section.pictures
    assert section.sentences[0].startswith(said)
    assert "to the strongest baseline" in section.sentences[0]
    assert f"{name}_by_baseline" in section.results
    assert section.methods[0].endswith("are treated as one cluster.")
