"""The command line: the same run as in Python, readable output, honest exit codes, a quick start."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

import actkit
from actkit.cli import main
from actkit.config import Config
from actkit.testing import write_cube

_OF_RUNS = ("info", "verify", "report", "export", "import")
COMMANDS = ("demo", "extract", "seal", "extend", "join", "plan", *_OF_RUNS, "saes", "push", "pull")


def run(*arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(str(stop.code))
    return code, out.getvalue(), err.getvalue()


def pairs(output: str) -> dict[str, str]:
    """Read `name  value` lines."""
    lines = (re.split(r"\s{2,}", line, maxsplit=1) for line in output.splitlines())
    return {parts[0]: parts[1] for parts in lines if len(parts) == 2}


@pytest.fixture(scope="module")
def extracted(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder that the command line made, and what it printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    code, out, err = run("extract", "--model", tiny_model, "--data", prompts, "--out", folder)
    assert code == 0, err
    return folder, out


@pytest.mark.slow
def test_extract_says_what_it_made(extracted: tuple[Path, str]) -> None:
    folder, out = extracted
    cube = actkit.open_cube(folder)
    printed = pairs(out)
    assert printed["cube"] == str(folder / "cube.zarr")
    assert printed["shape"] == f"3 layer × 6 sample × {cube.sizes['token']} token × 16 hidden"
    assert re.fullmatch(r"[\d.,]+ (kB|MB)", printed["on disk"])
    assert re.fullmatch(r"[\d.,]+ samples/s, [\d.,]+ tokens/s", printed["speed"])
    assert "truncated" not in printed
    table = out[out.index("mean norm of content tokens") :].splitlines()
    assert table[1].split() == ["layer", "english", "arabic"]
    assert [line.split()[0] for line in table[2:5]] == ["0", "1", "2"]
    norms = actkit.layer_norms(cube)["mean"]
    assert [line.split()[1:] for line in table[2:5]] == [
        [f"{value:,.2f}" for value in norms.sel(layer=layer).values] for layer in range(3)
    ]
    assert out.endswith(f"open it in Python:  actkit.open_cube({str(folder)!r})\n")


def test_extract_again_finds_nothing_left(extracted: tuple[Path, str]) -> None:
    folder, _ = extracted
    options = Config(**read_config(folder)).model_dump(exclude_defaults=True)
    code, out, err = run(
        "extract", *(part for name, value in options.items() for part in (f"--{name}", value))
    )
    assert (code, pairs(out)["speed"]) == (0, "nothing was left to do"), err


def read_config(folder: Path) -> dict[str, str]:
    return dict(line.split(": ") for line in (folder / "config.yaml").read_text().splitlines())


def test_changed_settings_are_an_error(extracted: tuple[Path, str]) -> None:
    folder, _ = extracted
    code, out, err = run("extract", folder / "config.yaml", "--layers", "0")
    assert (code, out) == (1, "")
    assert err.endswith(
        f"actkit: {folder} contains a cube made with other settings; choose another `out`, or restore them\n"
        "  - layers: was '0-2', is now '0'\n"
    )


def test_info_says_what_a_cube_holds(extracted: tuple[Path, str], tiny_model: Path) -> None:
    folder, _ = extracted
    cube = actkit.open_cube(folder)
    for path in (folder, folder / "cube.zarr"):
        code, out, err = run("info", path)
        assert (code, err) == (0, "")
        printed = pairs(out)
        assert printed["committed"] == "6 of 6 samples"
        assert printed["tokens"] == f"{int(cube.n_tokens.sum()):,}"
        assert printed["variables"] == " ".join(cube.data_vars)
        assert printed["language"] == "english 3, arabic 3"
        assert printed["gender"] == "male 4, female 2"
        assert {name: printed[name] for name in cube.attrs} == {
            name: str(value) for name, value in cube.attrs.items()
        }


def test_info_of_an_unfinished_cube(tmp_path: Path) -> None:
    code, out, err = run("info", write_cube(tmp_path, windows=[0]))
    assert (code, err) == (0, "")
    assert pairs(out)["committed"] == "4 of 8 samples"


def test_verify_tells_sound_from_damaged(extracted: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = extracted
    code, out, err = run("verify", folder)
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"{folder}/cube\.zarr: sound; \d+ files, [\d.]+ kB, 6 of 6 samples committed\n", out)
    damaged = write_cube(tmp_path)
    (damaged / "cube.zarr" / "norm" / "c.0.1.0").unlink()
    code, out, err = run("verify", damaged)
    assert (code, err) == (1, "")
    first, last = out.splitlines()
    assert first.startswith("norm/c.0.1.0: is missing (")
    assert last.startswith(f"{damaged}/cube.zarr: 1 damaged; ")


def test_plan_writes_nothing(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--model", tiny_model, "--data", prompts, "--out", tmp_path / "run", "--layers", "0,-1")
    code, out, err = run("plan", *options, "--max-tokens", 4, "--batch-size", 4)
    assert (code, err) == (0, "")
    printed = pairs(out)
    assert printed["model"] == f"{tiny_model}, 3 layers × 16"
    assert printed["layers kept"] == "2: 0 2"
    assert printed["samples"] == "6 in english, arabic"
    assert printed["tokens"].endswith(", longest prompt 4, padded 1.00×")
    assert printed["truncated"] == "6 samples"
    assert printed["windows"].endswith(", 2 batches")
    assert "free" in printed["disk"]
    assert "available" in printed["host memory"]
    assert re.fullmatch(
        r"about [^:]+: \S+ s computing, \S+ s writing concurrently; \w+ is the bottleneck", printed["time"]
    )
    assert "device memory" not in printed
    assert list(tmp_path.iterdir()) == []


def test_plan_without_a_trial(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--model", tiny_model, "--data", prompts, "--out", tmp_path / "run")
    code, out, err = run("plan", *options, "--no-trial")
    assert (code, err) == (0, "")
    printed = pairs(out)
    assert printed["windows"] == "1 of 6 samples, 1 batches of up to 1,024 tokens"
    assert printed["time"] == "unknown without a trial"
    assert printed["helps most"] == "for disk, save=norm,pooled,last → 3.6 kB"
    # an extraction has no trial
    assert run("extract", *options, "--no-trial")[0] == 2


def test_a_plan_for_programs(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--model", tiny_model, "--data", prompts, "--out", tmp_path / "run", "--no-trial", "--json")
    code, out, err = run("plan", *options)
    assert (code, err) == (0, "")
    outcome = json.loads(out)
    assert dict(outcome["rows"])["samples"] == "6 in english, arabic"
    assert (outcome["heading"], outcome["faults"]) == ("", [])
    code, out, err = run("plan", *options, "--layers", "7", "--limit", "0")
    assert (code, err) == (1, "")
    outcome = json.loads(out)
    assert outcome["rows"] == []
    assert outcome["heading"] == "cannot run: 2 faults"
    assert [fault["where"] for fault in outcome["faults"]] == ["limit", "layers"]
    # an extraction has no JSON output
    assert run("extract", *options)[0] == 2


def test_runs_of_one_queue_leave_no_ticket(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    code, _, _ = run(
        "extract", "--model", tiny_model, "--data", prompts, "--out", tmp_path / "run", "--queue", queue
    )
    assert code == 0
    assert [path.name for path in queue.iterdir()] == ["guard.lock"]


def test_plan_says_when_too_little_memory_is_available(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = namedtuple("memory", "total available")(2**40, 10**8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    code, out, err = run("plan", "--model", tiny_model, "--data", prompts, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    printed = pairs(out)
    assert re.fullmatch(
        r"about [\d.]+ MB, 100.0 MB available now, which is not enough", printed["host memory"]
    )
    assert printed["time"] == "unknown: not enough memory for a trial"


def test_plan_names_the_memory_of_a_device(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("run_size", "suggestions", "model_memory", "plan_summary"):
        monkeypatch.setattr(f"actkit.extraction.preflight.{module}.device_bytes", lambda _: 80 * 10**9)
    options = ("--model", tiny_model, "--data", prompts, "--out", tmp_path / "run", "--no-trial")
    code, out, err = run("plan", *options)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"about [\d.]+ kB of 80.0 GB", pairs(out)["device memory"])


def test_options_go_over_the_file(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {tiny_model}\ndata: {prompts}\nout: {tmp_path / 'run'}\nlimit: 1\nlayers: all\n")
    code, _, err = run(
        "extract", path, "--limit", 2, "--layers=-2--1", "--languages", "arabic,english", "--save", "norm"
    )
    assert code == 0, err
    cube = actkit.open_cube(tmp_path / "run")
    assert cube.layer.values.tolist() == [1, 2]
    assert cube.language.values.tolist() == ["english", "english"]
    assert list(cube.data_vars) == ["norm", "nonfinite"]


def test_cells_come_back_byte_for_byte(tiny_model: Path, tmp_path: Path) -> None:
    cells = ["الطَّبِيبُ\u200f", "a\0b\0", "line\r\nbreak\u2028\x85", "👩🏽‍⚕️ e\u0301", ' "quoted", ', "\ufeffNaN"]
    path = tmp_path / "data.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["sample_id", "text", "a label"])
        writer.writerows([cell, cell, cell] for cell in cells)
    code, _, err = run("extract", "--model", tiny_model, "--data", path, "--out", tmp_path / "run")
    assert code == 0, err
    cube = actkit.open_cube(tmp_path / "run")
    for name in ("sample_id", "text", "a label"):
        assert cube[name].values.tolist() == cells


def test_errors_go_to_stderr(tiny_model: Path, tmp_path: Path) -> None:
    asked = ("--model", tiny_model, "--data", "none.csv", "--out", tmp_path / "run")
    heading = "actkit: cannot run: 1 fault\n  - none"
    for arguments, message in {
        (
            "extract",
            "none.yaml",
        ): f"{heading}.yaml: cannot be read: No such file or directory (check the path)",
        ("plan", *asked): f"{heading}.csv: does not exist (check the path)",
        ("info", tmp_path): f"actkit: {tmp_path}: holds no cube; give a run folder with cube.zarr in it, "
        "or the .zarr folder",
        ("verify", tmp_path): f"actkit: {tmp_path}: holds no cube; give a run folder with cube.zarr in it, "
        "or the .zarr folder",
    }.items():
        assert run(*arguments) == (1, "", f"{message}\n")


def test_what_was_not_asked_for_is_missing() -> None:
    code, out, err = run("extract")
    assert (code, out) == (1, "")
    assert err.startswith("actkit: cannot run: 3 faults\n  - model: is missing (give ")


@pytest.mark.parametrize("arguments", [(), ("nonesuch",), ("extract", "--nonesuch", "1"), ("info",)], ids=str)
def test_commands_that_do_not_exist(arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: actkit")


def test_an_interrupt_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("actkit.extraction.run.extract", interrupted)
    assert run("extract") == (130, "", "actkit: interrupted; run the same command again to continue\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # wide enough that no line breaks at a hyphen
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: actkit {command} ")
    words = " ".join(out.split())
    assert ("--layers=-3--1" in words) == (command in ("extract", "plan"))
    if command in ("extract", "plan"):
        for name, field in Config.model_fields.items():
            option = f"--{name.replace('_', '-')}"
            if field.annotation in (bool, bool | None):
                assert f" {option}, --no-{option[2:]} {field.description}" in words
            else:
                assert f" {option} {name[0].upper()} {field.description}" in words


@pytest.mark.parametrize("options", [["--llm"], ["--out", "elsewhere"], ["--llm", "--out", "elsewhere"]])
def test_the_demo_ignores_no_option(options: list[str], tmp_path: Path) -> None:
    code, out, err = run("demo", "--images", tmp_path / "scenes", *options)
    unused = " and ".join(option for option in options if option.startswith("--"))
    assert (code, out) == (1, "")
    assert (
        f"--images: only draws images: it runs no model and writes no run folder (leave out {unused})" in err
    )
    assert not (tmp_path / "scenes").exists()


def test_help_lists_every_command() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert tuple(re.findall(r"^    (\w+) ", out, flags=re.MULTILINE)) == COMMANDS


@pytest.mark.slow
def test_commands_that_need_no_model_import_no_torch(extracted: tuple[Path, str]) -> None:
    folder, _ = extracted
    program = f"""
import sys
from actkit.cli import main
for arguments in (["--help"], ["extract", "--help"], ["info", {str(folder)!r}], ["verify", {str(folder)!r}]):
    try:
        assert main(arguments) == 0
    except SystemExit as stop:
        assert stop.code == 0
heavy = {{"torch", "transformers", "huggingface_hub"}} & sys.modules.keys()
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_warnings_are_printed_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(**_options: object) -> int:
        for file in (actkit.cli.__file__, "theirs.py"):
            warnings.warn_explicit("few \x1b tokens", UserWarning, file, 7)
        return 0

    def show(message: Warning, category: type[Warning], file: str, line: int, *_rest: object) -> None:
        print(warnings.formatwarning(message, category, file, line), end="", file=sys.stderr)

    monkeypatch.setattr("actkit.cli._demo", warn)
    monkeypatch.setattr(warnings, "showwarning", show)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = run("demo")
    assert code == 0
    assert err == "actkit: warning: few \\x1b tokens\ntheirs.py:7: UserWarning: few \x1b tokens\n"


@pytest.mark.slow
def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    run = write_cube(tmp_path / "run")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "actkit.cli", "info", str(run)]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
