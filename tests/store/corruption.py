"""Cubes whose metadata say anything at all, under seals that are right, as an attacker would make them."""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ARRAYS = (
    *("residual", "committed", "sample", "layer", "text", "token_text", "n_tokens", "language"),
    *("has_mlp", "gender", "vision/residual", "vision/layer"),
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3.5,
    10**18,
    10**400,
    "x",
    "NaN",
    [],
    {},
    [[]],
    {"name": "x"},
)
DELETED = object()
Place = tuple[str | int, ...]


def seal(cube: Path, attributes: dict[str, Any] | None = None) -> None:
    """Write checksums of the metadata as they are now."""
    root = cube / "zarr.json"
    document = json.loads(root.read_bytes())
    if attributes is not None:
        document["attributes"] = attributes
    stored = document["attributes"]
    if "arrays" not in (attributes or {}):
        nodes = json.loads(stored["arrays"])
        digests = {
            name: hashlib.sha256((cube / name / "zarr.json").read_bytes()).hexdigest()
            for name in nodes
            if (cube / name / "zarr.json").is_file()
        }
        stored["arrays"] = json.dumps(digests)
    stored["metadata_sha256"] = ""
    content = json.dumps(document, indent=2).encode()
    stored["metadata_sha256"] = hashlib.sha256(content).hexdigest()
    root.write_text(json.dumps(document, indent=2))


def change(cube: Path, name: str, place: Place, value: Any) -> None:
    """Change one entry of the metadata of an array, and seal them."""
    path = cube / name / "zarr.json"
    document = json.loads(path.read_bytes())
    at = document
    for key in place[:-1]:
        at = at[key]
    if value is DELETED:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    path.write_text(json.dumps(document))
    seal(cube)


def places(document: Any, before: Place = ()) -> Iterator[Place]:
    """Yield the place of each entry of a JSON document."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from places(value, (*before, key))


def cases(cube: Path) -> Iterator[tuple[str, Place, Any]]:
    """Yield every entry of the metadata of each kind of array with every value."""
    for name in ARRAYS:
        document = json.loads((cube / name / "zarr.json").read_bytes())
        for place in places(document):
            for value in (*VALUES, DELETED):
                yield name, place, value


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its path may be longer than an address can be
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _link(path: Path) -> None:
    """Link to a file with what was there."""
    path.symlink_to(path.with_name("there"))


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**42)


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x1b[31m\xff{" * 9)


def _nested(path: Path) -> None:
    path.write_bytes(b"[" * 10**6)


KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": _fifo,
    "socket": _socket,
    "/dev/zero": _zeros,
    "link": _link,
    "loop": _loop,
    "folder": Path.mkdir,
    "huge": _huge,
    "garbage": _garbage,
    "nested": _nested,
    "empty": Path.touch,
}


def replace(path: Path, kind: str) -> None:
    """Put a file of another kind in the place of one."""
    path.rename(path.with_name("there"))
    KINDS[kind](path)
