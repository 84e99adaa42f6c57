"""Token filters: what they match, how they combine, and that each statistic uses them."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit import TokenFilter
from actkit.errors import InputError
from actkit.exporters.torch_dataset import LayerTokens
from actkit.schema import TokenKind
from actkit.stats.erasure import Eraser
from actkit.stats.token_filter import TokenCondition
from actkit.testing import synthetic

WORDS = [" the", ".", "cat", " cat", "\n", "!?"]
N, TOKENS = 80, 8


def written(run: Path, excluded: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None) -> xr.Dataset:
    """Write a cube with known tokens; excluded tokens are template tokens, as if extracted that way."""
    cube = synthetic(n_layers=3, n_samples=N, n_tokens=TOKENS, hidden=6, window=40, seed=3)
    values, rng = cube.values, np.random.default_rng(5)
    real = values["token_kind"] != TokenKind.PAD
    ids = rng.integers(0, len(WORDS), real.shape)
    values["token_id"] = np.where(real, ids, 0).astype(np.int32)
    values["token_text"] = np.where(real, np.array(WORDS, dtype=object)[ids], "")
    values["token_text"][:, 0] = "<bos>"
    values["token_kind"][:, 1] = np.where(real[:, 1], TokenKind.TEMPLATE, TokenKind.PAD)
    values["token_kind"][:, 2] = np.where(real[:, 2], TokenKind.TEXT, values["token_kind"][:, 2])
    if excluded is not None:
        left_out = excluded(values) & (values["token_kind"] == TokenKind.TEXT)
        values["token_kind"] = np.where(left_out, TokenKind.TEMPLATE, values["token_kind"]).astype(np.int8)
    content = values["token_kind"] == TokenKind.TEXT
    residual = values["residual"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        means = np.where(content[..., None], residual, 0).sum(axis=2) / content.sum(axis=1)[:, None]
    at = TOKENS - 1 - content[:, ::-1].argmax(axis=1)
    values["pooled"] = means.astype(np.float32)
    values["last"] = np.where(
        content.any(axis=1)[:, None], values["residual"][:, np.arange(N), at], np.nan
    ).astype(np.float32)
    run.mkdir(parents=True)
    writer = cube.create(run)
    for window in range(cube.plan.n_windows):
        writer.write(window, cube.part(window))
    rating = ("sample", rng.standard_normal(N), {"label": True})
    return actkit.open_cube(run).assign_coords(rating=rating)


def without_cats(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.isin(values["token_text"].astype(str), ["cat", " cat"])


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return written(tmp_path_factory.mktemp("tokens") / "whole").load()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """The same data, extracted without the tokens `cat`."""
    return written(tmp_path_factory.mktemp("tokens") / "part", without_cats).load()


def selected(cube: xr.Dataset, tokens: TokenCondition | str) -> np.ndarray:
    return np.asarray(actkit.select_tokens(cube, tokens).is_selected_token.values)


def test_filters_match_tokens(cube: xr.Dataset) -> None:
    texts, ids = cube.token_text.values, cube.token_id.values
    content, kinds = cube.token_kind.values == TokenKind.TEXT, cube.token_kind.values
    place = np.broadcast_to(np.arange(TOKENS), texts.shape)
    is_cat, is_special = np.isin(texts.astype(str), ["cat", " cat"]), kinds == TokenKind.SPECIAL
    last = np.array([np.flatnonzero(row)[-1] if row.any() else -9 for row in content])
    cases: list[tuple[TokenCondition, np.ndarray]] = [
        (TokenFilter(strings="cat"), content & is_cat),
        (TokenFilter(strings=" cat"), content & (texts == " cat")),
        (TokenFilter(strings="\n"), content & (texts == "\n")),
        (TokenFilter(pattern=r"^\W+$"), content & np.isin(texts.astype(str), [".", "\n", "!?"])),
        (TokenFilter(ids=[0, 4]), content & np.isin(ids, [0, 4])),
        (TokenFilter(positions=range(2, 4)), content & ((place == 2) | (place == 3))),
        (TokenFilter(positions=-1), content & (place == last[:, None])),
        (TokenFilter(strings="cat", positions=3), content & is_cat & (place == 3)),
        (TokenFilter(kinds="special"), kinds == TokenKind.SPECIAL),
        (TokenFilter(kinds=("template", "text")), np.isin(kinds, [TokenKind.TEMPLATE, TokenKind.TEXT])),
        (~TokenFilter(kinds="template"), content),
        (TokenFilter(kinds="template") & TokenFilter(ids=1), (kinds == TokenKind.TEMPLATE) & (ids == 1)),
        (TokenFilter(kinds="special") | TokenFilter(ids=1), is_special | content & (ids == 1)),
        (~(TokenFilter(ids=1) | TokenFilter(ids=2)), content & ~np.isin(ids, [1, 2])),
    ]  # fmt: skip
    for tokens, mask in cases:
        found = selected(cube, tokens)
        np.testing.assert_array_equal(found, mask, err_msg=repr(tokens))
        names = {"TokenFilter": TokenFilter}
        assert eval(repr(tokens), names) == tokens  # the text rebuilds the filter
        assert hash(eval(repr(tokens), names)) == hash(tokens)


def test_labels_of_tokens(cube: xr.Dataset) -> None:
    nouns = np.where(cube.token_text.values.astype(str) == "cat", "NOUN", None)
    tagged = cube.assign_coords(pos=(("sample", "token"), nouns))
    tokens = TokenFilter(labels={"pos": "NOUN"})
    assert repr(tokens) == "TokenFilter(labels={'pos': ('NOUN',)})"
    content = cube.token_kind.values == TokenKind.TEXT
    np.testing.assert_array_equal(selected(tagged, tokens), content & (nouns == "NOUN"))
    assert replace(tokens, strings="cat").labels == tokens.labels
    with pytest.raises(InputError, match="has no coordinate `pos` with the dims"):
        actkit.select_tokens(cube, tokens)


def test_selections_narrow_each_other(cube: xr.Dataset) -> None:
    twice = actkit.select_tokens(actkit.select_tokens(cube, ~TokenFilter(ids=1)), TokenFilter(ids=[1, 2]))
    np.testing.assert_array_equal(twice.is_selected_token, selected(cube, TokenFilter(ids=2)))
    assert twice.selected_tokens == "(~TokenFilter(ids=(1,))) & (TokenFilter(ids=(1, 2)))"
    assert actkit.select_tokens(cube, "content") is cube
    # -1 is the last content token, whatever was selected before: the text means what was done
    first, last = ~TokenFilter(ids=1), TokenFilter(positions=-1)
    twice = actkit.select_tokens(actkit.select_tokens(cube, first), last)
    np.testing.assert_array_equal(twice.is_selected_token, selected(cube, first & last))


EXCLUDED = ~TokenFilter(strings="cat")
STATISTICS: dict[str, tuple[Callable[..., xr.Dataset], dict[str, Any]]] = {
    "layer_norms": (actkit.layer_norms, {"resamples": 20}),
    "layer_norms_by_group": (actkit.layer_norms, {"resamples": 20, "by": "gender"}),
    "layer_updates": (actkit.layer_updates, {"resamples": 20}),
    "massive_activations": (actkit.massive_activations, {}),
    "adjacent_cka": (actkit.adjacent_cka, {}),
    "token_cka": (actkit.adjacent_cka, {"vectors": "tokens"}),
    "cka": (actkit.cka, {"vectors": "last"}),
    "sampled_cka": (actkit.cka, {"vectors": "tokens"}),
    "language_cka": (actkit.language_cka, {}),
    "transitions": (actkit.transitions, {}),
    "intrinsic_dimension": (actkit.intrinsic_dimension, {}),
    "anisotropy": (actkit.anisotropy, {}),
    "similarity": (actkit.similarity, {"permutations": 5}),
    "group_differential": (
        actkit.group_differential,
        {"by": "gender", "permutations": 5, "folds": 2, "seeds": 1},
    ),
    "classification_probe": (
        actkit.classification_probe,
        {"by": "gender", "permutations": 5, "folds": 2, "seeds": 1, "residualized_on": "length"},
    ),
    "regression_probe": (
        actkit.regression_probe,
        {"by": "rating", "permutations": 5, "folds": 2, "seeds": 1},
    ),
    "token_correlation": (actkit.token_correlation, {}),
    "cluster_samples": (actkit.cluster_samples, {"k": 2, "resamples": 2, "permutations": 5}),
    "direction_cosines": (actkit.direction_cosines, {"by": "gender", "splits": 2}),
    "transfer": (actkit.transfer, {"by": "gender", "folds": 2}),
}


def test_every_statistic_takes_tokens() -> None:
    others = {"holm", "layer_subset"}  # they read no vectors, or pass options on
    of_stats = {name for name, module in actkit._MODULES.items() if module.startswith(".stats.")}
    statistics = {name for name in of_stats if name.islower()} - others
    lacking = [
        name for name in statistics if "tokens" not in inspect.signature(getattr(actkit, name)).parameters
    ]
    assert len(statistics) > 15
    assert not lacking


@pytest.mark.filterwarnings("ignore:.*are excluded")
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_equal_those_of_an_extraction_without_the_tokens(
    name: str, cube: xr.Dataset, expected: xr.Dataset
) -> None:
    statistic, options = STATISTICS[name]
    result, wanted = statistic(cube, tokens=EXCLUDED, **options), statistic(expected, **options)
    # the means of the synthetic cube are rounded to float32 after the same sums
    xr.testing.assert_allclose(result.drop_attrs(), wanted.drop_attrs(), rtol=1e-5, atol=1e-6)
    assert result.attrs["tokens"] == "~TokenFilter(strings=('cat',))"


@pytest.mark.filterwarnings("ignore:.*are excluded")
def test_maps_and_lists_equal_those_of_an_extraction_without_the_tokens(
    cube: xr.Dataset, expected: xr.Dataset
) -> None:
    whitener = actkit.Whitener.fit(cube, layer=1, tokens=EXCLUDED)
    np.testing.assert_allclose(whitener.mean, actkit.Whitener.fit(expected, layer=1).mean, rtol=1e-12)
    assert whitener.settings["tokens"] == repr(EXCLUDED)
    with pytest.raises(InputError, match="resume"):
        actkit.Whitener.fit(cube, layer=1, resume=whitener)
    pooled = actkit.Whitener.fit(cube, layer=1, vectors="pooled", tokens=EXCLUDED)
    with pytest.raises(InputError, match="of the cube are of content"):
        pooled.transform(cube)
    white = pooled.transform(actkit.select_tokens(cube, EXCLUDED)).dropna("sample")
    np.testing.assert_allclose(np.cov(white.values.T), np.eye(6), atol=1e-4)
    eraser = Eraser.fit(cube, by="gender", tokens=EXCLUDED)
    np.testing.assert_allclose(eraser.maps["mean"], Eraser.fit(expected, by="gender").maps["mean"], rtol=1e-5)
    with pytest.raises(InputError, match="select the same tokens"):
        eraser.transform(cube)
    table = actkit.top_activating(cube, layer=1, hidden=2, count=200, tokens=EXCLUDED)
    assert (
        table.value.tolist() == actkit.top_activating(expected, layer=1, hidden=2, count=200).value.tolist()
    )
    loaders = (
        LayerTokens(cube, layer=1, shuffle=False, tokens=EXCLUDED),
        LayerTokens(expected, layer=1, shuffle=False),
    )
    first, second = ([vector.tolist() for vector in loader] for loader in loaders)
    assert first == second


@pytest.mark.filterwarnings("ignore:.*are excluded")
def test_a_kind_of_token_works_in_every_statistic(cube: xr.Dataset) -> None:
    result = actkit.anisotropy(cube, tokens="special")
    first = cube.residual.isel(token=0).transpose("layer", "sample", "hidden")
    wanted = actkit.anisotropy(cube.assign(pooled=first).drop_vars(["token_kind", "token_id", "token_text"]))
    np.testing.assert_allclose(result.between, wanted.between, rtol=1e-5)
    assert result.tokens == "special"
    with pytest.raises(InputError, match="no sample has a token of image"):
        actkit.anisotropy(cube, tokens="image")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "TokenFilter: has no criterion"),
        ({"pattern": "("}, "pattern: '\\(' is not a regular expression"),
        ({"ids": ["a"]}, "ids: 'a' is not an integer"),
        ({"kinds": "bos"}, "kinds: 'bos' is unknown"),
        ({"labels": {"pos": []}}, "labels: `pos` has no values"),
        ({"strings": "cat", "labels": ["pos"]}, "labels: \\['pos'\\] is not a mapping"),
    ],
)
def test_malformed_filters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenFilter(**options)


def test_impossible_selections_are_refused_before_data_are_read(cube: xr.Dataset) -> None:
    def unreadable(block: np.ndarray) -> np.ndarray:
        raise AssertionError("read")

    lazy = {name: cube[name].chunk() for name in ("residual", "pooled", "last", "norm")}
    options = {"dtype": np.float32, "meta": np.empty(())}
    broken = cube.assign(
        {name: array.copy(data=array.data.map_blocks(unreadable, **options)) for name, array in lazy.items()}
    )
    blank = broken.assign_coords(token_text=cube.token_text.where(False, ""))
    unknown = broken.assign_coords(token_id=cube.token_id.where(False, -1))
    means = broken.assign_attrs(tokens_kept="mean")
    for case, tokens, message in (
        (broken, TokenFilter(strings="dog"), "no token satisfies TokenFilter"),
        (blank, ~TokenFilter(strings="cat"), "does not know the texts of its tokens"),
        (unknown, ~TokenFilter(ids=3), "does not know the ids of its tokens"),
        (means, ~TokenFilter(ids=3), "keeps means, not tokens"),
        (broken.drop_vars("residual"), ~TokenFilter(ids=3), "`pooled` of .* needs `residual` at all content"),
        (broken.isel(token=slice(5)), ~TokenFilter(ids=3), "`pooled` of .* needs `residual` at all content"),
        (broken.isel(token=slice(5)), TokenFilter(positions=-1), "does not hold all content tokens"),
        (broken, "cat", "'cat' is not a kind of token"),
    ):
        with pytest.raises(InputError, match=message):
            actkit.adjacent_cka(case, tokens=tokens)


@pytest.mark.filterwarnings("ignore:.*are excluded")
def test_means_of_selected_tokens_are_lazy(cube: xr.Dataset) -> None:
    chosen, lazy = (actkit.select_tokens(c, EXCLUDED) for c in (cube, cube.chunk(layer=1, sample=9)))
    assert chosen.pooled.chunks is None
    assert lazy.pooled.chunks is not None
    xr.testing.assert_identical(chosen, lazy.compute())
    every = actkit.select_tokens(cube, ~TokenFilter(ids=999))
    for name in ("pooled", "last"):
        np.testing.assert_allclose(every[name], cube[name], rtol=1e-6, atol=1e-7)


def test_token_level_statistics_need_no_other_tokens(cube: xr.Dataset) -> None:
    part = cube.isel(token=slice(5))
    result = actkit.layer_norms(part, tokens=~TokenFilter(ids=3), resamples=5)
    mask = (part.token_kind.values == TokenKind.TEXT) & (part.token_id.values != 3)
    assert int(result.n_tokens.isel(layer=0).sum()) == mask.sum()


def test_concatenations_keep_selections(cube: xr.Dataset) -> None:
    chosen = actkit.select_tokens(cube, EXCLUDED)
    whole = actkit.layer_updates(chosen, resamples=5, cluster=None)
    halves = xr.concat([chosen.isel(sample=slice(40)), chosen.isel(sample=slice(40, None))], "sample")
    xr.testing.assert_allclose(whole, actkit.layer_updates(halves, resamples=5, cluster=None))
