"""The documentation is correct: code runs, commands and options exist, and every public name is covered."""

import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import actkit
from actkit.cli import _parser
from actkit.config import Config
from actkit.config_faults import check
from actkit.demo import CAPTIONS, MODEL, draw_scenes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", DOCS / "tutorial.md", DOCS / "format.md"]
PAGES += [*sorted((DOCS / "howto").glob("*.md")), *sorted((DOCS / "methods").glob("*.md"))]
EVERY_PAGE = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
_FENCE = re.compile(r"^(<!-- not run: [^>\n]+ -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: Path, language: str, *, run: bool = True) -> Iterator[str]:
    """Yield the code blocks of a page, on request also those marked with a reason not to run them."""
    for excuse, fence, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        if fence == language and not (excuse and run):
            yield text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vlm: Any) -> Path:
    """Folder with the runs that pages start from: small versions of the demo."""
    folder = tmp_path_factory.mktemp("docs")
    common = {"listeners": [], "window_samples": 64}
    actkit.extract(model=str(MODEL), data=str(CAPTIONS), out=str(folder / "runs/demo"), limit=240, **common)
    scenes = draw_scenes(folder / "scenes", 6)
    seen = {"image_column": "image", "layers": "all vision_all", **common}
    actkit.extract(model=str(vlm("gemma3")), data=str(scenes), out=str(folder / "runs/scenes"), **seen)
    return folder


# the demo of these tests is too small for autoencoders
@pytest.mark.filterwarnings("ignore:.*another seed finds other features")
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "page"}
    for text in fences(page, "python"):
        exec(compile(text, str(page), "exec"), names)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the commands that a page shows, without the prompt."""
    for text in fences(page, "console", run=False):
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield shlex.split(line[2:], comments=True)


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in commands(page):
        if command[0] == "actkit":
            _parser().parse_args(command[1:])  # exits if it cannot be parsed
        elif command[0] == "make":
            assert set(command[1:]) <= set(targets), command


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist(page: Path) -> None:
    for text in fences(page, "yaml"):
        options = yaml.safe_load(text)
        _, faults = check({"model": "m", "data": "d", "out": "o", **options})
        assert not faults, text


def generated() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_extensions"))
        return importlib.import_module("generated")


def test_every_option_and_command_is_in_the_reference() -> None:
    made = generated()
    table, sections = made.options(), made.commands()
    for name, field in Config.model_fields.items():
        assert f"| `{name}` |" in table
        assert field.description, name
    for name, parser in made.subcommands().items():
        assert f"## actkit {name}\n" in sections
        for action in parser._actions:
            of_config = name in ("extract", "plan") and action.dest in Config.model_fields
            for flag in [] if of_config else set(action.option_strings) - {"-h", "--help"}:
                assert f"`{flag}`" in sections, f"{name} {flag}"


@pytest.mark.parametrize("module", ["actkit", "actkit.plots", "actkit.widgets"])
def test_every_public_name_is_in_the_reference(module: str) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    whole = re.findall(r"automodule:: (\S+)\n   :members:\n", text)
    for name in importlib.import_module(module).__all__:
        assert module in whole or re.search(rf":: {module}\.{name}\b", text), f"{module}.{name}"


def test_every_error_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    errors = importlib.import_module("actkit.errors")
    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            assert re.search(rf"^\.\. auto\w+:: {name}$", text, re.MULTILINE), name


def test_every_page_is_in_a_table_of_contents() -> None:
    entries = set()
    for page in [DOCS / "index.md", *DOCS.glob("*/index.md")]:
        for text in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            entries |= {os.path.normpath(page.parent / line) for line in text.split() if ":" not in line}
    for page in DOCS.rglob("*.md"):
        if page != DOCS / "index.md" and page.parent.name != "decisions":
            assert str(page.with_suffix("")) in entries, page
