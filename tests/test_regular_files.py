"""Untrusted files are opened immediately or rejected, and links never followed unasked."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from actkit.regular_files import IrregularError, file_fault, open_descriptor, read_regular, read_tail


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.with_name("outside").write_text("outside")
    path.symlink_to("outside")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("outside")


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    path.write_bytes(b"12345678901")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, "is not a regular file"),
        (Path.mkdir, "is a folder"),
        (link, "is a link, which is not followed"),
        (link_to_nothing, "is a link, which is not followed"),
        (zeros, "is a link, which is not followed"),
        (large, "is larger than 10 bytes"),
        (lambda path: None, "No such file or directory"),
    ],
)
def test_what_is_no_regular_file_is_refused_without_being_read(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "it"
    make(path)
    with pytest.raises(OSError, match=message):  # a FIFO would block, and zeros would never end
        read_regular(path, 10, follow=False)


def test_devices_are_refused_where_links_are_followed() -> None:
    with pytest.raises(OSError, match="is not a regular file"):
        read_regular(Path("/dev/zero"), 10)


def test_a_link_that_the_user_chose_is_followed(tmp_path: Path) -> None:
    link(tmp_path / "it")
    assert read_regular(tmp_path / "it", 10) == b"outside"


def test_a_path_with_a_nul_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="null byte"):
        read_regular(Path("a\0b"), 10)


def test_the_end_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"0123456789")
    assert read_tail(tmp_path / "log", 4) == (b"6789", False)
    assert read_tail(tmp_path / "log", 10) == (b"0123456789", True)


@pytest.mark.parametrize("make", [fifo, link, link_to_nothing, Path.mkdir])
def test_nothing_else_is_written_to(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "it")
    before = {path.name: path.lstat().st_size for path in tmp_path.iterdir()}
    with pytest.raises(OSError):  # noqa: PT011 - each system has a message of its own for some
        open_descriptor(tmp_path / "it", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    assert {path.name: path.lstat().st_size for path in tmp_path.iterdir()} == before


def test_a_hard_link_is_read_but_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    os.link(tmp_path / "elsewhere", tmp_path / "it")
    assert read_regular(tmp_path / "it", 10) == b"kept"
    with pytest.raises(OSError, match="has another hard link elsewhere"):
        open_descriptor(tmp_path / "it", os.O_WRONLY | os.O_APPEND)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (fifo, "is not a regular file"),
        (Path.mkdir, "is a folder"),
        (zeros, "is a link, which is not followed"),
        (large, "is larger than 10 bytes"),
        (Path.touch, "is empty"),
        (lambda path: None, "is missing"),
        (lambda path: path.write_text("short"), ""),
    ],
)
def test_what_keeps_a_file_from_being_read_is_said(
    tmp_path: Path, make: Callable[[Path], None], what: str
) -> None:
    make(tmp_path / "it")
    assert file_fault(tmp_path / "it", 10) == what


@pytest.mark.parametrize("make", [fifo, link, link_to_nothing, Path.mkdir])
def test_names_may_be_those_of_a_folder_that_is_held(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "plain").write_text("plain")
    make(tmp_path / "it")
    folder = os.open(tmp_path, os.O_RDONLY)
    os.close(open_descriptor(Path("plain"), dir_fd=folder))
    with pytest.raises(IrregularError):
        open_descriptor(Path("it"), dir_fd=folder)
    os.close(folder)
