"""Clients of object stores; their credentials come from the environment.

obstore is imported only here and in `object_folder`.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from platformdirs import user_cache_path

from ..errors import Fault, InputError

_SECRET = re.compile(r"secret|token|key|sas|password|credential|authorization", re.IGNORECASE)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
_TIMEOUT = "300s"  # of one request, which may carry 64 MB over a slow line
_FIRST_WAIT, _LONGEST_WAIT = timedelta(milliseconds=200), timedelta(seconds=15)

StorageOptions = Mapping[str, Any]


def open_store(url: str, options: StorageOptions | None, *, patience: float) -> Any:
    """Return the obstore client of the bucket that a URL names.

    Parameters
    ----------
    url
        From :func:`checked_url`.
    options
        Options of obstore's stores: ``endpoint``, ``region``, ``client_options``, and so on; those left out
        come from the environment.
    patience
        Seconds for which a request is repeated while the server is away or busy.

    Raises
    ------
    InputError
        If obstore is not installed, or does not know an option.
    """
    try:
        from obstore import exceptions, store
    except ImportError:
        hint = 'pip install "actkit[remote]"'
        raise InputError([Fault("url", "object stores need the package obstore", hint)]) from None
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _memory(parts.netloc)
    settings = dict(options or {})
    client = {"timeout": _TIMEOUT, **dict(settings.pop("client_options", {}))}
    if _endpoint(settings).startswith("http://"):
        client.setdefault("allow_http", True)
    backoff = {"init_backoff": _FIRST_WAIT, "max_backoff": _LONGEST_WAIT, "base": 2}
    retry: Any = {"max_retries": 1000, "retry_timeout": timedelta(seconds=patience), "backoff": backoff}
    retry = settings.pop("retry_config", retry)
    opener: Any = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}[parts.scheme]
    try:
        bucket = f"{parts.scheme}://{parts.netloc}"
        return opener.from_url(bucket, client_options=client, retry_config=retry, **settings)
    except (exceptions.BaseError, TypeError, ValueError) as error:
        what = f"obstore refuses them ({type(error).__name__})"
        names = ", ".join(sorted(settings)) or "those of the environment"
        hint = f"correct {names}; the names are those of obstore.store.{opener.__name__}"
        # the text of the error may repeat a value
        raise InputError([Fault("storage_options", what, hint)]) from None


def secrets(options: StorageOptions | None) -> list[str]:
    """Return the values of options and of the environment that no message may repeat."""
    named = {**os.environ, **dict(options or {})}
    return [
        value
        for name, value in named.items()
        if isinstance(value, str) and len(value) > 3 and _SECRET.search(name)
    ]


def endpoint_name(url: str, options: StorageOptions | None) -> str:
    """Return the host of the server behind a URL, for messages."""
    endpoint = _endpoint(dict(options or {}))
    return urlsplit(endpoint).netloc.rpartition("@")[2] or f"the {urlsplit(url).scheme}:// service"


def work_folder(url: str) -> Path:
    """Return the local folder that holds the lock, the heartbeat and the log of a run at a URL."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return user_cache_path("actkit") / "remote-runs" / f"{url.rpartition('/')[2]}-{digest}"


def _endpoint(settings: StorageOptions) -> str:
    named = [settings.get(name) for name in ("endpoint", "aws_endpoint", "azure_endpoint", "endpoint_url")]
    return str(next(filter(None, [*named, *map(os.environ.get, _ENDPOINTS)]), ""))


@lru_cache(maxsize=64)
def _memory(_name: str) -> Any:
    """Return the store in the memory of this process that ``memory://name`` means, which tests use."""
    from obstore.store import MemoryStore

    return MemoryStore()
