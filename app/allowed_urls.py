"""URLs that a browser may open: runs that the settings name, and runs below URLs that end in `/`."""

from collections.abc import Sequence

from actkit.errors import Fault, InputError
from actkit.object_urls import checked_url, is_url, url_faults


def named(urls: Sequence[str]) -> list[str]:
    """Return the allowed URLs that are those of single runs."""
    return [url for url in urls if not url.endswith("/")]


def has_folders(urls: Sequence[str]) -> bool:
    """Return whether a URL that is typed may be allowed."""
    return len(named(urls)) < len(urls)


def allowed(urls: Sequence[str], url: str, *, longest: int = 500) -> str:
    """Return the URL of a run without slashes at its end.

    Parameters
    ----------
    urls
        Allowed URLs of runs, and of folders of runs, which end in ``/``.
    url
        Untrusted URL.
    longest
        Maximum number of characters.

    Raises
    ------
    InputError
        If it is no URL, has credentials, a query or ``..`` in it, or is not allowed.
    """
    if len(url) > longest or not url.isprintable() or not is_url(url):
        raise InputError([Fault("url", "is not the URL of a run", "give one such as s3://bucket/runs/x")])
    checked = checked_url(url)
    if checked in named(urls) or any(each.endswith("/") and checked.startswith(each) for each in urls):
        return checked
    raise InputError(
        [Fault("url", "may not be opened here", "ask who runs this server to add it to ACTKIT_URLS")]
    )


def faults_of(urls: Sequence[str]) -> list[Fault]:
    """Return the faults of allowed URLs."""
    hint = "use s3://, gs:// or az://"
    faults = [Fault(url, "is not a URL", hint) for url in urls if not is_url(url)]
    # a whole bucket may be allowed
    filled = (url + ("x" if url.endswith("/") else "") for url in urls if is_url(url))
    return [*faults, *(fault for url in filled for fault in url_faults(url))]
