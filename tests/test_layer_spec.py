"""Grammar of layers: what it accepts and rejects, and that formatted layers parse back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.layer_spec import COMPONENTS, GRAMMAR, describe, describe_all, parse, resolve

N = 34
EVERY = list(range(N))
MODEL = {"residual": N, "attention": N, "mlp": N, "vision": 12}

GOOD: list[tuple[Any, list[int]]] = [
    ("all", EVERY),
    ("residual_all", EVERY),
    ("residuals_all", EVERY),
    ("7", [7]),
    (7, [7]),
    (-1, [33]),
    ("-1", [33]),
    ("10-12", [10, 11, 12]),
    ("5-5", [5]),
    ("0-8:2", [0, 2, 4, 6, 8]),
    ("0-32:2", list(range(0, 33, 2))),
    ("0-5:4", [0, 4]),
    ("0-3:99", [0]),
    ("0-10 24-33", [*range(11), *range(24, 34)]),
    ("0-10,24-33", [*range(11), *range(24, 34)]),
    (" 0-2 ,, 5 ", [0, 1, 2, 5]),
    ("-3--1", [31, 32, 33]),
    ("30--1", [30, 31, 32, 33]),
    ("-34-1", [0, 1]),
    ("residual_3", [3]),
    ("residuals_10-12", [10, 11, 12]),
    ("residual_-3--1", [31, 32, 33]),
    ("0-5 3-8 4", list(range(9))),
    ("33 0", [0, 33]),
    ([3, 1, 2], [1, 2, 3]),
    (["0-2", 5, "-1"], [0, 1, 2, 5, 33]),
    (("all", 3), EVERY),
    (range(2, 5), [2, 3, 4]),
]

MIXED: list[tuple[Any, dict[str, list[int]]]] = [
    (
        "residual_all mlp_5-15 attention_3",
        {"residual": EVERY, "attention": [3], "mlp": list(range(5, 16))},
    ),
    ("attention_all", {"attention": EVERY}),
    ("attentions_-1 mlps_0-4:2", {"attention": [33], "mlp": [0, 2, 4]}),
    ("mlp_3 0-1 mlp_1 mlp_3", {"residual": [0, 1], "mlp": [1, 3]}),
    ("vision_all residual_0", {"residual": [0], "vision": list(range(12))}),
    ("vision_-1,vision_0-6:3", {"vision": [0, 3, 6, 11]}),
    ("vision_-12--11 mlp_-34", {"mlp": [0], "vision": [0, 1]}),
    (["vision_2", 7, "mlp_9 attention_8"], {"residual": [7], "attention": [8], "mlp": [9], "vision": [2]}),
]

WRITE = f"(write {GRAMMAR})"
KNOWN = "(components: residual, attention, mlp, vision)"

UNREADABLE: list[tuple[Any, list[str]]] = [
    ("", [f"layers: names no layer {WRITE}"]),
    (" , ", [f"layers: names no layer {WRITE}"]),
    ([], [f"layers: names no layer {WRITE}"]),
    ("first", [f"layers: cannot read `first` {WRITE}"]),
    ("10-", [f"layers: cannot read `10-` {WRITE}"]),
    ("1-2-3", [f"layers: cannot read `1-2-3` {WRITE}"]),
    ("3:2", [f"layers: cannot read `3:2` {WRITE}"]),
    ("0-8:-2", [f"layers: cannot read `0-8:-2` {WRITE}"]),
    ("1.5", [f"layers: cannot read `1.5` {WRITE}"]),
    ([1.5], [f"layers: cannot read `1.5` {WRITE}"]),
    ([None], [f"layers: cannot read `None` {WRITE}"]),
    ("1234567890", [f"layers: cannot read `1234567890` {WRITE}"]),
    ("residual_", [f"layers: cannot read `residual_` {WRITE}"]),
    ("_all", [f"layers: `_all`: component `` is unknown {KNOWN}"]),
    ("0-8:0", ["layers: `0-8:0` has step 0 (give a step of at least 1)"]),
    ("head_3", [f"layers: `head_3`: component `head` is unknown {KNOWN}"]),
    ("visions_3", [f"layers: `visions_3`: component `visions` is unknown {KNOWN}"]),
    ("vision", [f"layers: cannot read `vision` {WRITE}"]),
    ("mlp", [f"layers: cannot read `mlp` {WRITE}"]),
    ("mlp_", [f"layers: cannot read `mlp_` {WRITE}"]),
    ("MLP_3", [f"layers: `MLP_3`: component `MLP` is unknown {KNOWN}"]),
    ("mlp_attention_3", [f"layers: `mlp_attention_3`: component `mlp_attention` is unknown {KNOWN}"]),
    ("vision_0-3:0", ["layers: `vision_0-3:0` has step 0 (give a step of at least 1)"]),
    (
        "heads_3 x mlp_4 y",
        [
            f"layers: `heads_3`: component `heads` is unknown {KNOWN}",
            f"layers: cannot read `x` {WRITE}",
            f"layers: cannot read `y` {WRITE}",
        ],
    ),
]

IMPOSSIBLE: list[tuple[Any, list[str]]] = [
    ("34", ["layers: `34`: the model has no layer 34 (it has 34 layers, 0–33)"]),
    ("-35", ["layers: `-35`: the model has no layer -35 (it has 34 layers, 0–33)"]),
    ("30-40", ["layers: `30-40`: the model has no layer 40 (it has 34 layers, 0–33)"]),
    ("0-999999999", ["layers: `0-999999999`: the model has no layer 999999999 (it has 34 layers, 0–33)"]),
    ("23-10", ["layers: `23-10` runs backwards (write 10-23)"]),
    ("-1--3", ["layers: `-1--3` runs backwards (write 31-33)"]),
    (
        "5 34 residuals_40-50 9-8",
        [
            "layers: `34`: the model has no layer 34 (it has 34 layers, 0–33)",
            "layers: `residuals_40-50`: the model has no layer 40 (it has 34 layers, 0–33)",
            "layers: `9-8` runs backwards (write 8-9)",
        ],
    ),
    ("vision_12", ["layers: `vision_12`: the vision tower has no layer 12 (it has 12 layers, 0–11)"]),
    ("vision_0-33", ["layers: `vision_0-33`: the vision tower has no layer 33 (it has 12 layers, 0–11)"]),
    ("mlp_34", ["layers: `mlp_34`: the model has no layer 34 (it has 34 layers, 0–33)"]),
    ("vision_5-3", ["layers: `vision_5-3` runs backwards (write 3-5)"]),
    (
        "mlp_40 5 attention_-35 vision_-13",
        [
            "layers: `mlp_40`: the model has no layer 40 (it has 34 layers, 0–33)",
            "layers: `attention_-35`: the model has no layer -35 (it has 34 layers, 0–33)",
            "layers: `vision_-13`: the vision tower has no layer -13 (it has 12 layers, 0–11)",
        ],
    ),
]


@pytest.mark.parametrize(("spec", "layers"), GOOD, ids=[repr(spec) for spec, _ in GOOD])
def test_readable(spec: Any, layers: list[int]) -> None:
    parts, faults = parse(spec)
    assert faults == []
    assert resolve(parts, MODEL) == ({"residual": tuple(layers)}, [])


@pytest.mark.parametrize(("spec", "layers"), MIXED, ids=[repr(spec) for spec, _ in MIXED])
def test_components_mix(spec: Any, layers: dict[str, list[int]]) -> None:
    parts, faults = parse(spec)
    assert faults == []
    resolved, faults = resolve(parts, MODEL)
    assert resolved == {component: tuple(indices) for component, indices in layers.items()}
    assert list(resolved) == list(layers), "the order is that of the components, not of the spec"
    assert faults == []


@pytest.mark.parametrize(("spec", "messages"), UNREADABLE, ids=[repr(spec) for spec, _ in UNREADABLE])
def test_unreadable(spec: Any, messages: list[str]) -> None:
    _, faults = parse(spec)
    assert [str(fault) for fault in faults] == messages


@pytest.mark.parametrize(("spec", "messages"), IMPOSSIBLE, ids=[repr(spec) for spec, _ in IMPOSSIBLE])
def test_impossible_for_a_model_of_34_layers(spec: Any, messages: list[str]) -> None:
    parts, faults = parse(spec)
    assert faults == []
    _, faults = resolve(parts, MODEL)
    assert [str(fault) for fault in faults] == messages


def test_components_that_a_model_has_not() -> None:
    mamba = {"residual": 4}
    layers, faults = resolve(parse("mlp_all 2 attentions_0-9 vision_0")[0], mamba)
    assert layers == {"residual": (2,)}
    assert [str(fault) for fault in faults] == [
        "layers: `mlp_all`: the model has no `mlp` that can be captured (it has residual)",
        "layers: `attentions_0-9`: the model has no `attention` that can be captured (it has residual)",
        "layers: `vision_0`: the model has no `vision` that can be captured (it has residual)",
    ]
    _, (fault,) = resolve(parse("vision_all")[0], {"residual": 4, "attention": 4, "mlp": 4})
    assert fault.hint == "it has residual, attention, mlp"


def test_what_is_possible_is_resolved_beside_what_is_not() -> None:
    layers, faults = resolve(parse("3 40 mlp_5 mlp_9-8 vision_99 vision_1")[0], MODEL)
    assert layers == {"residual": (3,), "mlp": (5,), "vision": (1,)}
    assert len(faults) == 3


def test_readable_terms_are_kept_beside_unreadable_ones() -> None:
    parts, faults = parse("3 x 5-6 head_2 mlp_1")
    assert [(part.text, part.component) for part in parts] == [
        ("3", "residual"),
        ("5-6", "residual"),
        ("mlp_1", "mlp"),
    ]
    assert len(faults) == 2


@given(st.sets(st.integers(0, 99), min_size=1), st.integers(0, 20))
def test_what_describe_writes_is_read_back(layers: set[int], more: int) -> None:
    wanted = tuple(sorted(layers))
    parts, faults = parse(describe(wanted))
    assert faults == []
    assert resolve(parts, {"residual": max(layers) + 1 + more}) == ({"residual": wanted}, [])


@given(
    st.dictionaries(st.sampled_from(COMPONENTS), st.sets(st.integers(0, 40), min_size=1), min_size=1),
    st.integers(0, 20),
)
def test_what_describe_all_writes_is_read_back(chosen: dict[str, set[int]], more: int) -> None:
    wanted = {name: tuple(sorted(chosen[name])) for name in COMPONENTS if name in chosen}
    parts, faults = parse(describe_all(wanted))
    assert faults == []
    counts = {name: max(chosen.get(name, {0})) + 1 + more for name in COMPONENTS}
    assert resolve(parts, counts) == (wanted, [])


@given(st.integers(1, 50), st.sampled_from(["", *(f"{name}_" for name in COMPONENTS)]), st.data())
def test_ranges_are_those_of_python(n_layers: int, prefix: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n_layers - 1))
    stop = data.draw(st.integers(start, n_layers - 1))
    step = data.draw(st.integers(1, 9))
    component = prefix[:-1] or "residual"
    expected = {component: tuple(range(n_layers)[start : stop + 1 : step])}
    for spec in (f"{start}-{stop}:{step}", f"{start - n_layers}-{stop - n_layers}:{step}"):
        assert resolve(parse(prefix + spec)[0], {component: n_layers}) == (expected, [])


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    parts, faults = parse(text)
    assert bool(parts) or bool(faults)
    resolve(parts, MODEL)


words = st.sampled_from([*COMPONENTS, "mlps", "head", "all", "_", "-", ":", ",", " ", "0", "3", "99", "x"])


@given(st.lists(words, max_size=12))
def test_any_words_of_the_grammar_are_read_or_refused(words: list[str]) -> None:
    parts, faults = parse("".join(words))
    assert bool(parts) or bool(faults)
    layers, faults = resolve(parts, MODEL)
    for component, indices in layers.items():
        assert list(indices) == sorted(set(indices))
        assert 0 <= indices[0] <= indices[-1] < MODEL[component]
