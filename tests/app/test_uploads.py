"""Files from browsers, in pieces that come as they like."""

import itertools
from typing import Any

import pytest

from app.uploads import Upload


def pieces(content: bytes, size: int = 4, name: str = "a.csv") -> list[dict[str, Any]]:
    cut = [content[at : at + size] for at in range(0, len(content), size)]
    header = {"status": "upload_event", "name": name, "mime_type": "text/csv", "total_chunks": len(cut)}
    return [{**header, "chunk": at, "data": data} for at, data in enumerate(cut, 1)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_file_is_whole_whatever_the_order(order: tuple[int, ...]) -> None:
    upload = Upload()
    upload._handle_msg({"status": "initializing"})
    sent = pieces(b"text\none\n..")
    for place, at in enumerate(order):
        if place == 2:
            upload._handle_msg({"status": "finished"})  # which overtakes the last piece
        upload._handle_msg(sent[at])
    assert (upload.value, upload.filename, upload.fault) == (b"text\none\n..", "a.csv", "")


def test_more_than_is_allowed_is_not_held() -> None:
    upload = Upload(max_file_size=10)
    upload._handle_msg({"status": "initializing"})
    for message in [*pieces(b"x" * 8, name="b.csv")[:1], *pieces(b"y" * 400)]:
        upload._handle_msg(message)
        held = sum(len(piece) for file in upload._file_buffer.values() for piece in file["chunks"].values())
        assert held <= 10
    assert upload.value is None
    assert upload.fault == "a.csv: is larger than 10 bytes"
    upload._handle_msg({"status": "initializing"})
    for message in pieces(b"small"):
        upload._handle_msg(message)
    assert (upload.value, upload.fault) == (b"small", "")


def test_what_the_browser_refuses_is_said() -> None:
    upload = Upload()
    upload._handle_msg({"status": "error", "error": "File a.csv exceeds"})
    assert upload.fault == "File a.csv exceeds"
