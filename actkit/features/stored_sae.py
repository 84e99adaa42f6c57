"""An autoencoder in a folder: its site and size are known, its weights are read on request."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CorruptError, Fault
from ..regular_files import MB, read_regular
from .sae import Sae
from .sae_checks import weight_problems
from .sae_set import SaeSize
from .sae_site import Site

_MOST_CFG = MB


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


Found = tuple[StoredSae | None, list[Fault]]


def read_config(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return the content of a JSON file that describes an autoencoder, and its faults."""
    try:
        content = json.loads(read_regular(path, _MOST_CFG))
    except FileNotFoundError:
        return {}, [Fault(str(path), "is missing")]
    except (OSError, ValueError, RecursionError) as error:
        return {}, [Fault(str(path), f"cannot be read: {error}", "download or copy it again")]
    return (content, []) if isinstance(content, dict) else ({}, [Fault(str(path), "is not a JSON object")])


def checked(sae: Sae, folder: Path) -> Sae:
    """Return an autoencoder; raise CorruptError if its weights are inconsistent or not finite."""
    if problems := weight_problems(sae):
        faults = [Fault(str(folder), problem, "download or copy it again") for problem in problems]
        raise CorruptError(faults, f"damaged autoencoder of {sae.component}, layer {sae.layer}")
    return sae
