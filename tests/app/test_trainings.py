"""Trainings of autoencoders in the list of runs: also within the folder of their run, and as they are."""

import json
from pathlib import Path

import pytest

from actkit.errors import InputError, LockedError
from actkit.features.manifest import MANIFEST, write_manifest
from actkit.features.training_log import LOG_FILE
from actkit.features.training_settings import SETTINGS_FILE
from actkit.testing import write_cube
from app.jobs import Jobs
from app.run_state import State
from app.settings import Settings
from app.views.run_list import RunList
from app.views.training_view import TrainingView
from tests.app.training_runs import stopped, training


def test_trainings_are_listed_beside_and_within_runs(jobs: Jobs, settings: Settings) -> None:
    write_cube(settings.workspace / "demo")
    assert [run.name for run in jobs] == ["demo"]  # an earlier look is not remembered
    stopped(settings.workspace / "alone")
    (settings.workspace / "demo" / "linked").symlink_to(settings.workspace / "alone")
    with training(settings.workspace / "demo" / "saes") as trainer:
        trainer.measure(250)
        runs = {run.name: run for run in jobs}
        assert runs.keys() == {"alone", "demo", "demo/saes"}
        assert (runs["demo"].is_training, runs["demo/saes"].is_training) == (False, True)
        assert {name: run.state for name, run in runs.items()} == {
            "alone": State.INTERRUPTED,
            "demo": State.DONE,
            "demo/saes": State.RUNNING,
        }
        assert runs["demo/saes"].progress == 0.25
        cards = RunList(jobs, lambda name: None)
        cards.update()
        card = cards._cards["demo/saes"]
        assert "1,280 features, k 16, layers 2 5" in card._title.object
        assert "250 of 1,000 steps" in card._figures.object
        assert "FVU 0.875 · L0 16.0 · 0 dead" in card._figures.object
        buttons = (card._buttons["Cancel"], card._buttons["Resume"], card._delete)
        assert not any(button.visible for button in buttons)
        assert not card._explore.disabled
        for act in (jobs.cancel, jobs.resume):
            with pytest.raises(InputError, match=r"was not started by the app|nothing to resume"):
                act("demo/saes")
        with pytest.raises(LockedError, match="demo/saes is running; wait for it"):
            jobs.delete("demo")
    with pytest.raises(InputError, match="trains autoencoders"):
        jobs.resume("alone")
    jobs.delete("alone")
    stopped(settings.workspace / "demo" / "saes_1")
    jobs.delete("demo/saes_1")
    assert sorted(run.name for run in jobs) == ["demo", "demo/saes"]
    left = {path.name for path in (settings.workspace / "demo").iterdir()}
    assert left - {".lock", "status.json"} == {"cube.zarr", "linked", "saes"}


@pytest.mark.parametrize(
    ("state", "complete", "expected"),
    [
        ("running", None, State.INTERRUPTED),
        ("running", False, State.INTERRUPTED),
        ("running", True, State.DONE),  # killed after the manifest, before the last status
        ("failed", False, State.FAILED),
        ("done", None, State.DONE),
    ],
)
def test_the_state_of_a_training_whose_process_is_gone(
    jobs: Jobs, settings: Settings, state: str, complete: bool | None, expected: State
) -> None:
    path = stopped(settings.workspace / "saes", state)
    if complete is not None:
        write_manifest(path, complete=complete)
    run = jobs["saes"]
    assert run.state is expected
    assert run.progress == (1.0 if expected is State.DONE else 0.3)
    if complete:
        assert run.status["step"] == run.status["total_steps"]
        (path / "status.json").unlink()  # as in a copy of the files alone
        assert jobs["saes"].state is State.DONE


def test_foreign_trainings_do_no_harm(jobs: Jobs, settings: Settings) -> None:
    path = stopped(settings.workspace / "saes")
    for name, content in (
        (SETTINGS_FILE, '{"settings": {"layers": 7}}'),
        (SETTINGS_FILE, "[" * 10_000),
        (MANIFEST, '{"complete": 3}'),
        (LOG_FILE, '{"step": 1e99, "layers": {"0": 5}}\n{"step": 3, "layers": {"x": {}}}'),
        ("status.json", "{"),
    ):
        before = (path / name).read_text() if (path / name).exists() else None
        (path / name).write_text(content)
        run = Jobs(settings)["saes"]
        assert bool(run.faults) == (name != LOG_FILE)
        assert run.state is (State.UNREADABLE if name == "status.json" else State.INTERRUPTED)
        cards = RunList(jobs, lambda name: None)
        cards.update()
        view = TrainingView(jobs, run)
        view.lay_out()
        view.draw()
        assert view._notice.visible == (name in (SETTINGS_FILE, LOG_FILE))
        if before is None:
            (path / name).unlink()
        else:
            (path / name).write_text(before)


def test_curves_are_drawn_again_when_the_log_grows(
    jobs: Jobs, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.views.training_view._PAUSE", 0)
    with training(settings.workspace / "saes") as trainer:
        view = TrainingView(jobs, jobs["saes"])
        view.refresh()
        assert "not measured anything yet" in view._notice.title
        for count, step in enumerate((100, 200), start=1):
            trainer.measure(step)
            view.refresh()
            assert view._log is not None
            assert view._log.sizes == {"layer": 2, "step": count}
        log = view._log
        view.refresh()
        assert view._log is log  # nothing new
        assert not view._notice.visible
        assert f"{step} of 1,000 steps" in view._figures.object
    lines = view._cards["fvu"]._file("csv").read().splitlines()
    assert lines[0].split(",") == ["layer", "step", "fvu"]
    assert len(lines) == 5
    status = json.loads((Path(view.path) / "status.json").read_text())
    assert status["layers"] == {}
