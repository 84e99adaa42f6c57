"""Signals that end a program, held back while something must not be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Handle SIGINT and SIGTERM once the block has ended, as they would have been handled within it.

    A signal whose default action ends the process still does so at once. Only the main thread can defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    arrived: list[tuple[int, FrameType | None]] = []
    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)
    for arrived_number, frame in arrived:
        handler = handlers[signal.Signals(arrived_number)]
        if callable(handler):
            handler(arrived_number, frame)
