"""File system below the store that records every step, and can fail or end the process at one."""

import asyncio
import builtins
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
    """Simulated end of the process, which no handler of Exception catches."""


class Disk:
    """Recorder of every step that changes the disk, in order, which can fail at the n-th step.

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
        """Make the kernel end this process at a step."""
        self._arm(at, lambda: os.kill(os.getpid(), signal.SIGKILL), KINDS, False, False)

    def _arm(
        self, at: int, fail: Callable[[], None], kinds: Collection[str], after: bool, lasting: bool
    ) -> None:
        self._left, self._fail, self._kinds, self._after, self._lasting = at, fail, kinds, after, lasting

    def mend(self) -> None:
        """Stop failing, and let zarr finish what it had started concurrently with the failed step."""
        self._fail = None
        sync(_others())

    def step(
        self, kind: str, path: Path, do: Callable[[], Any], half: Callable[[], Any] = lambda: None
    ) -> Any:
        """Perform a step, or fail halfway through it."""
        if self._within not in str(path):
            return do()
        with self._lock:
            if self._fail is not None and kind in self._kinds:
                self._left -= 1
                if self._left == 0 or (self._left < 0 and self._lasting):
                    if self._after:
                        done = do()
                        if kind == "open":
                            done.close()  # the caller never receives it
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
    """Unbuffered file, each write of which is a step."""

    def __init__(self, path: Path, mode: str, disk: Disk, opener: Any) -> None:
        super().__init__(path, mode, opener=opener)
        self._disk = disk

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        write = super().write
        step = self._disk.step
        return int(step("write", Path(self.name), lambda: write(view), lambda: write(view[: len(view) // 2])))


def _full(path: Any, folder: int | None) -> Path:
    """Return the path of a name in an open folder."""
    return Path(path) if folder is None else Path(os.readlink(f"/proc/self/fd/{folder}")) / path


@contextmanager
def watched(within: str = "") -> Iterator[Disk]:
    """Put a :class:`Disk` below the store, whose fsync is only recorded."""
    disk = Disk(within)
    opened, renamed, replaced, unlinked = io.open, os.rename, os.replace, os.unlink

    def open_file(file: Any, mode: str = "r", *arguments: Any, opener: Any = None, **options: Any) -> Any:
        if "b" in mode and set(mode) & set("wxa+"):
            plain = mode.replace("b", "")
            return disk.step("open", Path(file), lambda: _File(Path(file), plain, disk, opener))
        return opened(file, mode, *arguments, opener=opener, **options)

    def moved(move: Callable[..., None]) -> Callable[..., None]:
        def step(source: Any, target: Any, **at: int) -> None:
            disk.step("rename", _full(target, at.get("dst_dir_fd")), lambda: move(source, target, **at))

        return step

    def removed(path: Any, **at: int) -> None:
        disk.step("unlink", _full(path, at.get("dir_fd")), lambda: unlinked(path, **at))

    def synced(file: int) -> None:
        disk.step("fsync", Path(os.readlink(f"/proc/self/fd/{file}")), lambda: None)

    with ExitStack() as stack:
        for owner, name, ours in (
            (io, "open", open_file),
            (builtins, "open", open_file),
            (os, "replace", moved(replaced)),
            (os, "rename", moved(renamed)),
            (os, "unlink", removed),
            (os, "fsync", synced),
        ):
            stack.enter_context(mock.patch.object(owner, name, ours))
        try:
            yield disk
        finally:
            disk.mend()
