"""Public names, their types, and the cost of importing them."""

import inspect
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, Unpack, get_args, get_origin, get_type_hints

import pytest

import actkit
from actkit.config import Config, Generation, Tracking
from actkit.config_faults import check
from actkit.layer_spec import Spec
from actkit.options import Options
from actkit.schema import FORMER_OPTIONS


def test_all_is_sorted_and_every_name_resolves() -> None:
    assert actkit.__all__ == sorted(actkit.__all__)
    for name in actkit.__all__:
        assert callable(getattr(actkit, name)), name
    assert set(actkit.__all__) <= set(dir(actkit))


@pytest.mark.slow
def test_public_names_survive_imports_of_submodules() -> None:
    code = "import actkit.extraction.run, actkit; print(actkit.extract.__name__, actkit.plan.__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["extract", "plan"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(actkit, "no_such_name")


def test_importing_actkit_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "datasets", "PIL", "zarr", "dask", "pandas", "sklearn", "holoviews"}
    code = f"import sys, actkit; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_analyses_and_pictures_import_no_torch() -> None:
    code = "import sys, actkit; actkit.plots.layer_norms, actkit.report, actkit.group_differential; "
    code += "print('torch' in sys.modules, 'sklearn' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]


def test_every_public_name_is_documented() -> None:
    for name in actkit.__all__:
        assert (getattr(actkit, name).__doc__ or "").strip(), name


def test_plots_are_among_the_names() -> None:
    assert "plots" in dir(actkit)
    assert actkit.plots.layer_norms


def test_the_package_is_typed() -> None:
    assert files("actkit").joinpath("py.typed").is_file()


def members(annotation: Any) -> set[Any]:
    """Return the types of a union, with the strings of its literals."""
    if get_origin(annotation) in (Union, UnionType, Literal):
        return {member for part in get_args(annotation) for member in members(part)}
    return {annotation}


# types that options accept in addition to the type in `Config`
READ: dict[str, set[Any]] = {
    **{name: {Path} for name in ("model", "adapter", "data", "out", "image_root")},
    **{name: {str, list[str]} for name in ("languages", "labels", "categories", "save")},
    "layers": members(Spec),
    "text_columns": {str},
    "generate": {str, dict[str, Any]},
    "wandb": {str, dict[str, Any]},
}


def test_options_are_the_fields_of_the_config() -> None:
    hints = get_type_hints(Options)
    assert list(hints) == list(Config.model_fields)
    for name, field in Config.model_fields.items():
        assert members(hints[name]) == members(field.annotation) | READ.get(name, set()), name


@pytest.mark.parametrize("function", [actkit.extract, actkit.plan])
def test_editors_can_complete_options(function: Any) -> None:
    assert inspect.signature(function, eval_str=True).parameters["options"].annotation == Unpack[Options]


ASKED = {"model": "m", "data": "d", "out": "o"}


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({name: Path("x") for name in ("model", "adapter", "data", "out", "image_root")}, {"model": "x"}),
        ({"languages": ["a"], "labels": "a,b"}, {"languages": ("a",), "labels": ("a", "b")}),
        ({"categories": "a", "save": ["norm"]}, {"categories": ("a",), "save": ("norm",)}),
        ({"layers": 3}, {"layers": "3"}),
        ({"layers": [0, "mlp_1"]}, {"layers": "0 mlp_1"}),
        ({"text_columns": "a=b"}, {"text_columns": {"a": "b"}}),
        ({"generate": "max_new_tokens=2"}, {"generate": Generation(max_new_tokens=2)}),
        ({"generate": {"max_new_tokens": 2}}, {"generate": Generation(max_new_tokens=2)}),
        ({"wandb": "project=p"}, {"wandb": Tracking(project="p")}),
        ({"wandb": {"project": "p"}}, {"wandb": Tracking(project="p")}),
    ],
)
def test_every_type_of_an_option_is_read(options: dict[str, Any], read: dict[str, Any]) -> None:
    config, faults = check({**ASKED, **options})
    assert not faults
    assert {name: getattr(config, name) for name in read} == read


def test_former_names_are_those_of_options_no_more() -> None:
    assert not FORMER_OPTIONS.keys() & Config.model_fields.keys()
    assert set(FORMER_OPTIONS.values()) <= Config.model_fields.keys()


@pytest.mark.parametrize("name", ["group_differential", "direction_cosines", "transfer"])
def test_the_compared_label_is_always_named(name: str) -> None:
    by = inspect.signature(getattr(actkit, name)).parameters["by"]
    assert by.default is inspect.Parameter.empty


def test_former_names_are_gone() -> None:
    assert not {"tokens", "multi_resolution"} & set(dir(actkit))
    for name in actkit.__all__:
        value = getattr(actkit, name)
        for function in (value.fit, value.of, value.of_run) if name == "Whitener" else (value,):
            options = set(inspect.signature(function).parameters)
            assert not options & {"pairs", "values", "most_tokens", "components", "tokens_kept"}, name
