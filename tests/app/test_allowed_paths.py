"""No name from a browser leads out of the folder that it is meant for."""

from pathlib import Path

import pytest

from actkit.errors import InputError
from app.allowed_paths import inside, run_name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../other",
        "a/../../other",
        "/etc/passwd",
        "nul\0",
        "x" * 201,
        "é" * 201,
        "link/secret.csv",
        "loop",
        "~root/../../x/../..",
    ],
)
def test_what_lies_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "secret.csv").write_text("x", encoding="utf-8")
    (root / "link").symlink_to(other)
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(InputError, match="data: "):
        inside(root, name, "data")


@pytest.mark.parametrize("name", ["a.csv", "a/b.csv", "الصور.csv", "a/../b.csv", "..a", "x" * 200])
def test_what_lies_inside_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    assert inside(tmp_path, name, "data") == (tmp_path / name).resolve()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "../a", "-a", "a\n", "<img>", "é", "x" * 81])
def test_a_run_has_a_plain_name(name: str) -> None:
    with pytest.raises(InputError, match="name: is "):
        run_name(name, longest=80)
    assert run_name("gemma-3_4b.it", longest=80) == "gemma-3_4b.it"
