"""A run that is signalled to end finishes writing, and its last line says how to continue."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actkit import verify
from actkit.cli import main
from actkit.store.layout import CUBE
from actkit.store.run_folder import LOG, read_status
from actkit.testing import contents

CODES = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.fixture(scope="module")
def options(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of an extraction of 150 windows, without its run folder."""
    data = tmp_path_factory.mktemp("data") / "prompts.csv"
    rows = "\n".join(f"s{number},He reads a long book {number} times." for number in range(600))
    data.write_text(f"sample_id,text\n{rows}\n", encoding="utf-8")
    return [f"--model={tiny_model}", f"--data={data}", "--window-samples=4", "--device=cpu"]


@pytest.fixture(scope="module")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of the cube of an extraction that no signal ends."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(["extract", *options, f"--out={run}"]) == 0
    return contents(run / CUBE)


def restore_sigint() -> None:
    """Restore SIGINT, which background processes of a shell ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def committed(run: Path) -> int:
    return len(list((run / CUBE / "committed").glob("c.*[0-9]")))


@pytest.mark.slow
@pytest.mark.parametrize("end", CODES, ids=lambda end: end.name)
def test_a_signal_ends_a_run_in_order(
    options: list[str], undisturbed: dict[str, bytes], tmp_path: Path, end: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "actkit.cli", "extract", *options, f"--out={run}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=restore_sigint) as process:
        while committed(run) < 5 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(end)
        _, output = process.communicate()
    code, word = CODES[end]
    assert process.returncode == code
    assert output.splitlines()[-1] == f"actkit: {word}; run the same command again to continue"
    assert "Traceback" not in output
    assert read_status(run)[0]["state"] == "interrupted"
    assert (run / LOG).read_text(encoding="utf-8").splitlines()[-2].endswith("interrupted")
    # every started window is complete or absent
    assert not list((run / CUBE).rglob("*.partial"))
    assert verify(run).ok
    assert 5 <= committed(run) < 150

    assert main(["extract", *options, f"--out={run}"]) == 0
    assert contents(run / CUBE) == undisturbed
