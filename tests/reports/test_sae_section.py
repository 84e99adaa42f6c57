"""The section of a report about autoencoders: quality first, and no features without it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import actkit
from actkit.errors import MissingError
from actkit.features.sae_files import write_sae
from actkit.reports import sections, summaries
from actkit.reports.sae_section import differences, found_features, of_quality, saes_folder, texts_of
from actkit.testing import write_cube, write_features
from tests.features.autoencoders import random
from tests.plots.test_saes import quality


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Run with autoencoders of two layers in its folder."""
    run = write_cube(tmp_path / "run", n_samples=80, n_tokens=6)
    for layer in (0, 2):
        sae = random(16, layer=layer, hook_name=f"blocks.{layer}.hook_resid_post")
        write_sae(run / "saes" / f"residual_{layer}", sae)
    return run


def page(run: Path) -> str:
    return actkit.report(run, out=run / "report.html", by="").read_text(encoding="utf-8")


@pytest.mark.slow
def test_quality_comes_first_and_features_not_without_it(run: Path) -> None:
    assert saes_folder(actkit.open_cube(run)) == run / "saes"
    without = page(run)
    assert "Sparse autoencoders: omitted (the quality of the autoencoders was not measured" in without
    assert "actkit saes quality" in without
    measured = actkit.sae_quality(run, run / "saes", out=run / "saes")
    text = page(run)
    section = text[text.index('<section id="saes">') : text.index('<section id="samples">')]
    assert "omitted" not in section
    table, figures = section.index('<div class="wide lead">'), section.index('<div class="pictures">')
    assert table < figures
    assert "<th>fvu_pca_top</th>" in section
    assert f"{float(measured.fvu[1]):.1%} of the variance is unexplained" in section
    assert "Not measured: how many features another seed finds again" in section
    write_sae(run / "saes" / "residual_0", random(16, seed=5, hook_name="blocks.0.hook_resid_post"))
    assert "was not measured" in page(run)


@pytest.mark.slow
def test_a_run_without_autoencoders_has_no_section(tmp_path: Path) -> None:
    run = write_cube(tmp_path / "run", n_samples=40)
    assert "Sparse autoencoders" not in page(run)


def test_sentences_say_what_is_better() -> None:
    worse = quality(fvu=0.6, tokens_per_feature=20.0, found_again=0.4, found_again_random=0.0)
    sentences = list(of_quality(worse))
    assert (
        "60.0% of the variance is unexplained: no better than the better PCA with as many coefficients"
        in sentences[0]
    )
    assert any("40% have a counterpart in the autoencoder of another seed" in text for text in sentences)
    assert "20 tokens per feature; below 100" in sentences[-1]
    better = list(of_quality(quality(fvu=0.1)))
    assert "unexplained: better than any PCA" in better[0]
    assert any("Not measured" in text for text in better)
    recovered = quality(ce_recovered=0.97, ce_recovered_from_mean=0.8).assign_attrs(n_predictions=500)
    said = "97% of the loss added by zero ablation and 80% of that added by mean ablation (500 predicted"
    assert any(said in text for text in of_quality(recovered))


def test_the_best_layers_have_the_lowest_fvu() -> None:
    from actkit.features.quality_result import best_layers

    table = xr.Dataset({"fvu": ("layer", np.array([0.3, 0.1, 0.2, 0.4]))}, {"layer": [1, 4, 7, 9]})
    assert best_layers(table, 2) == [4, 7]
    assert best_layers(table, 9) == [1, 4, 7, 9]


@pytest.mark.slow
def test_features_are_compared_beside_their_quality(run: Path) -> None:
    cube = actkit.open_cube(run)
    choice = sections.choose(cube, "gender", "image_id", "pooled")
    section = sections.Section("saes", "Sparse autoencoders", summaries.compute)
    with pytest.raises(MissingError, match="was not measured"):
        sections._saes(cube, choice, section)
    actkit.encode(run, run / "saes", out=run / "features")
    sections._features(cube, choice, section)
    assert not section.pictures  # nothing without the quality
    actkit.sae_quality(run, run / "saes", out=run / "saes")
    sections._saes(cube, choice, section)
    for by, reason in (("image_id", "`image_id` does not have exactly two values"), ("", "no label")):
        sections._features(cube, replace(choice, by=by), section)
        assert f"Features were not compared between groups: {reason}" in section.sentences.pop()
    sections._features(cube, choice, section)
    assert set(section.pictures) == {"sae_quality", "sae_frequencies", "feature_differential"}
    assert any("live features differ (female to male)" in sentence for sentence in section.sentences)
    features = actkit.open_cube(run / "features")
    wanted = actkit.feature_differential(features, by="gender", cluster="image_id", cube=cube).auroc_residual
    low, high = float(wanted[0].min()), float(wanted[0].max())
    said = f"difference of means: {low:.2f} to {high:.2f} over layers, TF-IDF: "
    assert any(said in sentence for sentence in section.sentences)
    assert list(section.tables) == ["feature_differential", "texts_of_features"]
    write_sae(run / "saes" / "residual_0", random(16, seed=5, hook_name="blocks.0.hook_resid_post"))
    actkit.sae_quality(run, run / "saes", out=run / "saes")
    with pytest.raises(MissingError, match="computed by other autoencoders"):
        sections._features(cube, choice, section)


def test_a_cube_that_is_an_option_is_part_of_the_key(tmp_path: Path) -> None:
    asked = []
    for seed in (0, 1):
        cube = actkit.open_cube(write_cube(tmp_path / f"{seed}", n_samples=40, seed=seed))
        asked.append(("layer_norms", {"cube": cube}))
    digests = [summaries._digest(asked[0][1]["cube"], *request) for request in (*asked, asked[0])]
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


def test_without_vectors_features_are_compared_all_the_same(tmp_path: Path) -> None:
    features = actkit.open_cube(write_features(tmp_path / "features", n_samples=80))
    with pytest.warns(UserWarning, match="not compared with the difference of means"):
        found = differences(features, features, by="gender", cluster=None)
    assert "auroc_residual" not in found
    assert "auroc_best" in found


def test_the_features_shown_are_those_with_the_largest_effects() -> None:
    dims = ("language", "layer", "feature")
    effect = np.array([[[0.2, -3.0, 9.0], [np.inf, 0.5, np.nan]]])
    q = np.array([[[0.01, 0.02, 0.2], [0.03, 0.001, np.nan]]])
    numbers = dict.fromkeys(("difference", "t", "p_max"), (dims, np.zeros((1, 2, 3))))
    tested = xr.Dataset(
        {"effect": (dims, effect), "q": (dims, q), **numbers},
        {"language": ["english"], "layer": [4, 7], "feature": [0, 1, 2]},
        {"q": 0.05},
    )
    found = found_features(tested)
    assert list(zip(found.layer, found.feature, strict=True)) == [(7, 0), (4, 1), (7, 1), (4, 0)]


def test_the_texts_of_a_feature_are_those_of_its_largest_values(tmp_path: Path) -> None:
    features = actkit.open_cube(write_features(tmp_path / "features"))
    found = pd.DataFrame({"layer": [1, 1], "feature": [3, 3], "language": ["english", "arabic"]})
    texts = texts_of(features, found)
    expected = actkit.top_activating(features, layer=1, feature=3, count=4)
    assert texts.context.tolist() == expected.context.tolist()
    assert texts.columns.tolist() == ["layer", "feature", "language", "value", "context"]
