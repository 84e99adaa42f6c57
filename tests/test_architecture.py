"""ARCHITECTURE.md lists the imports of each package and names modules that exist; decisions have a date."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
FILES = [path for name in ("actkit", "app") for path in (ROOT / name).rglob("*.py")]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}
PACKAGES = {module_of(path) for path in FILES if path.name == "__init__.py"}
# `actkit` itself has no row: its modules lie at the bottom and at the top
ROWS = {
    row[1]: (row[2], re.findall(r"`(\w+)`|(torch)", row[3]))
    for row in re.finditer(r"^\| `([\w.]+)` \| (.+?) \|(.*)\|$", PAGE, re.MULTILINE)
}


def package_of(module: str) -> str:
    while module not in PACKAGES:
        module = module.rpartition(".")[0]
    return module


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, also those that only its functions import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    inside = package_of(module_of(path)).split(".")
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def imported(package: str) -> set[str]:
    """Return the packages that a package imports, and torch, but for itself and `actkit`."""
    names: set[str] = set()
    for path in FILES:
        if package_of(module_of(path)) == package:
            for name in imports(path):
                top = name.partition(".")[0]
                if top in ("actkit", "app"):
                    names.add(package_of(name))
                elif top == "torch":
                    names.add(top)
    return names - {package, "actkit"}


def test_every_package_has_a_row_and_every_row_a_package() -> None:
    assert ROWS.keys() == PACKAGES - {"actkit"}


@pytest.mark.parametrize("package", ROWS)
def test_the_last_column_lists_the_imports(package: str) -> None:
    listed = {"".join(name) for name in ROWS[package][1]}
    expected = {name.rpartition(".")[2] for name in imported(package)}
    assert listed == expected - ({"app"} if package == "app.views" else set())


@pytest.mark.slow
def test_packages_import_only_packages_in_lower_rows() -> None:
    order = [*ROWS, "torch"]
    for package in ROWS:
        for name in imported(package) - ({"app"} if package == "app.views" else set()):
            assert order.index(name) > order.index(package), f"{package} imports {name}"


def test_the_life_of_a_sample_names_modules_in_at_most_eight_steps() -> None:
    life = PAGE.partition("## The life of one sample")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d\. .+(?:\n {3}.+)*", life, re.MULTILINE)
    assert 0 < len(steps) <= 8
    last_names = {module.rpartition(".")[2] for module in MODULES}
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", life):
        if name != "committed":  # an array of the cube
            assert f"actkit.{name}" in MODULES if "." in name else name in last_names, name


def test_every_module_named_below_the_table_exists() -> None:
    paragraph = PAGE.partition("The modules directly in `actkit`")[2].partition("\n## ")[0]
    for name in re.findall(r"`([a-z_]+)`", paragraph):
        assert name in ("actkit", "__init__") or f"actkit.{name}" in MODULES, name


def test_the_picture_is_drawn_on_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each box that begins with a package begins with one that exists."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    mermaid = importlib.import_module("mermaid")
    text = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)[0]
    drawn = mermaid.svg(text)
    labels, edges = mermaid.parse(text)
    assert drawn.count("<rect") == len(labels) == len({name for edge in edges for name in edge})
    assert drawn.count("<line") == len(edges)
    for label in labels.values():
        name, has_purpose, purpose = label.partition("<br/>")
        assert f">{name}</text>" in drawn
        assert f">{purpose}</text>" in drawn or not has_purpose
        for package in name.split(", ") if has_purpose else ():
            assert {package, f"actkit.{package}"} & PACKAGES, package
    with pytest.raises(ValueError, match=r"^cannot draw 'a -.-> b'$"):
        mermaid.svg("flowchart TD\n  a -.-> b")


DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_a_number_a_status_and_a_date(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    number = int(path.stem[:4])
    assert re.match(
        rf"# {number}\. .+\n\n\*\*Status\.\*\* (Accepted|Superseded), \d{{4}}-\d\d-\d\d[.;]", text
    )
    index = (path.parent / "index.md").read_text(encoding="utf-8")
    assert f"\n{path.stem}\n" in index
