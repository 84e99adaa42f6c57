"""Check that the distributions in a folder hold files of this repository and nothing else: `make dist`."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath


def main(folder: Path) -> None:
    """Compare the source distribution and the wheel of a folder with the files that git tracks."""
    listing = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    tracked = set(listing.split("\0")) - {""}
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        members = [member.name for member in archive.getmembers() if not member.isdir()]
    in_sdist = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in members} - {"PKG-INFO"}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}

    package = {name for name in tracked if name.startswith("actkit/")}
    outside = {name for name in tracked if name.startswith((".ci/", ".github/", ".pre-commit"))}
    report = {
        f"{sdist.name} holds files that git does not track": in_sdist - tracked,
        f"{sdist.name} lacks": tracked - in_sdist - outside,
        f"{wheel.name} holds files that are not in actkit/": in_wheel - package,
        f"{wheel.name} lacks": package - in_wheel,
    }
    faults = [f"{what}: {', '.join(sorted(names))}" for what, names in report.items() if names]
    if faults:
        sys.exit("\n".join(faults))
    print(f"{sdist.name}: {len(in_sdist)} files, {sdist.stat().st_size / 1e6:.1f} MB")
    print(f"{wheel.name}: {len(in_wheel)} files, {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
