"""One page that says what a run shows, with all of its numbers; it opens without a network."""

from .writing import report

__all__ = ["report"]
