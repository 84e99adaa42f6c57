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


def test_environment_is_in_step_with_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {"python": project["requires-python"]}
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["extract"], *extras["app"]]:
        name, bounds = split(requirement)
        wanted[CONDA_NAMES.get(name, name)] = bounds
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    offered = dict(split(entry) for entry in environment["dependencies"] if isinstance(entry, str))
    assert offered.pop("pip") == ""
    assert offered == wanted
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_constraints_pin_the_torch_of_the_makefile() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH := torch=={pins['torch']}\n" in makefile
