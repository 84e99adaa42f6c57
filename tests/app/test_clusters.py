"""Runs on clusters that the settings name: which are offered, how they are started, what is shown of them."""

import re
from pathlib import Path
from typing import Any

import psutil
import pytest

from actkit.errors import InputError
from actkit.store.run_folder import CLUSTER
from actkit.widgets.gauges import of_workers
from app import processes
from app.jobs import Jobs
from app.planner import Planner
from app.run_state import State
from app.settings import Settings
from app.views.run_form import ExtractForm
from app.views.run_list import RunList
from tests.app import stub_extraction
from tests.app.run_config import has_ended, is_running, run_config, wait


def clustered(settings: Settings, *clusters: str) -> Settings:
    return settings.model_copy(update={"clusters": clusters})


def test_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.of({"ACTKIT_CLUSTERS": "local:2 tcp://head:8786  slurm.yaml"})
    assert settings.clusters == ("local:2", "tcp://head:8786", str(tmp_path / "slurm.yaml"))
    for wrong in ("local", "local:0", "head:8786"):
        with pytest.raises(InputError, match=f"{wrong} is not a cluster"):
            Settings.of({"ACTKIT_CLUSTERS": wrong})


def test_the_command() -> None:
    """A cluster on other machines does not wait for the devices of this one."""
    queue = ["--queue", "q"]
    for cluster, expected in (
        ("", queue),
        ("local:2", ["--cluster", "local:2", *queue]),
        ("tcp://head:8786", ["--cluster", "tcp://head:8786"]),
    ):
        command = processes.command(Path("r"), Path("q"), cluster)
        assert command[4:] == [str(Path("r/config.yaml")), "--out", "r", *expected]


def test_the_form_offers_clusters_if_there_are_any(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ExtractForm, "show_plan", lambda self, trial: None)  # a process each time
    for offered in ((), ("local:2",)):
        own = clustered(settings, *offered)
        form = ExtractForm(own, Jobs(own), Planner(own), lambda _name: None)
        assert form._cluster.visible == bool(offered)
        assert list(form._cluster.options) == ["this machine", *offered]
        assert form._cluster.value == ""


def test_only_what_the_settings_offer_is_used(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def command(run: Path, queue: Path, cluster: str = "") -> list[str]:
        asked.append(cluster)
        return stub_extraction.command(run, queue)

    monkeypatch.setattr(processes, "command", command)
    jobs = Jobs(clustered(settings, "local:2"))
    with pytest.raises(InputError, match="'local:64' is not offered here"):
        jobs.start("other", run_config(), "local:64")
    assert not (settings.workspace / "other").exists()
    jobs.start("run", run_config(), "local:2")
    shown = wait(jobs, "run", is_running)
    assert (shown.cluster, set(asked)) == ("local:2", {"local:2"})
    cards = RunList(jobs, lambda _name: None)
    cards.update()
    assert "on local:2" in cards._cards["run"]._title.object
    jobs.cancel("run")
    wait(jobs, "run", has_ended)
    asked.clear()
    jobs.resume("run")  # on the same cluster
    assert asked[0] == "local:2"
    jobs.cancel("run")
    wait(jobs, "run", has_ended)
    (settings.workspace / "run" / CLUSTER).write_text("tcp://evil:1")
    assert jobs["run"].cluster == ""
    assert Jobs(settings)["run"].state is not State.UNREADABLE


def test_gauges_of_workers() -> None:
    workers: dict[str, Any] = {
        "127.0.0.1:1": {"host_bytes": 10, "host_total": 40},
        "10.0.0.2:7": {"host_bytes": 1, "host_total": 40, "allocated": 5, "reserved": 20, "total": 80},
    }
    first, second = of_workers(workers)
    assert (first.label, first.used, first.total) == ("Worker 127.0.0.1:1", 10, 40)
    assert (second.share, second.utilisation) == (0.25, None)
    (broken,) = of_workers({"x": {}})
    assert broken.share == 0


def test_workers_are_shown_while_a_run_is_computed(light_runs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    light_runs.start("run", run_config())
    wait(light_runs, "run", is_running)
    status = {"workers": {"127.0.0.1:1": {"host_bytes": 10**9, "host_total": psutil.virtual_memory().total}}}
    read = Jobs._read

    def with_workers(jobs: Jobs, name: str) -> Any:
        run = read(jobs, name)
        return run and type(run)(**{**vars(run), "status": {**run.status, **status}})

    monkeypatch.setattr(Jobs, "_read", with_workers)
    runs = RunList(light_runs, lambda _name: None)
    runs.update()
    assert re.search("Worker 127.0.0.1:1.*1.0 GB of", runs.gauges._view.object)
    light_runs.cancel("run")
    wait(light_runs, "run", has_ended)
    runs.update()
    assert "Worker" not in runs.gauges._view.object
