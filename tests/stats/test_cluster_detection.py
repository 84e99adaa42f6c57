"""Dependent samples are detected from the labels, recorded, and never guessed in silence."""

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from actkit.demo.captions import captions
from actkit.errors import InputError
from actkit.stats import selection

XSTEST = Path("/work/shared/data/xstest.csv")


def table(rows: list[dict[str, Any]], language: str = "english") -> xr.Dataset:
    """A cube without activations whose labels are the columns of a table."""
    columns = {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}
    languages = columns.pop("language", np.full(len(rows), language, dtype=object))
    labels = {name: ("sample", values, {"label": True}) for name, values in columns.items()}
    return xr.Dataset(coords={**labels, "language": ("sample", languages), "sample": np.arange(len(rows))})


def winomt(n_templates: int = 60, per_template: int = 3) -> list[dict[str, Any]]:
    """Sentences about two professions, each with a male and a female pronoun, from shared templates."""
    return [
        {
            "profession": f"profession {(template * 7 + twin) % 40}",
            "gender": gender,
            "stereotype": ("pro", "anti")[(template + twin + (gender == "male")) % 2],
            "twin_group": f"twins {template}.{twin}",
            "template_group": f"template {template}",
            "score": (template * 31 + twin * 17 + (gender == "male") * 11) % 97,
        }
        for template in range(n_templates)
        for twin in range(per_template)
        for gender in ("male", "female")
    ]


@pytest.mark.parametrize("n_scenes", [24, 60, 100, 500])
@pytest.mark.parametrize("by", ["gender", "occupation", None])
def test_twins_of_the_bundled_captions_share_a_scene(n_scenes: int, by: str | None) -> None:
    rows = [{**row} for row in captions(n_scenes)]
    for row in rows:
        del row["text"], row["sample_id"]
    cube = table(rows)
    choice = selection.cluster_choice(cube, by=by)
    assert (choice.name, choice.is_detected) == ("scene", True)
    english = cube.isel(sample=cube.language.values == "english")
    assert selection.cluster_choice(english, by=by).name == "scene"


def test_translations_alone_share_an_image() -> None:
    rows = [{key: row[key] for key in ("image_id", "gender", "language")} for row in captions(40)]
    assert selection.cluster_choice(table(rows), by="gender").name == "image_id"
    # within one language, they are independent
    english = [row for row in rows if row["language"] == "english"]
    assert selection.cluster_choice(table(english), by="gender").name is None


@pytest.mark.skipif(not XSTEST.exists(), reason="the prompts of XSTest are not part of the project")
def test_contrasting_requests_of_xstest_share_a_group() -> None:
    with XSTEST.open(encoding="utf-8", newline="") as file:
        cube = table(
            [{key: row[key] for key in row if key not in ("id", "text")} for row in csv.DictReader(file)]
        )
    assert (cube.focus.values == "").any()  # a coarser label, but with gaps
    for by in ("label", None):
        assert selection.cluster_choice(cube, by=by).name == "group"


@pytest.mark.parametrize("per_template", [1, 2, 3, 6])
def test_templates_contain_the_twins_of_winomt(per_template: int) -> None:
    rows = winomt(per_template=per_template)
    cube = table(rows)
    if per_template == 1:  # the same clusters under two names
        assert selection.cluster_choice(cube, by="gender").name in ("twin_group", "template_group")
        return
    assert selection.cluster_choice(cube, by="gender").name == "template_group"
    reordered = table([dict(reversed(row.items())) for row in rows])
    assert selection.cluster_choice(reordered, by="gender").name == "template_group"
    # a twin in two templates: neither label contains the other
    rows[0] = {**rows[0], "template_group": "template 30"}
    with pytest.warns(UserWarning, match="neither contains the other"):
        selection.cluster_choice(table(rows), by="gender")


def test_a_label_with_gaps_is_never_chosen() -> None:
    rows = winomt()
    rows[5] = {**rows[5], "template_group": ""}
    assert selection.cluster_choice(table(rows)).name == "twin_group"
    rows[7] = {**rows[7], "twin_group": ""}
    for row in rows:
        del row["profession"], row["score"]
    with pytest.warns(UserWarning, match=r"1 of 360 lack it, .*: choose with cluster='twin_group'"):
        assert selection.cluster_choice(table(rows)).name is None


def test_crossing_labels_give_one_warning_that_says_how_to_choose() -> None:
    rows = [
        {"gender": "fm"[at % 2], "story": f"s{at // 2}", "author": f"a{(at * 7 + at // 60) % 60}"}
        for at in range(120)
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert selection.cluster_choice(table(rows), by="gender").name == "story"
    assert len(caught) == 1
    assert "choose with cluster='story' or another label, or cluster=None" in str(caught[0].message)
    assert "`author`" in str(caught[0].message)


@pytest.mark.parametrize("seed", range(5))
def test_measurements_and_identifiers_are_no_clusters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "gender": "fm"[at % 2],
            "age": str(rng.integers(18, 90)),
            "score": int(rng.integers(0, 60)),
            "weight": float(rng.integers(0, 60)) / 4,
            "row": f"row-{at}",
            "split": ("train", "test")[at % 5 == 0],
        }
        for at in range(150)
    ]
    choice = selection.cluster_choice(table(rows), by="gender")
    assert choice.attrs == {"cluster": "", "cluster_origin": "detected"}


def test_numbered_pairs_are_clusters_whatever_their_name() -> None:
    for name in ("pair", "nr"):
        rows = [{"gender": "fm"[at % 2], name: at // 2} for at in range(60)]
        assert selection.cluster_choice(table(rows), by="gender").name == name


def test_an_explicit_choice_is_kept() -> None:
    cube = table(winomt())
    assert selection.cluster_choice(cube, "profession").attrs == {
        "cluster": "profession",
        "cluster_origin": "chosen",
    }
    assert selection.cluster_choice(cube, None).attrs == {"cluster": "", "cluster_origin": "chosen"}
    named = cube.assign_coords(auto=("sample", cube.profession.values, {"label": True}))
    assert selection.cluster_choice(named).attrs == {"cluster": "auto", "cluster_origin": "chosen"}
    with pytest.raises(InputError, match="cluster: the cube has no label `twins`"):
        selection.cluster_choice(cube, "twins")


def test_groups_by_a_label_named_auto_are_not_its_clusters() -> None:
    labels = {"auto": np.arange(40) % 2, "pair": np.arange(40) // 2}
    cube = xr.Dataset(coords={name: ("sample", values, {"label": True}) for name, values in labels.items()})
    cube = cube.assign_coords(language=("sample", np.full(40, "english", dtype=object)))
    assert selection.cluster_choice(cube, by="auto").name == "pair"
    assert selection.cluster_choice(cube, by="pair").name == "auto"
