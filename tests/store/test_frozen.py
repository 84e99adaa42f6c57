"""Cubes that an early commit wrote open, verify, resume and are analysed for ever."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from actkit import Whitener, adjacent_cka, cka, layer_norms, massive_activations, open_cube, verify
from actkit.batch_plan import Plan, Shape
from actkit.cli import main
from actkit.demo import CAPTIONS, MODEL
from actkit.errors import ChangedError, IncompleteError
from actkit.schema import VARIABLES
from actkit.store.layout import CUBE, array_of, open_group
from actkit.store.plain_store import PlainStore
from actkit.store.ragged import Ragged
from actkit.store.writer import CubeWriter
from actkit.yaml_files import read_yaml
from tests.store.corruption import seal

FROZEN = Path(__file__).parent / "frozen"
VALUES = json.loads((FROZEN / "values.json").read_text())
RUNS = ("plain", "vision", "partial", "complete", "whitened")
SAMPLES = {"plain": 8, "vision": 6, "partial": 4, "complete": 12, "whitened": 12}


@pytest.fixture
def frozen(tmp_path: Path) -> Callable[[str], Path]:
    """Unpack a run folder."""

    def unpack(name: str) -> Path:
        with zipfile.ZipFile(FROZEN / f"{name}.zip") as file:
            file.extractall(tmp_path / name)
        return tmp_path / name

    return unpack


def described(variable: xr.Variable) -> list[Any]:
    values = variable.values
    strings = values.dtype == object
    content = json.dumps(values.tolist()).encode() if strings else np.ascontiguousarray(values).tobytes()
    return [list(variable.dims), str(variable.dtype), hashlib.sha256(content).hexdigest()[:16]]


@pytest.mark.parametrize("name", VALUES)
def test_they_open_with_the_values_that_they_had(frozen: Callable[[str], Path], name: str) -> None:
    run, _, group = name.partition("/")
    cube = open_cube(frozen(run), group=group, partial=run == "partial")
    assert {name: described(cube[name].variable) for name in map(str, cube.variables)} == VALUES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_they_verify(frozen: Callable[[str], Path], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verification = verify(frozen(name))
    assert verification.faults == ()
    assert verification.committed == SAMPLES[name]
    assert main(["info", str(frozen(name))]) == 0
    assert "bfloat16" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "vision", "whitened"])
def test_they_are_analysed(frozen: Callable[[str], Path], name: str) -> None:
    cube = open_cube(frozen(name))
    norms = layer_norms(cube) if "norm" in cube else cka(cube)
    for statistic in (norms, adjacent_cka(cube), massive_activations(cube)):
        numbers = [values for values in statistic.data_vars.values() if values.dtype.kind == "f"]
        assert any(np.isfinite(values).any() for values in numbers)


def test_moments_are_read(frozen: Callable[[str], Path]) -> None:
    run = frozen("whitened")
    whitener = Whitener.of_run(run, layer=3)
    fitted = Whitener.fit(open_cube(run), layer=3)
    np.testing.assert_allclose(whitener.mean, fitted.mean, rtol=1e-6)


def as_it_was(run: Path) -> tuple[Plan, dict[str, np.ndarray]]:
    """Return the plan and the values of a complete cube."""
    group, cube = open_group(run / CUBE), open_cube(run)
    values = {
        name: np.asarray(array_of(group, name)[...])
        for name, variable in VARIABLES.items()
        if variable.by_window and name in group
    }
    plan = Plan(
        Shape(*(cube.sizes[dim] for dim in ("layer", "sample", "token", "hidden"))),
        lengths=cube.prompt_tokens.values,
        stored=cube.n_tokens.values,
        window=array_of(group, "committed").chunks[0],
        window_bytes=0,
        batches=cube.batch.values,
    )
    return plan, values


@pytest.mark.slow
def test_an_interrupted_one_is_resumed(frozen: Callable[[str], Path]) -> None:
    run, complete = frozen("partial"), frozen("complete")
    with pytest.raises(IncompleteError):
        open_cube(run)
    plan, values = as_it_was(complete)
    writer = CubeWriter(run / CUBE, plan)
    assert writer.recover() == [1, 2]
    for window in (1, 2):
        rows = plan.samples_of(window)
        part: dict[str, np.ndarray | Ragged] = {}
        for name, whole in values.items():
            part[name] = window_values = whole.take(rows, axis=VARIABLES[name].sample_axis)
            if VARIABLES[name].is_full:
                part[name] = Ragged.of(window_values, values["n_tokens"][rows.start : rows.stop])
        writer.write(window, part)
    assert verify(run).ok
    xr.testing.assert_identical(open_cube(run).load(), open_cube(complete).load())


@pytest.mark.slow
def test_an_extraction_resumes_it(frozen: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from actkit.extraction import run as extraction_run

    run, complete = frozen("partial"), frozen("complete")
    assert "tokens" in read_yaml(run / "config.yaml")[0]  # the former name of `keep_tokens`

    def resume() -> None:
        extraction_run.extract(run / "config.yaml", model=str(MODEL), data=str(CAPTIONS), listeners=[])

    try:
        resume()
    except ChangedError as error:
        # the model lay elsewhere, and other packages may round otherwise; nothing else may differ
        changed = {fault.where for fault in error.faults}
        assert {name for name in changed if not name.endswith("_version")} == {"model"}
        monkeypatch.setattr(extraction_run, "check_unchanged", lambda *_, **__: None)
        resume()
    assert verify(run).ok
    resumed, wanted = open_cube(run).load(), open_cube(complete).load()
    np.testing.assert_allclose(resumed.residual, wanted.residual, rtol=0.05, atol=0.5)
    xr.testing.assert_equal(resumed.token_id, wanted.token_id)


# what may be added


def added(cube: Path, name: str, document: dict[str, Any]) -> None:
    """Add an array, or a group, to what a cube lists."""
    (cube / name).mkdir()
    (cube / name / "zarr.json").write_text(json.dumps(document))
    attributes = json.loads((cube / "zarr.json").read_bytes())["attributes"]
    nodes = json.loads(attributes["arrays"])
    digest = hashlib.sha256((cube / name / "zarr.json").read_bytes()).hexdigest()
    attributes["arrays"] = json.dumps({**nodes, name: digest})
    seal(cube, attributes)


def attribute(cube: Path) -> None:
    attributes = json.loads((cube / "zarr.json").read_bytes())["attributes"]
    seal(cube, {**attributes, "of_the_future": "yes", "nested": {"a": [1]}})


def attribute_of_arrays(cube: Path) -> None:
    """Add to each array and group what is longer than its chunks."""
    for path in cube.rglob("*/zarr.json"):
        document = json.loads(path.read_bytes())
        document.setdefault("attributes", {})["of_the_future"] = "x" * 10**5
        path.write_text(json.dumps(document))
    seal(cube)


def variable(cube: Path) -> None:
    """Add a variable with a dimension, type and codec that nobody knows yet."""
    document = json.loads((cube / "residual" / "zarr.json").read_bytes())
    document |= {"shape": [4, 2], "dimension_names": ["head", "expert"], "data_type": "bfloat16"}
    document["codecs"] = [{"name": "of_the_future"}]
    document["chunk_grid"]["configuration"]["chunk_shape"] = [4, 2]
    added(cube, "router", document)


def group(cube: Path) -> None:
    added(cube, "audio", {"attributes": {}, "zarr_format": 3, "node_type": "group"})


def nested_group(cube: Path) -> None:
    """Add a group within a group within a group, with a variable."""
    group(cube)
    for name in ("audio/speech", "audio/speech/raw"):
        added(cube, name, {"attributes": {}, "zarr_format": 3, "node_type": "group"})
    document = json.loads((cube / "residual" / "zarr.json").read_bytes())
    added(cube, "audio/speech/raw/residual", document)


def file(cube: Path) -> None:
    (cube / "index.json").write_text("{}")
    (cube / "residual" / "c.0.0.0.0.note").write_text("mine")
    (cube / "committed" / "receipt.99.json").write_text("{}")
    (cube / "notes").mkdir()
    (cube / "notes" / "a.txt").write_text("mine")


ADDITIONS = (attribute, variable, group, file, nested_group, attribute_of_arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "addition"),
    [
        *(("plain", addition) for addition in ADDITIONS[:-1]),
        ("vision", ADDITIONS[-1]),
        ("vision", nested_group),
        *(pytest.param("vision", addition, marks=pytest.mark.nightly) for addition in ADDITIONS[:-2]),
        pytest.param("plain", ADDITIONS[-1], marks=pytest.mark.nightly),
    ],
)
def test_what_was_added_is_ignored(
    frozen: Callable[[str], Path], name: str, addition: Callable[[Path], None]
) -> None:
    run = frozen(name)
    before = open_cube(run).load()
    addition(run / CUBE)
    after = open_cube(run).load()
    assert {name: described(after[name].variable) for name in map(str, after.variables)} == VALUES[name]
    assert before.attrs.items() - {("metadata_sha256", before.metadata_sha256)} <= after.attrs.items()
    assert verify(run).faults == ()
    assert main(["info", str(run)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("addition", [variable, nested_group])
def test_an_array_that_nobody_knows_is_not_opened(
    frozen: Callable[[str], Path], addition: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, check, opened = frozen("plain"), PlainStore._check, set()

    def noted(self: PlainStore, key: str) -> None:
        opened.add(key.partition("/")[0])
        check(self, key)

    addition(run / CUBE)
    monkeypatch.setattr(PlainStore, "_check", noted)
    open_cube(run).load()
    assert verify(run).ok
    assert main(["info", str(run)]) == 0
    assert "residual" in opened
    assert not opened & {"router", "audio"}
