"""URLs of runs in object stores."""

import re
from urllib.parse import urlsplit

from .errors import Fault, InputError

SCHEMES = ("s3", "gs", "az", "memory")  # the last one, in the memory of this process, is for tests
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(path: object) -> bool:
    """Return whether a path is the URL of an object store rather than a path in a file system.

    Examples
    --------
    >>> is_url("s3://bucket/runs/x"), is_url("runs/x")
    (True, False)
    """
    return isinstance(path, str) and _URL.match(path) is not None


def url_faults(url: str, name: str = "url") -> list[Fault]:
    """Return the faults of the URL of a run; none of them repeats a credential."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        hint = "use s3://, gs:// or az://, or a folder"
        return [Fault(name, f"has the unknown scheme {parts.scheme}://", hint)]
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        hint = "set credentials in the environment, such as AWS_ACCESS_KEY_ID"
        return [Fault(name, "has credentials, a query or a fragment, which would be written to files", hint)]
    if not parts.netloc or not parts.path.strip("/"):
        hint = f"give both, as in {parts.scheme}://bucket/runs/x"
        return [Fault(name, "names no bucket, or no path in it", hint)]
    if any(part in ("", ".", "..") for part in parts.path.strip("/").split("/")):
        return [Fault(name, "has an empty part, `.` or `..` in its path", "write the path without it")]
    return []


def checked_url(url: str, name: str = "url") -> str:
    """Return a URL without slashes at its end.

    Raises
    ------
    InputError
        If it is not the URL of a folder in an object store.
    """
    if faults := url_faults(url, name):
        raise InputError(faults)
    return url.rstrip("/")
