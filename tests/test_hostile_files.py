"""Endless files, and files that claim more than they hold, each give one error, fast and in little memory."""

import json
import os
import pickle
import resource
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import actkit
from actkit.config import Config
from actkit.errors import ActkitError
from actkit.extraction.models.adapter_files import find_adapter
from actkit.extraction.models.checkpoint import find_checkpoint
from actkit.images import read_image
from actkit.importers.npz import read_npz
from actkit.importers.npz_arrays import examine
from actkit.importers.pt import read_pt
from actkit.sources import open_source
from actkit.tables import read_table
from actkit.widgets.layer_choice import layer_counts
from actkit.yaml_files import read_yaml
from tests.importers.scripts import save_checkpoints, save_chunks

MEMORY = 1536 * 2**20  # more than the process has
SECONDS = 240  # only a call that never ends takes as long, on any machine


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _endless(path: Path) -> None:
    with path.open("wb") as file:
        # memory-mapped weights count as memory here
        file.truncate(10**9 if path.suffix == ".safetensors" else 10**12)


def _folder(path: Path) -> None:
    path.mkdir()


IRREGULAR = {"pipe": _pipe, "device": _device, "endless": _endless, "folder": _folder}


def answered(call: Callable[[], str]) -> str:
    """Return the output of a call in a process with limited time and memory."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        output = "nothing"
        try:
            signal.alarm(SECONDS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
            output = call()
        except ActkitError as error:
            output = str(error)
        except BaseException as error:  # a user would see a traceback
            output = f"!!! {type(error).__name__}: {error}"
        finally:
            os.write(writer, output.encode()[:4000])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        output = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return output or f"!!! ended by signal {status & 127}"


def _table(path: Path) -> str:
    return str(*read_table(path)[1])


def _stream(path: Path) -> str:
    def read() -> None:
        config = Config(model="m", data=str(path), out="o", streaming=True)
        source, faults = open_source(config)
        output.extend(map(str, faults))
        for row in source.rows() if source else ():
            output.extend([str(row.fault)] if row.fault else [])

    output: list[str] = []
    read()
    return "\n".join(output)


def _image(path: Path) -> str:
    return read_image(path.name, path.parent)[1]


def _yaml(path: Path) -> str:
    return str(*read_yaml(path)[1])


READERS: dict[str, Callable[[Path], str]] = {
    **{f"table.{kind}": _table for kind in ("csv", "tsv", "json", "jsonl", "parquet", "xlsx")},
    "stream.jsonl": _stream,
    "stream.parquet": _stream,
    "image.png": _image,
    "config.yaml": _yaml,
    "whitener.safetensors": lambda path: str(actkit.Whitener.load(path)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("name", READERS)
def test_a_single_file(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    IRREGULAR[kind](path)
    # anything but a regular file is not a stream either
    reader = _table if name.startswith("stream") and kind != "endless" else READERS[name]
    output = answered(lambda: reader(path))
    assert output
    assert not output.startswith("!!!")
    assert output.count("\n") <= 1


OF_MODELS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.txt"),
    *(
        "chat_template.jinja",
        "tokenizer.model",
        "source.spm",
        "model.safetensors",
        "model-2.safetensors",
        "m.gguf",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("name", OF_MODELS)
def test_a_file_of_a_model(model_copy: Path, name: str, kind: str) -> None:
    if name in ("model-2.safetensors", "m.gguf"):
        (model_copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-2.safetensors"}}
    if name == "model-2.safetensors":
        (model_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_copy / name).unlink(missing_ok=True)
    IRREGULAR[kind](model_copy / name)
    output = answered(lambda: "\n".join(map(str, find_checkpoint(str(model_copy), None)[1])))
    assert output
    assert not output.startswith("!!!")
    assert answered(lambda: str(layer_counts(str(model_copy)))).startswith("{")


@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_of_an_adapter(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / name).unlink()
    IRREGULAR[kind](tmp_path / name)
    output = answered(lambda: "\n".join(map(str, find_adapter(str(tmp_path))[1])))
    assert output
    assert not output.startswith("!!!")


@pytest.mark.parametrize("kind", IRREGULAR)
def test_a_file_to_import(tmp_path: Path, kind: str) -> None:
    save_chunks(tmp_path)
    save_checkpoints(tmp_path)
    for pattern, read in (
        ("layer_*/*.npz", lambda folder: read_npz(folder, language="english")),
        ("layer_checkpoints/*.pt", read_pt),
    ):
        path = sorted(tmp_path.glob(pattern))[-1]
        path.unlink()
        IRREGULAR[kind](path)
        output = answered(lambda read=read: "\n".join(map(str, read(tmp_path)[1])))  # type: ignore[misc]
        assert path.name in output
        assert not output.startswith("!!!")


# small files that claim to be large


def _parquet_rows(path: Path) -> None:
    column = pa.array(np.zeros(2 * 10**8, dtype=np.int8))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")


def _parquet_cells(path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4000, dtype=np.int32)), pa.array(["x" * 10**6]))
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", store_schema=False)


def _sheet(rows: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from openpyxl import Workbook

        Workbook().save(path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = "xl/worksheets/sheet1.xml"
        parts[name] = parts[name].replace(
            b"<sheetData></sheetData>", b"<sheetData>" + rows.encode() + b"</sheetData>"
        )
        assert rows.encode() in parts[name]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)

    return write


def _wide_lines(path: Path) -> None:
    rows = [{"text": "a", f"k{number}": 1} for number in range(20_000)]
    text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text, encoding="utf-8")


_CELL = '<c r="XFD{at}" t="inlineStr"><is><t>x</t></is></c>'
BOMBS: dict[str, Callable[[Path], None]] = {
    "rows.parquet": _parquet_rows,
    "cells.parquet": _parquet_cells,
    "wide.jsonl": _wide_lines,
    "wide.json": _wide_lines,
    "wide.xlsx": _sheet("".join(f'<row r="{n}">{_CELL.format(at=n)}</row>' for n in range(1, 9000))),
    "far.xlsx": _sheet('<row r="1000000000"><c r="A1000000000"><v>1</v></c></row>'),
    "zeros.xlsx": _sheet("<row/>" * 50_000_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_table_that_unpacks_to_too_much(tmp_path: Path, name: str) -> None:
    BOMBS[name](tmp_path / name)
    assert (tmp_path / name).stat().st_size < 2 * 10**6
    output = answered(lambda: _table(tmp_path / name))
    assert "unpacks to" in output or "has more than 20,000,000 cells" in output


def _hostile_npz(path: Path, name: str, header: str, content: bytes = b"") -> None:
    raw = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + content)


def test_an_array_that_claims_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "layer_0" / "chunk_0.npz"
    path.parent.mkdir()
    for name in ("activations", "lengths"):
        path.unlink(missing_ok=True)
        _hostile_npz(path, name, "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3, 4)}")
        output = answered(
            lambda: "\n".join(
                map(
                    str,
                    examine(
                        tmp_path,
                        {0: {0: path}},
                        dims=("sample", "token", "hidden"),
                        other_arrays={"lengths": ("sample",)},
                    )[1],
                )
            )
        )
        assert "but too few bytes for it" in output


def _tensor_file(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "layer_checkpoints" / "layer_0_english.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return path


def _said_of(folder: Path) -> str:
    return answered(lambda: "\n".join(map(str, read_pt(folder)[1])))


def test_a_tensor_that_repeats_itself(tmp_path: Path) -> None:
    _tensor_file(tmp_path, {"activations": torch.zeros(1, 1, 1).expand(10**6, 10**4, 64)})
    assert "has more values than its storage" in _said_of(tmp_path)
    held = {"activations": torch.zeros(2, 3, 4), "genders": torch.zeros(1).expand(10**12)}
    _tensor_file(tmp_path, held)
    assert not _said_of(tmp_path).startswith("!!!")


@pytest.mark.slow
def test_a_tensor_file_that_is_packed(tmp_path: Path) -> None:
    path = _tensor_file(tmp_path, {"activations": torch.zeros(10**7, 3, 1)})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 10**6
    assert "unpacks to more bytes than it has" in _said_of(tmp_path)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_no_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = _tensor_file(tmp_path, {"activations": _Runs()})
    assert "as they can run code" in _said_of(tmp_path)
    path.write_bytes(pickle.dumps({"activations": _Runs()}))
    assert "not a torch.save file" in _said_of(tmp_path)
    np.savez(tmp_path / "x.npz", activations=np.array([_Runs()], dtype=object))
    assert not (tmp_path / "ran").exists()
