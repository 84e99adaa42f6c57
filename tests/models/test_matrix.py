"""Every architecture of the matrix is captured exactly or refused, as documented on the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.models import verdicts
from tests.models.architectures import ARCHITECTURES
from tests.models.matrix import PAGE, page
from tests.models.verdicts import EVERY_WAY, TOLERANCE, verdict

# each side and each batch size, half of the combinations of the matrix
HALF = (("left", 5), ("right", 1))
PADDED = (("left", 5),)

# run by `make test-fast`
REPRESENTATIVES = ("Llama", "GPT-2", "Gemma 3", "BERT", "Mixtral", "Mamba")


def confirm(name: str, work: Path, ways: Sequence[tuple[str, int]], attention: Sequence[str] = ()) -> None:
    expected = ARCHITECTURES[name].error
    result = verdict(name, work, ways, attention)
    print(result)
    assert result.status == ("ERROR" if expected else "SUPPORTED"), result.message
    assert expected in result.message
    if not expected:
        parts = {"attention", "mlp"} if ARCHITECTURES[name].parts else set()
        assert result.errors.keys() == {"residual"} | parts
        assert max(result.errors.values()) < TOLERANCE
    # the row, generated again
    assert page([result]).splitlines()[-1] in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "name",
    [
        name if name in REPRESENTATIVES else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_captured_exactly_or_refused(name: str, tmp_path: Path) -> None:
    """In a padded batch, with the attention implementation that transformers prefers."""
    confirm(name, tmp_path, PADDED, ARCHITECTURES[name].implementations[-1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "BERT"])
def test_captured_exactly_whatever_the_batch_and_the_attention(name: str, tmp_path: Path) -> None:
    confirm(name, tmp_path, HALF)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_whole_matrix(name: str, tmp_path: Path) -> None:
    confirm(name, tmp_path, EVERY_WAY)


def test_most_architectures_are_supported() -> None:
    supported = [name for name, architecture in ARCHITECTURES.items() if not architecture.error]
    assert len(supported) >= 27
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) == len(ARCHITECTURES) + 1
    assert not [row for row in rows if "| SILENTLY_WRONG |" in row or "| CRASH |" in row]


@pytest.mark.parametrize(
    ("variable", "column"),
    [("embedding", "residual"), ("residual", "residual"), ("attention", "attention"), ("mlp", "mlp")],
)
def test_a_wrong_value_is_noticed(
    variable: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = verdicts._extract

    def tampered(*args: Any) -> Any:
        cube = extract(*args)
        cube[variable].values[..., 3, 0, 0] += 0.01  # a single value of sample 3
        return cube

    monkeypatch.setattr(verdicts, "_extract", tampered)
    result = verdict("Llama", tmp_path, PADDED, ["sdpa"])
    assert result.status == "SILENTLY_WRONG"
    assert f"{column} is off by" in result.message
