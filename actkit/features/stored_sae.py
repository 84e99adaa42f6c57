"""An autoencoder in a folder: its site and size are known, its weights are read on request."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import CorruptError, Fault
from ..regular_files import MB, read_regular
from .sae import Sae
from .sae_set import SaeSize
from .sae_site import Site
from .weight_checks import weight_problems

DOWNLOAD = "download or copy it again"
_MOST_CONFIG = MB


@dataclass(frozen=True)
class StoredSae:
    """An autoencoder whose folder has been checked.

    Attributes
    ----------
    folder
        Its folder.
    site
        Component and layer of its activations.
    size
        Architecture and size.
    read
        Function that reads it.
    """

    folder: Path
    site: Site
    size: SaeSize
    read: Callable[[], Sae]


@dataclass(frozen=True)
class Refusal:
    """Why a folder is not read as an autoencoder.

    Attributes
    ----------
    faults
        The reasons.
    damaged
        Whether files are missing or damaged, as opposed to an autoencoder of another kind.
    """

    faults: tuple[Fault, ...]
    damaged: bool = False


def unsuitable(folder: Path, problems: Iterable[tuple[str, str]]) -> Refusal:
    """Return the refusal of an autoencoder that cannot be used, for reasons that each have a hint."""
    return Refusal(tuple(Fault(str(folder), what, hint) for what, hint in problems))


def damaged(faults: Iterable[Fault]) -> Refusal:
    """Return the refusal of files that are missing or damaged."""
    return Refusal(tuple(faults), damaged=True)


def read_config(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return the content of a JSON file that describes an autoencoder, and its faults."""
    try:
        content = json.loads(read_regular(path, _MOST_CONFIG))
    except FileNotFoundError:
        return {}, [Fault(str(path), "is missing", DOWNLOAD)]
    except (OSError, ValueError, RecursionError) as error:
        return {}, [Fault(str(path), f"cannot be read: {error}", DOWNLOAD)]
    return (content, []) if isinstance(content, dict) else ({}, [Fault(str(path), "is not a JSON object")])


def is_size(value: Any) -> TypeGuard[int]:
    """Return whether a value is a positive integer."""
    return type(value) is int and value > 0


def shape_faults(
    path: Path, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> list[Fault]:
    """Return the tensors that a file lacks or that have another shape."""
    if missing := [name for name in expected if name not in shapes]:
        return [Fault(str(path), f"lacks {', '.join(missing)}", DOWNLOAD)]
    return [
        Fault(str(path), f"`{name}` has shape {list(shapes[name])}, not {list(shape)}", DOWNLOAD)
        for name, shape in expected.items()
        if shapes[name] != shape
    ]


def checked(sae: Sae, folder: Path) -> Sae:
    """Return an autoencoder; raise CorruptError if its weights are inconsistent or not finite."""
    if problems := weight_problems(sae):
        faults = [Fault(str(folder), problem, DOWNLOAD) for problem in problems]
        raise CorruptError(faults, f"damaged autoencoder of {sae.component}, layer {sae.layer}")
    return sae
