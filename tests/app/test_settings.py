"""Limits are one table, and the documentation has all of it."""

from pathlib import Path

import pytest

from actkit.errors import InputError
from app.settings import PREFIX, Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "app.md"


def test_every_setting_is_documented() -> None:
    rows = [
        line.split("|")[1:4] for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if PREFIX in line
    ]
    documented = {
        name.strip().strip("`"): what.strip() for name, what, _ in filter(lambda row: len(row) == 3, rows)
    }
    wanted = {PREFIX + name.upper(): field.description for name, field in Settings.model_fields.items()}
    assert documented == wanted


def test_they_come_from_the_environment(tmp_path: Path) -> None:
    variables = {
        "ACTKIT_WORKSPACE": str(tmp_path / "a" / ".." / "runs"),
        "ACTKIT_MODELS": f"{tmp_path}/one:{tmp_path}/two",
        "ACTKIT_MAX_BATCH": "7",
        "ACTKIT_TYPED_MODELS": "1",
        "ACTKIT_MAX_RUNS": "",
        "HOME": "/",
    }
    settings = Settings.of(variables)
    assert settings.workspace == tmp_path / "runs"
    assert settings.models == (tmp_path / "one", tmp_path / "two")
    assert (settings.max_batch, settings.typed_models, settings.max_runs) == (7, True, 1000)
    assert settings.data == tmp_path / "runs" / "data"


def test_what_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Settings.of({"ACTKIT_MAX_BATCH": "many", "ACTKIT_MAX_NAME": "0"})
    assert {fault.where for fault in caught.value.faults} == {"ACTKIT_MAX_BATCH", "ACTKIT_MAX_NAME"}
