"""The order in which the files of a window appear, in a folder or in an object store."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager

from ..errors import StorageError
from .folders import Folder
from .object_folder import ObjectFolder, Upload
from .partial_files import Partial


class ConflictError(StorageError):
    """Another process computed other values for the same window.

    Parameters
    ----------
    cube
        The cube.
    window
        The window.
    receipt
        Path of its receipt in the cube.
    """

    def __init__(self, cube: object, window: int, receipt: str) -> None:
        super().__init__(
            f"{cube}: another process computed other values for window {window}; compute all parts on "
            f"machines of one kind; if no other is running, remove {receipt} and rerun"
        )


@contextmanager
def written(folder: Folder | ObjectFolder, contents: Mapping[str, bytes]) -> Iterator[list[Partial | Upload]]:
    """Write files under temporary names; those that the caller does not place are removed."""
    with ExitStack() as stack:
        files: list[Partial | Upload] = []
        for name, content in contents.items():
            files.append(stack.enter_context(closing(folder.partial(name))))
            files[-1].write(content)
            files[-1].sync()
        yield files


def place_files(
    folder: Folder | ObjectFolder, files: Sequence[Partial | Upload], last: Iterable[Partial | Upload]
) -> None:
    """Rename the files of a window into place, those in `last` after all others, and in their order."""
    for file in files:
        file.place()
    for name in dict.fromkeys(file.name.rpartition("/")[0] for file in files):
        folder.sync(name)
    for file in last:
        file.place()
        folder.sync("committed")
