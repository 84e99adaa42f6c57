"""Every architecture of the matrix: captured exactly, or refused with its message; and the page says so."""

from pathlib import Path
from typing import Any

import pytest

from tests.models import verdicts
from tests.models.architectures import ARCHITECTURES
from tests.models.matrix import PAGE, page
from tests.models.verdicts import TOLERANCE, verdict

# half of the ways of the matrix: each side and each batch size, with every implementation of attention
WAYS = (("left", 5), ("right", 1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captured_exactly_or_refused(name: str, tmp_path: Path) -> None:
    expected = ARCHITECTURES[name].error
    found = verdict(name, tmp_path, WAYS)
    print(found)
    assert found.status == ("ERROR" if expected else "SUPPORTED"), found.message
    assert expected in found.message
    if not expected:
        parts = {"attention", "mlp"} if ARCHITECTURES[name].parts else set()
        assert found.errors.keys() == {"residual"} | parts
        assert max(found.errors.values()) < TOLERANCE
    # the row of the page, made anew
    assert page([found]).splitlines()[-1] in PAGE.read_text(encoding="utf-8").splitlines()


def test_most_architectures_are_supported() -> None:
    supported = [name for name, architecture in ARCHITECTURES.items() if not architecture.error]
    assert len(supported) >= 27
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) == len(ARCHITECTURES) + 1
    assert not [row for row in rows if "| SILENTLY_WRONG |" in row or "| CRASH |" in row]


@pytest.mark.parametrize(
    ("variable", "named"),
    [("embedding", "residual"), ("residual", "residual"), ("attention", "attention"), ("mlp", "mlp")],
)
def test_a_wrong_value_is_noticed(
    variable: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = verdicts._extract

    def tampered(*args: Any) -> Any:
        cube = extract(*args)
        cube[variable].values[..., 3, 0, 0] += 0.01  # one number of sample 3
        return cube

    monkeypatch.setattr(verdicts, "_extract", tampered)
    found = verdict("Llama", tmp_path, WAYS[:1])
    assert found.status == "SILENTLY_WRONG"
    assert f"{named} is off by" in found.message
