"""Log file of a run folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

from ...store.folders import Folder
from ...store.run_folder import LOG

logger = logging.getLogger("actkit")


class _LogFile(logging.FileHandler):
    """Handler whose write errors do not end the run; failed writes of data are raised elsewhere."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.path / LOG, encoding="utf-8", delay=True)
        self._folder = folder

    def _open(self) -> TextIOWrapper:
        return self._folder.append(LOG)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(run: Folder) -> Iterator[None]:
    """Write log records, and the error that ends the run, into its folder."""
    handler = _LogFile(run)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        logger.error("%s: %s", type(error).__name__, error)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
