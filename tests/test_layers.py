"""The grammar of layers: what it reads, what it refuses, and that its own writing reads back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.layers import GRAMMAR, describe, parse, resolve

N = 34
EVERY = list(range(N))

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

WRITE = f"(write {GRAMMAR})"

UNREADABLE: list[tuple[Any, list[str]]] = [
    ("", [f"layers: no layer is named {WRITE}"]),
    (" , ", [f"layers: no layer is named {WRITE}"]),
    ([], [f"layers: no layer is named {WRITE}"]),
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
    ("_all", ["layers: `_all`: component `` is unknown (components: residual)"]),
    ("0-8:0", ["layers: `0-8:0` has step 0 (a step is 1 or more)"]),
    ("head_3", ["layers: `head_3`: component `head` is unknown (components: residual)"]),
    ("mlp_5-15", ["layers: `mlp_5-15`: component `mlp` cannot be captured yet (components: residual)"]),
    (
        "attentions_3 x 4 y",
        [
            "layers: `attentions_3`: component `attentions` cannot be captured yet (components: residual)",
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
]


@pytest.mark.parametrize(("spec", "layers"), GOOD, ids=[repr(spec) for spec, _ in GOOD])
def test_readable(spec: Any, layers: list[int]) -> None:
    parts, faults = parse(spec)
    assert faults == []
    assert resolve(parts, N) == (tuple(layers), [])


@pytest.mark.parametrize(("spec", "messages"), UNREADABLE, ids=[repr(spec) for spec, _ in UNREADABLE])
def test_unreadable(spec: Any, messages: list[str]) -> None:
    _, faults = parse(spec)
    assert [str(fault) for fault in faults] == messages


@pytest.mark.parametrize(("spec", "messages"), IMPOSSIBLE, ids=[repr(spec) for spec, _ in IMPOSSIBLE])
def test_impossible_for_a_model_of_34_layers(spec: Any, messages: list[str]) -> None:
    parts, faults = parse(spec)
    assert faults == []
    _, faults = resolve(parts, N)
    assert [str(fault) for fault in faults] == messages


def test_readable_terms_are_kept_beside_unreadable_ones() -> None:
    parts, faults = parse("3 x 5-6")
    assert [part.text for part in parts] == ["3", "5-6"]
    assert len(faults) == 1


@given(st.sets(st.integers(0, 99), min_size=1), st.integers(0, 20))
def test_what_describe_writes_is_read_back(layers: set[int], more: int) -> None:
    wanted = tuple(sorted(layers))
    parts, faults = parse(describe(wanted))
    assert faults == []
    assert resolve(parts, max(layers) + 1 + more) == (wanted, [])


@given(st.integers(1, 50), st.data())
def test_ranges_are_those_of_python(n_layers: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n_layers - 1))
    stop = data.draw(st.integers(start, n_layers - 1))
    step = data.draw(st.integers(1, 9))
    expected = tuple(range(n_layers)[start : stop + 1 : step])
    for spec in (f"{start}-{stop}:{step}", f"{start - n_layers}-{stop - n_layers}:{step}"):
        assert resolve(parse(spec)[0], n_layers) == (expected, [])


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    parts, faults = parse(text)
    assert bool(parts) or bool(faults)
    resolve(parts, N)
