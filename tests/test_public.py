"""The names the world sees, and what importing them costs."""

import subprocess
import sys

import actkit


def test_all_is_sorted_and_every_name_resolves() -> None:
    assert actkit.__all__ == sorted(actkit.__all__)
    for name in actkit.__all__:
        assert callable(getattr(actkit, name)), name
    assert set(actkit.__all__) <= set(dir(actkit))


def test_public_names_survive_imports_of_submodules() -> None:
    code = "import actkit.extraction.engine, actkit; print(actkit.extract.__name__, actkit.plan.__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["extract", "plan"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(actkit, "no_such_name")


def test_importing_actkit_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "datasets", "PIL", "zarr", "dask", "pandas", "sklearn", "holoviews"}
    code = f"import sys, actkit; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_analyses_and_pictures_import_no_torch() -> None:
    code = "import sys, actkit; actkit.plots.layer_norms, actkit.report, actkit.group_differential; "
    code += "print('torch' in sys.modules, 'sklearn' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]


def test_every_public_name_is_documented() -> None:
    for name in actkit.__all__:
        assert (getattr(actkit, name).__doc__ or "").strip(), name
