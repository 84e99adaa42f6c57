"""Host names accepted by the server, as protection against DNS rebinding."""

import argparse
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from bokeh.server.util import check_allowlist
from bokeh.settings import settings


def allowed_origins(arguments: Sequence[str]) -> list[str]:
    """Return the origins allowed to connect, as configured when the server was started.

    Parameters
    ----------
    arguments
        Command line of the process, including `panel serve`; the environment variable
        ``BOKEH_ALLOW_WS_ORIGIN`` overrides ``--allow-websocket-origin``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--allow-websocket-origin", action="append", default=[])
    named = parser.parse_known_args(list(arguments))[0].allow_websocket_origin
    return [str(origin) for origin in settings.allowed_ws_origin() or named]


def is_own_host(host: str, allowed: Sequence[str]) -> bool:
    """Return whether a request was addressed to this server.

    Parameters
    ----------
    host
        Host of the request: a name or address, and optionally a port.
    allowed
        Result of :func:`allowed_origins`.

    Notes
    -----
    DNS rebinding needs a host name, so any IP address is accepted.
    """
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname or "", parts.port or 80
    except ValueError:
        return False
    if parts.netloc != host or parts.username is not None or not name:
        return False
    try:
        ip_address(name)
    except ValueError:
        is_local = name == "localhost" or name.endswith(".localhost")
        return is_local or bool(allowed and check_allowlist(f"{name}:{port}", list(allowed)))
    return True
