"""Install the wheels of `make gpu-wheels` beside a Python that has PyTorch, without network.

python tools/gpu_site.py build/gpu-wheels build/gpu-site

Archives may come one after the other; what the first ones lack, this Python may have. Nothing but the folder
is changed: PYTHONPATH leads to it. Ends with the names of packages that are in neither, if there are any.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
# the first archives of `make gpu-wheels` need these of the machine, or the last archives
NEEDED = (
    *("accelerate", "bokeh", "dask", "datasets", "google-crc32c", "holoviews", "hypothesis", "matplotlib"),
    *("numcodecs", "numpy", "nvidia-ml-py", "pandas", "pillow", "psutil", "pyarrow", "pydantic", "pytest"),
    *("pytest-timeout", "scikit-learn", "scipy", "tokenizers", "torch", "transformers", "xarray", "zarr"),
)


def install(archives: Path, site: Path) -> None:
    """Unpack every archive that is there, and install its wheels into a folder."""
    found = sorted(archives.glob("*.tar"))
    if not found and not site.is_dir():
        sys.exit(f"{archives} has no archives: run make gpu-wheels where there is a network")
    for path in found:
        wheels = archives / path.stem
        with tarfile.open(path) as archive:
            archive.extractall(wheels, filter="data")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
        ]
        command += ["--no-cache-dir", "--no-warn-conflicts", "--upgrade", "--target", str(site)]
        subprocess.run([*command, *map(str, sorted(wheels.glob("*.whl")))], check=True)
        shutil.rmtree(wheels)


def describe_actkit(site: Path) -> None:
    """Give the code of this folder the metadata that an installation would have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for old in site.glob("actkit-*.dist-info"):
        shutil.rmtree(old)
    info = site / f"actkit-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: actkit\nVersion: {project['version']}\n")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in group_.items())
        for group, group_ in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def missing(site: Path) -> list[str]:
    """Return the packages that neither the folder nor this Python has."""
    installed = {re.sub(r"[-_.]+", "-", found.name).lower() for found in distributions(path=[str(site)])}

    def is_here(name: str) -> bool:
        try:
            return bool(version(name))
        except PackageNotFoundError:
            return False

    return [name for name in NEEDED if name not in installed and not is_here(name)]


def main() -> None:
    archives, site = map(Path, sys.argv[1:])
    install(archives, site)
    describe_actkit(site)
    if lacking := missing(site):
        sys.exit(f"{', '.join(lacking)}: not installed; bring the next archive of {archives} too")
    subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())"],
        check=True,
    )


if __name__ == "__main__":
    main()
