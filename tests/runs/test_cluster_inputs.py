"""Images, chats and generated text on a cluster, and a coordinator that is asked to end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from transformers import AutoTokenizer

from actkit import extract, verify
from actkit.demo import draw_scenes
from actkit.extraction.cluster.connection import connected
from actkit.store.layout import CUBE
from actkit.store.run_folder import read_status
from actkit.testing import contents
from tests.runs.extractions import Options, command, delay_writes, flags

pytestmark = pytest.mark.slow

CHAT = """{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.fixture(scope="module")
def local() -> Iterator[Client]:
    """A cluster of two workers on this machine, as `local:2` starts it, for all tests of this module."""
    with connected("local:2", "cpu") as client:
        yield client


@pytest.fixture
def asked(request: pytest.FixtureRequest, options: Options, model_copy: Path, tmp_path: Path) -> Options:
    """Options of a small run of one kind."""
    if request.param == "images":
        vlm: Callable[[str], Path] = request.getfixturevalue("vlm")
        table = draw_scenes(tmp_path / "scenes", 2)
        of_images = {"image_column": "image", "layers": "all vision_all", "window_samples": 3}
        return {"model": str(vlm("gemma3")), "data": str(table), "device": "cpu", **of_images}
    if request.param == "generation":
        sampled = {"max_new_tokens": 4, "do_sample": True, "temperature": 1.3, "seed": 5}
        return {**options, "limit": 16, "generate": sampled}
    tokenizer = AutoTokenizer.from_pretrained(model_copy)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model_copy)
    turns = [{"role": "user", "content": "He reads."}, {"role": "assistant", "content": "What?"}]
    rows = [{"id": f"c{n}", "messages": [*turns[:1], *(turns[1:] + turns[:1]) * (n % 3)]} for n in range(10)]
    table = tmp_path / "chats.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    of_chats = {"text_column": "messages", "window_samples": 3}
    return {"model": str(model_copy), "data": str(table), "device": "cpu", **of_chats}


@pytest.mark.parametrize(
    "asked",
    [
        "chats",
        pytest.param("images", marks=pytest.mark.nightly),
        pytest.param("generation", marks=pytest.mark.nightly),
    ],
    indirect=True,
)
def test_the_bytes_are_those_of_one_process(asked: Options, local: Client, tmp_path: Path) -> None:
    options: dict[str, Any] = {**asked, "listeners": []}
    extract(**options, out=str(tmp_path / "alone"))
    extract(**options, out=str(tmp_path / "shared"), cluster=local.scheduler.address)
    assert contents(tmp_path / "shared" / CUBE) == contents(tmp_path / "alone" / CUBE)
    status, _ = read_status(tmp_path / "shared")
    assert status["host_bytes"] > sum(each["host_bytes"] for each in status["workers"].values()) > 0


def test_a_coordinator_that_is_asked_to_end_releases_its_leases(
    options: Options, undisturbed: dict[str, bytes], local: Client, tmp_path: Path
) -> None:
    """SIGTERM ends it as Ctrl-C does; its workers serve others, and the same command continues."""
    run, address = tmp_path / "run", local.scheduler.address
    local.run(delay_writes, 0.5)
    typed = [sys.executable, "-m", "actkit.cli", *command(options, run), "--cluster", address]
    process = subprocess.Popen(typed, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not flags(run):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=240)
    assert process.returncode != 0, text
    assert "Traceback" not in text
    assert read_status(run)[0]["state"] == "interrupted"
    while any(local.processing().values()):  # pytest-timeout ends a test that waits in vain
        time.sleep(0.05)
    assert len(local.nthreads()) == 2
    local.run(delay_writes, 0.0)
    committed = flags(run)
    assert 0 < committed < 15
    assert verify(run).ok
    extract(**options, out=str(run), cluster=address, listeners=[])
    assert contents(run / CUBE) == undisturbed
