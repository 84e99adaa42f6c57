"""Validation of paths that come from a browser; none may leave its folder."""

import re
from pathlib import Path

from actkit.errors import Fault, InputError

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def inside(folder: Path, name: str, where: str, *, longest: int = 200) -> Path:
    """Return the path of a name below a folder.

    Parameters
    ----------
    folder
        Folder that must contain the path.
    name
        Untrusted name, relative to the folder.
    where
        Name of the input in error messages.
    longest
        Maximum number of characters.

    Raises
    ------
    InputError
        If the name is empty, absolute, too long or contains a NUL, or if the path is outside the folder once
        all links are resolved.
    """
    if not name or "\0" in name or len(name) > longest or len(name.encode("utf-8", "replace")) > 4 * longest:
        raise InputError([Fault(where, "is not a valid name", f"give 1 to {longest} characters")])
    root = folder.resolve()
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:
        raise InputError([Fault(where, "cannot be resolved", "give another name")]) from error
    if Path(name).is_absolute() or path == root or not path.is_relative_to(root):
        raise InputError([Fault(where, f"{name!r} is outside {folder.name}", "give a name inside it")])
    return path


def run_name(name: str, *, longest: int) -> str:
    """Validate and return the name of a new run.

    Raises
    ------
    InputError
        If the name contains anything but letters, digits, dots, dashes and underscores, or does not start
        with a letter or digit.
    """
    if len(name) > longest or not _RUN.fullmatch(name):
        what = "is not a valid run name" if name else "is missing"
        hint = (
            f"use up to {longest} letters, digits, dots, dashes and underscores, not starting with a symbol"
        )
        raise InputError([Fault("name", what, hint)])
    return name
