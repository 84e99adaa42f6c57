"""A layer specification is said back without the model."""

from actkit.demo import MODEL
from actkit.widgets.layer_choice import echo, layer_counts


def test_layers_are_said_back() -> None:
    counts = layer_counts(str(MODEL))
    assert counts == {"residual": 10, "attention": 10, "mlp": 10}
    assert echo("", counts) == ("10 layers: 0-9", "", tuple(range(10)))
    assert echo("0-3 mlp_all", counts) == ("4 layers: 0-3; mlp: 10 layers: 0-9", "", (0, 1, 2, 3))
    assert echo("-1", counts)[0] == "1 layer: 9"
    assert echo("12", counts)[1] == "`12`: the model has no layer 12 (it has 10 layers, 0–9)"
    assert echo("x", counts)[1].startswith("cannot read `x`")
    assert echo("all", {}) == ("", "", ())
    assert layer_counts("/nowhere") == layer_counts("nobody/knows-it") == {}
    # while it is typed
    assert layer_counts("") == layer_counts("nobody/") == layer_counts("a//b") == {}
    assert layer_counts(__file__) == {}  # as of a GGUF file
