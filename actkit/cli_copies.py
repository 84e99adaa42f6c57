"""Commands that copy runs to and from object stores."""

from .cli_cubes import Subparsers, add_command
from .cli_output import print_pairs
from .estimates import readable_bytes
from .store.push_pull import RunCopy, pull, push

_CREDENTIALS = (
    "Credentials and endpoints come from the environment, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL."
)
_CONTINUED = "the same command continues a copy that was interrupted"


def add_push(commands: Subparsers) -> None:
    """Add the command that copies a run to an object store."""
    parser = add_command(
        commands, "push", _push, f"copy a run to an object store; {_CONTINUED}", _CREDENTIALS
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("url", help="URL of the copy, such as s3://bucket/runs/x")


def add_pull(commands: Subparsers) -> None:
    """Add the command that copies a run from an object store."""
    purpose = f"copy a run from an object store; {_CONTINUED}"
    parser = add_command(commands, "pull", _pull, purpose, _CREDENTIALS)
    parser.add_argument("url", help="URL of the run, such as s3://bucket/runs/x")
    parser.add_argument("run", help="run folder to create")


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
