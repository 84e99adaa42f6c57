"""Counter of repeated trials and their failures."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Trials:
    """Number of trials, and those that failed."""

    def __init__(self) -> None:
        self.count = 0
        self.failures: list[str] = []

    @contextmanager
    def __call__(self, name: object) -> Iterator[None]:
        """Run one trial, recording a failure instead of raising it."""
        self.count += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:500]}")


@contextmanager
def trials(what: str) -> Iterator[Trials]:
    """Report the number of trials at the end; `pytest -s` shows it."""
    made = Trials()
    yield made
    print(f"\nFAULT | {what} | {made.count} trials | {len(made.failures)} failures")
    assert made.count > 0
    assert not made.failures, "\n".join(made.failures[:10])
