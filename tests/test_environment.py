"""Files that repeat facts of pyproject.toml agree with it: environments, Makefile, citation, changelog."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
# packages with other names on conda-forge
CONDA_NAMES = {"dask": "dask-core", "torch": "pytorch", "huggingface-hub": "huggingface_hub"}


def split(requirement: str) -> tuple[str, str]:
    match = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?\s*(.*)", requirement)
    assert match
    return match[1], match[2].replace(" ", "")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def wanted() -> dict[str, str]:
    """Return the required packages and their bounds, by their conda-forge names."""
    asked = [*PROJECT["dependencies"], *EXTRAS["extract"], *EXTRAS["app"], *EXTRAS["notebook"]]
    requirements = dict(split(requirement) for requirement in asked)
    del requirements["actkit"]
    return {CONDA_NAMES.get(name, name): bounds for name, bounds in requirements.items()}


def offered(path: str) -> dict[str, str]:
    environment = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    requirements = dict(split(entry) for entry in environment["dependencies"] if isinstance(entry, str))
    assert requirements.pop("pip") == ""
    return requirements


def test_environment_is_in_step_with_pyproject() -> None:
    assert offered("environment.yml") == {**wanted(), "python": PROJECT["requires-python"]}


def test_binder_has_the_cpu_build_and_the_proxy() -> None:
    required = wanted()
    required["pytorch-cpu"] = required.pop("pytorch")
    assert offered("binder/environment.yml") == {
        **required,
        "python": "=3.11",
        "jupyter-panel-proxy": ">=0.2",
    }


def test_all_is_every_extra_of_a_user() -> None:
    assert EXTRAS["all"] == ["actkit[adapters,app,cluster,extract,notebook,remote,wandb]"]
    assert EXTRAS.keys() - {"all", "bench", "dev", "docs"} == {
        "adapters",
        "app",
        "cluster",
        "extract",
        "notebook",
        "remote",
        "wandb",
    }


def test_constraints_pin_the_torch_of_the_makefile() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH := torch=={pins['torch']}\n" in makefile


def test_citation_and_changelog_name_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    releases = re.findall(
        r"^## \[(\d.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert releases[0] == (PROJECT["version"], citation["date-released"])
    assert citation["version"] == PROJECT["version"]
    assert citation["authors"] == PROJECT["authors"]


def test_classifiers_workflows_and_ci_name_the_same_interpreters() -> None:
    versions = [name.removeprefix("Programming Language :: Python :: ") for name in PROJECT["classifiers"]]
    supported = [version for version in versions if version.startswith("3.")]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert supported == ["3.11", "3.12", "3.13"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["fast"]["strategy"]["matrix"]["python"] == supported
    assert jobs["core"]["strategy"]["matrix"]["python"] == supported


def test_workflows_pin_actions_and_run_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}, path
        for step in (step for job in workflow["jobs"].values() for step in job["steps"]):
            assert re.fullmatch(
                r"actions/[\w-]+@[0-9a-f]{40}", step.get("uses", f"actions/run@{'0' * 40}")
            ), step
            if "run" in step:
                command, target = step["run"].split()
                assert command == "make"
                assert target in targets, f"{path.name}: make {target}"
