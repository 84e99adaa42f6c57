"""Counts what is tried over and over, and what of it went wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Trials:
    """How often something was tried, and which of the trials failed."""

    def __init__(self) -> None:
        self.count = 0
        self.failures: list[str] = []

    @contextmanager
    def __call__(self, name: object) -> Iterator[None]:
        """Try once; what goes wrong is noted, and does not keep the others from being tried."""
        self.count += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:500]}")


@contextmanager
def trials(what: str) -> Iterator[Trials]:
    """Say in the end how many trials there were; `pytest -s` shows it."""
    made = Trials()
    yield made
    print(f"\nFAULT | {what} | {made.count} trials | {len(made.failures)} failures")
    assert made.count > 0
    assert not made.failures, "\n".join(made.failures[:10])
