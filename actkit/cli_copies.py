"""Commands that copy runs to and from object stores."""

import argparse
from typing import TypeAlias

from .cli_output import print_pairs
from .estimates import readable_bytes
from .store.push_pull import RunCopy, pull, push

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_CREDENTIALS = (
    "Credentials and endpoints come from the environment, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL."
)
_CONTINUED = "the same command continues a copy that was interrupted"


def add_copy_commands(commands: Subparsers) -> None:
    """Add the commands ``push`` and ``pull``."""
    purpose = f"copy a run to an object store; {_CONTINUED}"
    parser = commands.add_parser("push", help=purpose, description=purpose, epilog=_CREDENTIALS)
    parser.add_argument("run", help="run folder")
    parser.add_argument("url", help="URL of the copy, such as s3://bucket/runs/x")
    parser.set_defaults(command=_push)
    purpose = f"copy a run from an object store; {_CONTINUED}"
    parser = commands.add_parser("pull", help=purpose, description=purpose, epilog=_CREDENTIALS)
    parser.add_argument("url", help="URL of the run, such as s3://bucket/runs/x")
    parser.add_argument("run", help="run folder to create")
    parser.set_defaults(command=_pull)


def _push(run: str, url: str) -> int:
    return _print_copy(push(run, url))


def _pull(url: str, run: str) -> int:
    return _print_copy(pull(url, run))


def _print_copy(copy: RunCopy) -> int:
    print_pairs(
        [
            ("cube", copy.cube),
            ("copied", f"{copy.windows:,} windows, {readable_bytes(copy.bytes)}"),
            ("present", f"{copy.present:,} windows"),
            *([("missing", f"{copy.missing:,} windows, uncommitted")] if copy.missing else []),
        ]
    )
    return 0
