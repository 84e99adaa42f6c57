"""Runs on a cluster: the cube is that of one process, whichever process is killed."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Scheduler, SpecCluster, Worker

from actkit import extract, verify
from actkit.cli import main
from actkit.errors import ClusterError, InputError
from actkit.extraction.cluster import cluster_engine, connection
from actkit.extraction.cluster.cluster_engine import ClusterEngine
from actkit.extraction.cluster.connection import resubmitted, slurm_arguments
from actkit.extraction.cluster.lease import Job, Lease, WindowInput
from actkit.extraction.loop.data_loader import windows
from actkit.extraction.monitoring.progress import Progress
from actkit.extraction.preflight.preparation import RunPlan, prepare
from actkit.store.layout import CUBE
from actkit.store.run_folder import CONFIG, LOG, STATUS, read_status
from actkit.testing import contents
from tests.runs.extractions import Options, command, flags

NIGHTLY = [pytest.mark.nightly, pytest.mark.timeout(3600)]
COMMITTED = re.compile(r"\[\S+ (\d+)\] window \d+ committed")


class KillWorker:
    """Listener that kills the worker that first committed a window."""

    killed = 0

    def __init__(self, run: Path) -> None:
        self._log = run / LOG

    def __call__(self, event: Progress) -> None:
        if self.killed or not self._log.exists():
            return
        match = COMMITTED.search(self._log.read_text())
        if match:
            self.killed = int(match[1])
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_is_killed(tmp_path: Path, options: Options, undisturbed: dict[str, bytes]) -> None:
    run = tmp_path / "run"
    kill = KillWorker(run)
    events: list[Progress] = []
    cube = extract(**options, out=str(run), cluster="local:2", listeners=[kill, events.append])
    assert kill.killed
    assert contents(run / CUBE) == undisturbed
    assert verify(run).ok
    assert cube.sizes["sample"] == 60
    assert sorted(path.name for path in run.iterdir()) == [".lock", CONFIG, CUBE, LOG, STATUS]
    status, faults = read_status(run)
    assert not faults
    assert [status[name] for name in ("state", "samples", "committed")] == ["done", 60, 60]
    assert status["languages"] == {"english": 30, "arabic": 30}
    assert status["tokens"] == int(cube.n_tokens.sum())
    assert [event.samples for event in events] == sorted(event.samples for event in events)
    assert len(set(COMMITTED.findall((run / LOG).read_text()))) >= 2


@pytest.fixture
def prepared(options: Options, tmp_path: Path) -> RunPlan:
    return prepare(None, {**options, "out": str(tmp_path / "run")})


def test_a_lease_holds_its_part_of_the_plan(prepared: RunPlan) -> None:
    """Each window with its rows, whatever was read before."""
    rows = list(windows(prepared, [3, 4, 7]))
    entries = tuple(WindowInput.of(prepared, *entry) for entry in rows)
    lease: Lease = pickle.loads(pickle.dumps(Lease(1, entries, "seal")))
    job: Job = pickle.loads(pickle.dumps(Job.of(prepared, topic="", settings={}, cores=2)))
    plan = lease.plan(job.size.plan)
    for window in (3, 4, 7):
        samples = np.asarray(prepared.plan.samples_of(window))
        assert plan.lengths[samples].tolist() == prepared.plan.lengths[samples].tolist()
        batches = zip(plan.batches_of(window), prepared.plan.batches_of(window), strict=True)
        assert all(np.array_equal(*pair) for pair in batches)
    assert [window for window, _ in lease.rows([4, 7])] == [4, 7]
    assert lease.samples == 12
    assert lease.tokens == sum(
        int(prepared.plan.lengths[prepared.plan.samples_of(w)].sum()) for w in (3, 4, 7)
    )


def test_leases_are_worth_their_time(prepared: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """One window each until the rate is known, at most sixteen, and few at the end."""
    engine = ClusterEngine(prepared, "local:2")
    entries = [WindowInput.of(prepared, *entry) for entry in windows(prepared, range(15))]

    def sizes() -> list[int]:
        inputs, taken = iter(entries), []
        while sum(taken) < 15:
            taken.append(len(engine._take(inputs, 15 - sum(taken), 2)))
        return taken

    assert sizes() == [1] * 15
    engine._rate = 1e9
    assert sizes() == [4, 3, 2, 2, 1, 1, 1, 1]
    monkeypatch.setattr(cluster_engine, "SECONDS", int(entries[0].lengths.sum()) / 1e9)
    assert max(sizes()) == 1


@pytest.mark.parametrize("cluster", ["local", "local:0", "local:two", "host:8786", ""])
def test_what_is_no_cluster(cluster: str, options: Options, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a cluster"):
        extract(**options, out=str(tmp_path / "run"), cluster=cluster)
    with pytest.raises(InputError, match="leave out one of them"):
        extract(**options, out=str(tmp_path / "run"), cluster="local:2", part="1/2")
    assert not (tmp_path / "run").exists()


SLURM = """
n_workers: 4
cores: 16
processes: 2
memory: 64GB
queue: gpu
job_extra_directives: ["--gpus=2"]
"""
JOB = """
#SBATCH -p gpu
#SBATCH -n 1
#SBATCH --cpus-per-task=16
#SBATCH --mem=60G
#SBATCH -t 00:30:00
#SBATCH --gpus=2
export OMP_NUM_THREADS=8 MKL_NUM_THREADS=8
"""


def test_the_script_of_a_slurm_job(tmp_path: Path) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    path = tmp_path / "slurm.yaml"
    path.write_text(SLURM)
    arguments = slurm_arguments(path)
    options = {"port": 0, "dashboard_address": ":0"}
    with jobqueue.SLURMCluster(**{**arguments, "n_workers": 0}, scheduler_options=options) as cluster:
        script = cluster.job_script()
    assert JOB in script
    worker = script.strip().splitlines()[-1]
    assert "--nthreads 1 " in worker
    assert "--nworkers 2 " in worker
    assert "MEMORY__TERMINATE=False" in script


class Jobs(SpecCluster):  # type: ignore[misc]
    """Jobs like those of dask-jobqueue, in this process."""

    def scale(self, jobs: int) -> None:
        super().scale(jobs)


@pytest.mark.parametrize("suffix", ["", "-0"])
def test_a_job_that_ends_is_submitted_again(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CHECK_SECONDS", 0.1)
    options = {"dashboard": False, "nthreads": 1, "memory_limit": 0}
    workers = {name: {"cls": Worker, "options": {**options, "name": name + suffix}} for name in ("a", "b")}
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard": False, "dashboard_address": ":0", "host": "127.0.0.1", "port": 0},
    }
    with Jobs(workers=workers, scheduler=scheduler, silence_logs=False) as cluster, resubmitted(cluster):
        before = dict(cluster.workers)
        names = {address: worker["name"] for address, worker in cluster.scheduler_info["workers"].items()}
        assert sorted(names.values()) == [f"a{suffix}", f"b{suffix}"]
        time.sleep(0.5)  # until both have been seen
        assert cluster.workers == before
        cluster.sync(before["b"].close)
        deadline = time.monotonic() + 60
        while not set(cluster.scheduler_info["workers"]) - set(names):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert cluster.workers["a"] is before["a"]
        assert cluster.workers["b"] is not before["b"]


def test_a_slurm_file_that_lacks_arguments(tmp_path: Path, options: Options) -> None:
    path = tmp_path / "slurm.yaml"
    with pytest.raises(InputError, match="cannot be read"):
        extract(**options, out=str(tmp_path / "run"), cluster=str(path))
    path.write_text("cores: 8\n")
    with pytest.raises(InputError) as caught:
        extract(**options, out=str(tmp_path / "run"), cluster=str(path))
    assert {"lacks `n_workers`", "lacks `memory`"} <= {fault.what for fault in caught.value.faults}


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers that a user started, with their address."""
    dask = [sys.executable, "-m", "dask"]
    file = tmp_path / "scheduler.json"
    options = ["--scheduler-file", str(file), "--no-dashboard"]
    started = [subprocess.Popen([*dask, "scheduler", "--port", "0", "--host", "127.0.0.1", *options])]
    for _ in range(2):
        started.append(subprocess.Popen([*dask, "worker", "--nthreads", "1", *options]))
    while not file.exists():
        time.sleep(0.1)
    address = re.search(r"tcp://[\d.:]+", file.read_text())
    assert address
    yield address[0], started
    for process in started:
        process.terminate()
        process.wait()


@pytest.mark.nightly
def test_a_scheduler_that_runs_already(
    tmp_path: Path, options: Options, undisturbed: dict[str, bytes], scheduler: Any, capsys: Any
) -> None:
    """It serves several runs; when it is killed, the same command continues."""
    address, processes = scheduler
    run = tmp_path / "run"
    assert main([*command(options, run), "--cluster", address]) == 0
    assert contents(run / CUBE) == undisturbed
    lost = tmp_path / "lost"

    def kill(event: Progress) -> None:
        if event.committed:
            processes[0].kill()

    with pytest.raises(ClusterError, match="was lost; run the same command to continue"):
        extract(**options, out=str(lost), cluster=address, listeners=[kill])
    assert 0 < flags(lost) < 15
    extract(**options, out=str(lost), listeners=[])
    assert contents(lost / CUBE) == undisturbed


@pytest.mark.nightly
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_coordinator_is_ended(
    sign: signal.Signals, tmp_path: Path, options: Options, undisturbed: dict[str, bytes]
) -> None:
    """Its workers end too, and the same command continues."""
    run = tmp_path / "run"
    typed = [sys.executable, "-m", "actkit.cli", *command(options, run), "--cluster", "local:2"]
    process = subprocess.Popen(typed)
    while process.poll() is None and not flags(run):
        time.sleep(0.05)
    process.send_signal(sign)
    process.wait(60)
    workers = {int(pid) for pid in COMMITTED.findall((run / LOG).read_text())}
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = flags(run)
    assert before
    assert subprocess.run(typed).returncode == 0
    assert contents(run / CUBE) == undisturbed
