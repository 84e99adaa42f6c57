"""What the form answers stays until the next click, whatever is checked meanwhile."""

from pathlib import Path

import pytest

from app.jobs import Jobs
from app.planning import Planner
from app.settings import Settings
from app.views.extracting import ExtractForm


@pytest.fixture
def form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractForm:
    monkeypatch.setattr(ExtractForm, "show_plan", lambda self, trial: None)  # a process each time
    settings = Settings(workspace=tmp_path)
    settings.data.mkdir()
    return ExtractForm(settings, Jobs(settings), Planner(settings), lambda name: None)


def test_a_refused_file_is_said_until_another_is_taken(form: ExtractForm) -> None:
    form._load.value = b"layers: !!python/object:os.system ls\n"
    assert "is refused" in form._said.title
    form._layers.value_input = "0-3"  # checks the form
    assert form._said.visible
    form._load.value = b"layers: 2-4\n"
    assert not form._said.visible
    assert form.values["layers"] == "2-4"


def test_what_is_wrong_is_said_apart_from_it(form: ExtractForm) -> None:
    form._load.value = b"speed: 3\n"
    assert "speed" in form._said.title
    assert not form._wrong.visible
    form._fields["template"].value = "no place"
    assert form._start.disabled
    form._fields["template"].value = ""
    assert not form._start.disabled
    assert form._said.visible
