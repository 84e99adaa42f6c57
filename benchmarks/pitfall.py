"""One row of the table of pitfalls."""

from typing import NamedTuple


class Pitfall(NamedTuple):
    """A quantity, its true value, and two estimates of it."""

    quantity: str
    truth: float
    naive: float
    actkit: float
