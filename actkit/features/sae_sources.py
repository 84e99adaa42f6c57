"""Sources of autoencoders: a folder here, or a repository on the Hugging Face Hub."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath

from ..errors import Fault, InputError
from .sae_layouts import walk

_REPO = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?")
_WILDCARDS = ("*", "?", "[")


@dataclass(frozen=True)
class SaeSource:
    """Files among which autoencoders are looked for.

    Attributes
    ----------
    name
        Name for messages: the folder, or the repository and the path in it.
    root
        Folder that holds the files, or will hold them.
    files
        Paths of the files, relative to `root`.
    prefix
        What precedes these paths in a name that says which model and site they are of.
    fetch
        Function that downloads files, given their paths.
    """

    name: str
    root: Path
    files: tuple[str, ...]
    prefix: str
    fetch: Callable[[Iterable[str]], None]

    def leads_outside(self, path: Path) -> bool:
        """Return whether a file is a link out of the folder, other than into the cache of the Hub."""
        root, target = self.root.resolve(), path.resolve()
        if target.is_relative_to(root):
            return False
        snapshots = [folder.parent for folder in (root, *root.parents) if folder.parent.name == "snapshots"]
        # whose files, at any depth, are links to a sibling folder of blobs
        return not any(target.is_relative_to(folder.parent / "blobs") for folder in snapshots)


def find_source(path_or_repo: str | os.PathLike[str], revision: str | None) -> SaeSource:
    """Return the files of a folder or of a repository.

    Parameters
    ----------
    path_or_repo
        A folder, or a repository ``owner/name``; either may be followed by a folder in it, in which ``*``
        stands for any characters.
    revision
        Branch, tag or commit of a repository.

    Raises
    ------
    InputError
        If there is no such folder or repository, or it cannot be read.
    """
    name = os.fspath(path_or_repo)
    folder, pattern = _split(name)
    if folder.is_dir():
        if revision is not None:
            hint = "leave it out; folders have no revisions"
            raise InputError([Fault("revision", "cannot be used with a folder", hint)])
        files = tuple(path for path in walk(folder) if _is_in(path, pattern))
        return SaeSource(name, folder, files, _site_prefix(folder), lambda _files: None)
    if folder.exists():
        raise InputError([Fault(str(folder), "is a file", "name the folder of the autoencoders")])
    match = _REPO.fullmatch(name)
    if match is None:
        what = "is neither a folder nor a repository on the Hugging Face Hub (owner/name)"
        raise InputError([Fault(f"autoencoders {name!r}", what, "check the path")])
    return _repository(match[1], match[2] or "", revision)


def _split(name: str) -> tuple[Path, str]:
    """Return the part of a path before the first wildcard, and the rest."""
    parts = Path(name).parts
    count = next((i for i, part in enumerate(parts) if any(sign in part for sign in _WILDCARDS)), len(parts))
    if Path(name).is_dir():  # whose name has such a character
        count = len(parts)
    return Path(*parts[:count]), "/".join(parts[count:])


def _is_in(path: str, pattern: str) -> bool:
    """Return whether a file is in a folder, or below one that matches a pattern."""
    if not pattern:
        return True
    parents = [str(parent) for parent in PurePosixPath(path).parents]
    return any(fnmatchcase(parent, pattern) for parent in parents)


def _site_prefix(folder: Path) -> str:
    """Return the part of a path that may name the model and the site."""
    parts = folder.absolute().parts
    named = [i for i, part in enumerate(parts) if "gemma-scope" in part]
    return "/".join(parts[named[-1] :] if named else parts[-1:]) + "/"


def _repository(repo: str, pattern: str, revision: str | None) -> SaeSource:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    with _hub_errors(repo, revision):
        try:
            info = huggingface_hub.HfApi().model_info(repo, revision=revision)
            listed = [file.rfilename for file in info.siblings or ()]
            revision = info.sha  # all files of one commit
        except HfHubHTTPError:  # the Hub was reached
            raise
        except (ConnectionError, TimeoutError, _http_error()):  # offline, by choice or not
            listed = []
    # every repository has this file; its download returns the folder in the cache, even offline
    root = _download(repo, revision, [".gitattributes"])
    files = tuple(file for file in listed or walk(root) if _is_in(file, pattern))
    name = f"{repo}/{pattern}" if pattern else repo

    def fetch(wanted: Iterable[str]) -> None:
        if patterns := [escape(file) for file in wanted]:
            _download(repo, revision, patterns)

    return SaeSource(name, root, files, f"{repo}/", fetch)


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub

    with _hub_errors(repo, revision):
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the Hub into an InputError; that it is offline is left to the caller."""
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"autoencoders {repo}"
    try:
        yield
    except OfflineModeIsEnabled:
        raise
    except RevisionNotFoundError as error:
        fault = Fault("revision", f"{repo} has no revision `{revision}`", "give a branch, tag or commit")
        raise InputError([fault]) from error
    except RepositoryNotFoundError as error:
        what = "is neither a folder here nor a repository on the Hub"
        hint = "check the name; gated repositories need `hf auth login`"
        raise InputError([Fault(where, what, hint)]) from error
    except (LocalEntryNotFoundError, _http_error(), OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = f"is not a folder here and cannot be downloaded: {reason}"
        raise InputError([Fault(where, what, "check the name, or download it to a folder")]) from error


def _http_error() -> type[Exception]:
    """Return the class of all errors of the Hub's HTTP client, whose package depends on its version."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base
