"""Paths that come from a browser: none leaves the folder that it is meant for."""

import re
from pathlib import Path

from actkit.errors import Fault, InputError

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def inside(folder: Path, name: str, where: str, *, longest: int = 200) -> Path:
    """Return the path of a name below a folder.

    Parameters
    ----------
    folder
        It.
    name
        Relative to it, from outside.
    where
        What to call it where it is refused.
    longest
        Characters that it may have.

    Raises
    ------
    InputError
        Where it is empty, absolute, too long or holds a NUL; and where, with all links followed, it lies
        elsewhere.
    """
    if not name or "\0" in name or len(name) > longest or len(name.encode("utf-8", "replace")) > 4 * longest:
        raise InputError([Fault(where, "is no name that can be used", f"give 1 to {longest} characters")])
    root = folder.resolve()
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:
        raise InputError([Fault(where, "cannot be followed", "give another one")]) from error
    if Path(name).is_absolute() or path == root or not path.is_relative_to(root):
        raise InputError([Fault(where, f"{name!r} is outside of {folder.name}", "give a name inside of it")])
    return path


def run_name(name: str, *, longest: int) -> str:
    """Return the name of a new run, or refuse it.

    Raises
    ------
    InputError
        Where it holds more than letters, digits, dots, dashes and underscores, or starts with another one
        than the first two.
    """
    if len(name) > longest or not _RUN.fullmatch(name):
        what = "is no name for a run" if name else "is missing"
        mend = f"give up to {longest} letters, digits, dots, dashes and underscores, a letter or digit first"
        raise InputError([Fault("name", what, mend)])
    return name
