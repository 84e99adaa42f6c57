"""Hashes distinguish different values; keys are found with their row."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.fingerprints import Keys, content_of, file_digest
from actkit.sources import Row


def row(text: Any = "a", sample_id: Any = "s", image: Any = None, labels: tuple[Any, ...] = ()) -> Row:
    return Row("row 1", sample_id, "english", "text", text, image, None, labels)


@pytest.mark.parametrize(
    "other",
    [
        row("b"),
        row(sample_id="sa", text=""),
        row(sample_id=1),
        row(sample_id="1"),
        row(labels=(1,)),
        row(labels=(1.0,)),
        row(labels=(True,)),
        row(labels=("1",)),
        row(labels=(None,)),
        row(labels=("a", "b")),
        row(labels=("ab", "")),
        row(labels=(["a", "b"],)),
        row(image="1"),
        row(image=b"1"),
        row(image={"bytes": b"1", "path": None}),
        row(image={"bytes": b"1", "path": "a.png"}),
    ],
    ids=str,
)
def test_rows_that_differ_have_other_contents(other: Row) -> None:
    assert content_of(other) != content_of(row())
    assert content_of(other) == content_of(other._replace(where="row 2", category="c"))


def test_many_keys_are_found_in_their_rows() -> None:
    keys = Keys()
    digests = [hashlib.blake2b(str(i).encode(), digest_size=16).digest() for i in range(20_000)]
    for number, digest in enumerate(digests):
        assert keys.find(digest) is None
        keys.add(digest, number)
    assert [keys.find(digest) for digest in digests] == list(range(20_000))


@given(st.sets(st.binary(min_size=16, max_size=16), max_size=30), st.binary(min_size=16, max_size=16))
def test_keys_may_end_in_zeros(digests: set[bytes], other: bytes) -> None:
    keys = Keys(recent=2)
    digests |= {bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\1\1" + bytes(14)}
    for number, digest in enumerate(sorted(digests)):
        keys.add(digest, number)
    for number, digest in enumerate(sorted(digests)):
        assert keys.find(digest) == number
    assert (keys.find(other) is None) == (other not in digests)


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
