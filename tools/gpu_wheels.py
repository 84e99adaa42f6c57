"""Collect what `make gpu-check` needs on a machine without network, in archives of less than 60 MB.

python tools/gpu_wheels.py build/gpu-wheels [--python 3.12]

That machine has Python and PyTorch. The wheels are the dependencies of actkit, of its extraction and of its
tests, in the versions installed here, without PyTorch and what it alone requires. What such machines often
have too is in the last archives, so that the first ones may be enough.
"""

import argparse
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIMIT = 60_000_000
ROOTS = (
    *("actkit[extract,cluster]", "nvidia-ml-py", "hypothesis"),
    *("pytest", "pytest-timeout", "packaging"),
)
THERE = ("torch", "triton")
# large, and installed on most machines with PyTorch
COMMON = ("matplotlib", "numpy", "pandas", "pillow", "pyarrow", "scikit-learn", "scipy")
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17, 12, 5)]
PLATFORMS = (*_PLATFORMS, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def closure(roots: Sequence[str], python: str) -> dict[str, str]:
    """Return the versions installed here of packages and of all that they require, by name."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(root) for root in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen or name in THERE:
                continue
            seen.add((name, extra))
            try:
                installed = distribution(name)
            except PackageNotFoundError:
                sys.exit(f"{name} is not installed here; run make install")
            versions[name] = installed.version
            requirements = map(Requirement, installed.requires or ())
            environment["extra"] = extra
            todo += [
                each for each in requirements if each.marker is None or each.marker.evaluate(environment)
            ]
    del versions["actkit"]
    return versions


def download(versions: dict[str, str], python: str, folder: Path) -> None:
    """Download the wheels for another Python on a machine with Linux."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([*command, *(f"{name}=={version}" for name, version in versions.items())], check=True)


def archives(folder: Path, limit: int = LIMIT) -> Iterator[list[Path]]:
    """Yield the wheels of each archive: the smallest first, and what is common elsewhere last."""

    def rank(wheel: Path) -> tuple[bool, int]:
        return canonicalize_name(re.split("-", wheel.name)[0]) in COMMON, wheel.stat().st_size

    chosen: list[Path] = []
    size = is_common = 0
    for wheel in sorted(folder.glob("*.whl"), key=rank):
        needs = wheel.stat().st_size + 2048  # with a header, and rounded up to whole blocks
        if needs + 10240 > limit:
            sys.exit(f"{wheel.name} alone is larger than {limit} bytes")
        if chosen and (size + needs + 10240 > limit or rank(wheel)[0] != is_common):
            yield chosen
            chosen, size = [], 0
        chosen.append(wheel)
        size, is_common = size + needs, rank(wheel)[0]
    yield chosen


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--python", default="3.12", help="version of Python there (default: 3.12)")
    chosen = options.parse_args()
    folder: Path = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.whl"), *folder.glob("*.tar")):
        old.unlink()
    download(closure(ROOTS, chosen.python), chosen.python, folder)
    for number, wheels in enumerate(archives(folder), 1):
        path = folder / f"wheels-{number}.tar"
        with tarfile.open(path, "w") as archive:
            for wheel in wheels:
                archive.add(wheel, wheel.name)
                wheel.unlink()
        print(f"{path}: {len(wheels)} wheels, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
