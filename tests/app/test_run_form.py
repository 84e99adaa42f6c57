"""What the form answers stays until the next click, whatever is checked meanwhile."""

from contextlib import suppress
from pathlib import Path

import pytest

from actkit.config import Config
from actkit.errors import StorageError
from actkit.store.run_folder import write_status
from app.jobs import Jobs
from app.planner import Planner
from app.run_state import State
from app.settings import Settings
from app.views.run_form import ExtractForm


@pytest.fixture
def form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExtractForm:
    monkeypatch.setattr(ExtractForm, "show_plan", lambda self, trial: None)  # a process each time
    settings = Settings(workspace=tmp_path)
    settings.data.mkdir()
    return ExtractForm(settings, Jobs(settings), Planner(settings), lambda name: None)


@pytest.fixture
def full_disk(small_disk: Path) -> Path:
    """A file system without room; its `ballast` can be removed."""
    (small_disk / "data").mkdir()
    with suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return small_disk


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_an_upload_and_a_run_that_a_full_disk_refuses_can_be_tried_again(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExtractForm, "show_plan", lambda self, trial: None)
    settings = Settings(workspace=full_disk)
    jobs = Jobs(settings)
    form = ExtractForm(settings, jobs, Planner(settings), lambda name: None)
    with pytest.raises(StorageError) as caught:
        form._keep("a.csv", b"text\n" * 2000)
    assert str(caught.value) == (
        f"cannot save {settings.data / 'a.csv'} (at least 10,000 bytes to write, 0 bytes free: make room): "
        "No space left on device; nothing was saved"
    )
    config = Config(model="m", data="d", out="-")
    with pytest.raises(StorageError, match=r"config\.yaml \(.* bytes free: make room\)"):
        jobs.start("one", config)
    assert {path.name for path in full_disk.rglob("*")} == {"data", "ballast"}
    (full_disk / "ballast").unlink()
    assert form._keep("a.csv", b"text\n").read_bytes() == b"text\n"
    monkeypatch.setattr(Jobs, "_launch", lambda self, path: write_status(path, {"state": "done"}))
    assert jobs.start("one", config).state is State.DONE


def test_a_refused_file_is_said_until_another_is_taken(form: ExtractForm) -> None:
    form._load.value = b"layers: !!python/object:os.system ls\n"
    assert "is refused" in form._response_alert.title
    form._layers.value_input = "0-3"  # checks the form
    assert form._response_alert.visible
    form._load.value = b"layers: 2-4\n"
    assert not form._response_alert.visible
    assert form.values["layers"] == "2-4"


def test_what_is_wrong_is_said_apart_from_it(form: ExtractForm) -> None:
    form._load.value = b"speed: 3\n"
    assert "speed" in form._response_alert.title
    assert not form._fault_alert.visible
    form._fields["template"].value = "no place"
    assert form._start.disabled
    form._fields["template"].value = ""
    assert not form._start.disabled
    assert form._response_alert.visible
