"""Runs under a real Slurm: jobs of workers and an array of parts, of which one is cancelled.

`tools/one_node_slurm.sh` starts Slurm on a machine with Debian's packages.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import yaml

from actkit import extract, verify
from actkit.store.layout import CUBE
from actkit.store.run_folder import LOG
from actkit.testing import contents
from tests.runs.extractions import Options, flags


def _answers() -> bool:
    """Return whether Slurm runs here."""
    if shutil.which("scontrol") is None:
        return False
    return subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not _answers(), reason="needs Slurm (tools/one_node_slurm.sh)"),
]
SLURM = {"n_workers": 2, "cores": 1, "memory": "2GB", "walltime": "01:00:00"}


def _jobs() -> list[str]:
    listed = subprocess.run(
        ["squeue", "--noheader", "--states=R", "--format=%i"], capture_output=True, check=True, text=True
    )
    return listed.stdout.split()


def test_a_job_is_cancelled(tmp_path: Path, options: Options, undisturbed: dict[str, bytes]) -> None:
    run, cluster = tmp_path / "run", tmp_path / "slurm.yaml"
    cluster.write_text(yaml.safe_dump(SLURM))
    cancelled: list[str] = []

    def cancel() -> None:
        while flags(run) < 2:
            time.sleep(0.05)
        cancelled.append(_jobs()[0])
        subprocess.run(["scancel", cancelled[0]], check=True)

    thread = Thread(target=cancel, daemon=True)
    thread.start()
    extract(**options, out=str(run), cluster=str(cluster), listeners=[])
    thread.join(60)
    assert cancelled
    assert contents(run / CUBE) == undisturbed
    assert "done" in (run / LOG).read_text()


def test_an_array_is_requeued(tmp_path: Path, options: Options, undisturbed: dict[str, bytes]) -> None:
    """The documented script, on a CPU."""
    run = tmp_path / "run"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**options, "out": str(run)}))
    program = f"{sys.executable} -m actkit.cli"
    part = '"$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"'
    (tmp_path / "extract.sh").write_text(
        f"#!/bin/bash\n#SBATCH --array=1-3\n#SBATCH --requeue\n{program} extract run.yaml --part {part}\n"
    )
    threads = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    submitted = {"cwd": tmp_path, "env": threads, "check": True, "capture_output": True, "text": True}
    array = subprocess.run(["sbatch", "--parsable", "extract.sh"], **submitted).stdout.strip()
    seal = ["--wait", f"--dependency=afterok:{array}", f"--wrap={program} seal {run}"]
    while flags(run) < 1:
        time.sleep(0.05)
    subprocess.run(["scontrol", "requeue", f"{array}_1"], check=True)
    subprocess.run(["sbatch", *seal], **submitted)
    assert contents(run / CUBE) == undisturbed
    assert verify(run).ok
