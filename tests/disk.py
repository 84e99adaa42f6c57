"""The file system below the store: notes every step, and can refuse one or end the process there."""

import asyncio
import io
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from zarr.core.sync import sync

KINDS = ("open", "write", "fsync", "rename", "unlink")


class Killed(BaseException):
    """The end of a process, as the code sees it: no handler of Exception runs."""


class Disk:
    """Notes each step that changes what is on disk, in order, and can fail at the n-th one.

    A step is the creation of a file, a write to it, an fsync, a rename or a removal. A write that fails
    has put half of its bytes on the disk.

    Parameters
    ----------
    within
        What the paths that count have in them.
    """

    def __init__(self, within: str = "") -> None:
        self.steps: list[tuple[str, Path]] = []
        self._within = within
        self._lock = threading.Lock()
        self._fail: Callable[[], None] | None = None

    def fail(
        self,
        at: int,
        error: BaseException,
        *,
        kinds: Collection[str] = KINDS,
        after: bool = False,
        lasting: bool = False,
    ) -> None:
        """Raise an error at a step.

        Parameters
        ----------
        at
            Which one, counted from 1.
        error
            What to raise; ``Killed`` is raised at all later steps too, for nothing runs after a kill.
        kinds
            The steps that count.
        after
            Whether the step takes place all the same, as it may where a server does not answer.
        lasting
            Whether all later steps fail too.
        """

        def fail() -> None:
            raise error

        self._arm(at, fail, kinds, after, lasting or isinstance(error, Killed))

    def kill(self, at: int) -> None:
        """Let the kernel end this process at a step."""
        self._arm(at, lambda: os.kill(os.getpid(), signal.SIGKILL), KINDS, False, False)

    def _arm(
        self, at: int, fail: Callable[[], None], kinds: Collection[str], after: bool, lasting: bool
    ) -> None:
        self._left, self._fail, self._kinds, self._after, self._lasting = at, fail, kinds, after, lasting

    def mend(self) -> None:
        """Fail no more, and let zarr end what it had begun beside the step that failed."""
        self._fail = None
        sync(_others())

    def step(
        self, kind: str, path: Path, do: Callable[[], Any], half: Callable[[], Any] = lambda: None
    ) -> Any:
        """Do something, or fail in its stead, having done half of it."""
        if self._within not in str(path):
            return do()
        with self._lock:
            if self._fail is not None and kind in self._kinds:
                self._left -= 1
                if self._left == 0 or (self._left < 0 and self._lasting):
                    if self._after:
                        done = do()
                        if kind == "open":
                            done.close()  # whoever asked never gets it
                        self.steps.append((kind, path))
                    elif self._left == 0:
                        half()
                    self._fail()
            self.steps.append((kind, path))
            return do()


async def _others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


class _File(io.FileIO):
    """A file without a buffer: each write of the program is a step."""

    def __init__(self, path: Path, mode: str, disk: Disk) -> None:
        super().__init__(path, mode)
        self._disk = disk

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        write = super().write
        step = self._disk.step
        return int(step("write", Path(self.name), lambda: write(view), lambda: write(view[: len(view) // 2])))


@contextmanager
def watched(within: str = "") -> Iterator[Disk]:
    """Put a :class:`Disk` below the store; its fsync only takes notes."""
    disk = Disk(within)
    opened, unlink = Path.open, Path.unlink

    def open_file(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "b" in mode and set(mode) & set("wxa+"):
            return disk.step("open", path, lambda: _File(path, mode, disk))
        return opened(path, mode, *arguments, **options)

    def moved(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def step(source: Path, target: Path) -> Path:
            return Path(disk.step("rename", Path(target), lambda: move(source, target)))

        return step

    def removed(path: Path, missing_ok: bool = False) -> None:
        disk.step("unlink", path, lambda: unlink(path, missing_ok))

    def synced(file: int) -> None:
        disk.step("fsync", Path(os.readlink(f"/proc/self/fd/{file}")), lambda: None)

    with ExitStack() as stack:
        for owner, name, ours in (
            (Path, "open", open_file),
            (Path, "replace", moved(Path.replace)),
            (Path, "rename", moved(Path.rename)),
            (Path, "unlink", removed),
            (os, "fsync", synced),
        ):
            stack.enter_context(mock.patch.object(owner, name, ours))
        try:
            yield disk
        finally:
            disk.mend()
