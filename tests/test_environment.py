"""environment.yml offers what pyproject.toml asks for: names and bounds."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
# what conda-forge calls differently
CONDA_NAMES = {"dask": "dask-core", "torch": "pytorch", "huggingface-hub": "huggingface_hub"}


def split(requirement: str) -> tuple[str, str]:
    match = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?\s*(.*)", requirement)
    assert match
    return match[1], match[2].replace(" ", "")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def wanted() -> dict[str, str]:
    """Return what conda is asked for, by its own names."""
    asked = [*PROJECT["dependencies"], *EXTRAS["extract"], *EXTRAS["app"], *EXTRAS["notebook"]]
    found = dict(split(requirement) for requirement in asked)
    del found["actkit"]
    return {CONDA_NAMES.get(name, name): bounds for name, bounds in found.items()}


def offered(path: str) -> dict[str, str]:
    environment = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    found = dict(split(entry) for entry in environment["dependencies"] if isinstance(entry, str))
    assert found.pop("pip") == ""
    return found


def test_environment_is_in_step_with_pyproject() -> None:
    assert offered("environment.yml") == {**wanted(), "python": PROJECT["requires-python"]}


def test_binder_has_the_cpu_build_and_the_proxy() -> None:
    own = wanted()
    own["pytorch-cpu"] = own.pop("pytorch")
    assert offered("binder/environment.yml") == {**own, "python": "=3.11", "jupyter-panel-proxy": ">=0.2"}


def test_all_is_every_extra_of_a_user() -> None:
    assert EXTRAS["all"] == ["actkit[app,extract,notebook,wandb]"]
    assert EXTRAS.keys() - {"all", "bench", "dev", "docs"} == {"app", "extract", "notebook", "wandb"}


def test_constraints_pin_the_torch_of_the_makefile() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH := torch=={pins['torch']}\n" in makefile
