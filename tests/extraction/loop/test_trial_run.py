"""A trial measures a few batches, predicts the cost of the run, and leaves no files behind."""

import csv
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import actkit
from actkit.demo import draw_scenes
from actkit.errors import StorageError
from actkit.estimates import Rates
from actkit.extraction.loop import trial_run
from actkit.extraction.loop.batch_runner import BatchRunner
from actkit.extraction.loop.data_loader import Batch
from actkit.extraction.preflight.suggestions import suggest
from actkit.store.scratch_writer import ScratchWriter


@pytest.fixture
def asked(tiny_model: Path, prompts: Path, tmp_path: Path) -> dict[str, Any]:
    return {"model": str(tiny_model), "data": str(prompts), "out": str(tmp_path / "run")}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Lengths of the prompts of each computed batch."""
    batches: list[list[int]] = []
    run = BatchRunner.run

    def noted(self: BatchRunner, batch: Batch, buffer: Any) -> None:
        batches.append(sorted(len(prompt.ids) for prompt in batch.prompts))
        run(self, batch, buffer)

    monkeypatch.setattr(BatchRunner, "run", noted)
    return batches


def rates_of(**options: Any) -> Rates:
    rates = actkit.plan(**options).rates
    assert rates is not None
    return rates


def on_disk(cube: Path) -> int:
    return sum(path.stat().st_size for path in cube.rglob("*") if path.is_file())


def test_a_trial_measures_everything_and_leaves_nothing(asked: dict[str, Any], tmp_path: Path) -> None:
    before = actkit.plan(**asked, trial=False)
    prepared = actkit.plan(**asked)
    rates, estimate = prepared.rates, prepared.estimate
    assert rates is not None
    assert min(rates.starting, rates.computing, rates.writing, rates.committing, rates.busy) > 0
    assert (rates.reading, rates.crossing, rates.device, rates.shares_cores) == (0, 0, None, True)
    assert rates.depth == 3
    assert rates.strings > 0
    assert rates.compressed.keys() == set(prepared.size.variables) - {"token_text"}
    assert estimate.time is not None
    assert estimate.time.total > estimate.time.computing > 0
    assert estimate.time.total > estimate.time.writing > 0
    assert estimate.host > prepared.plan.held_bytes
    # all else is as it was
    assert before.estimate.time is None
    np.testing.assert_array_equal(prepared.plan.batches, before.plan.batches)
    assert (prepared.attrs, prepared.size.variables) == (before.attrs, before.size.variables)
    assert list(tmp_path.iterdir()) == []


SIZED = [
    ("minilm", {"limit": 60, "storage": "bfloat16", "batch_size": 7, "window_samples": 20}),
    ("demo", {"limit": 150}),
    ("demo", {"limit": 150, "keep_tokens": "content", "layers": "0-4 mlp_2 attention_7"}),
]
LARGER = [(model, {**options, "limit": 600}) for model, options in (*SIZED, ("minilm", {}))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"), [*SIZED, *(pytest.param(*case, marks=pytest.mark.nightly) for case in LARGER)]
)
def test_the_disk_estimate_matches_the_cube(
    model: str,
    options: dict[str, Any],
    architectures: Callable[[str], Path],
    mtgeneval: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_run, "SECONDS", 0.5)
    asked = {"model": str(architectures(model)), "data": str(mtgeneval), "out": str(tmp_path), **options}
    predicted = actkit.plan(**asked).estimate.disk
    actkit.extract(**asked, listeners=[])
    assert predicted == pytest.approx(on_disk(tmp_path / "cube.zarr"), rel=0.15)


@pytest.mark.slow
def test_every_batch_may_be_tried_and_the_largest_is(
    architectures: Callable[[str], Path],
    mtgeneval: Path,
    tmp_path: Path,
    tried: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial_run, "SECONDS", 0.0)
    asked = {"model": str(architectures("demo")), "data": str(mtgeneval), "out": str(tmp_path / "run")}
    plan = actkit.plan(**asked, limit=1500).plan
    # a prompt to warm up, the largest batch, and three representative ones
    assert [len(batch) > 1 for batch in tried] == [False, True, True, True, True]
    alone, largest, *others = tried
    assert alone[0] in largest
    assert len(largest) * largest[-1] == plan.batch_positions.max()
    # where half, a quarter and three quarters of the positions are computed
    ends = np.cumsum(plan.batch_positions)
    expected = [np.searchsorted(ends, place * ends[-1]) for place in (1 / 2, 1 / 4, 3 / 4)]
    assert others == [sorted(plan.lengths[plan.batches == batch].tolist()) for batch in expected]


def test_a_small_run_is_not_run_more_than_once(asked: dict[str, Any], tried: list[list[int]]) -> None:
    plan = actkit.plan(**asked, batch_size=1).plan
    assert plan.n_batches == 6
    assert len(tried) == 2 + 3


@pytest.mark.slow
def test_a_trial_generates_text_as_the_run_does(asked: dict[str, Any], tmp_path: Path) -> None:
    generating = {**asked, "generate": {"max_new_tokens": 5}, "window_samples": 4}
    prepared = actkit.plan(**generating)
    assert prepared.rates is not None
    assert prepared.estimate.time is not None
    assert prepared.rates.strings > rates_of(**asked).strings
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_images_are_read_for_a_trial(name: str, vlm: Callable[[str], Path], tmp_path: Path) -> None:
    table = draw_scenes(tmp_path / "scenes", 3)
    prepared = actkit.plan(
        model=str(vlm(name)),
        data=str(table),
        out=str(tmp_path / "run"),
        layers="all vision_all",
        image_column="image",
        window_samples=8,
        batch_size=3,
    )
    assert prepared.rates is not None
    # each image is read again
    assert prepared.rates.reading == pytest.approx(prepared.checking / 12)
    assert "vision/residual" in prepared.rates.compressed
    assert prepared.estimate.time is not None
    assert not (tmp_path / "run").exists()


def test_long_texts_are_read_again(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from actkit.extraction.preflight import prompt_lengths

    # the first three prompts are cached: a window of two, and half of the next
    lengths = actkit.plan(**asked, trial=False).plan.lengths
    monkeypatch.setattr(prompt_lengths, "KEPT_TOKENS", int(lengths[:3].sum()))
    some = actkit.plan(**asked, window_samples=2, batch_size=2)
    assert some.rates is not None
    assert some.rates.reading == pytest.approx(some.checking / 6 * (1 - 2 / 6))
    monkeypatch.setattr(prompt_lengths, "KEPT_TOKENS", 0)
    none = actkit.plan(**asked, window_samples=2, batch_size=2)
    assert none.rates is not None
    assert none.rates.reading == pytest.approx(none.checking / 6)


@pytest.mark.parametrize("owner", [BatchRunner, ScratchWriter])
def test_a_trial_that_fails_leaves_nothing_either(
    owner: Any, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "run" if owner is BatchRunner else "write"
    done, calls = getattr(owner, name), iter(range(100))

    def fails(self: Any, *args: Any) -> Any:
        if next(calls) == 3:
            raise StorageError("no more")
        return done(self, *args)

    monkeypatch.setattr(owner, name, fails)
    with pytest.raises(StorageError, match="no more"):
        actkit.plan(**asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_weights")
def test_without_a_trial_or_the_memory_for_it_no_model_is_loaded(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert actkit.plan(**asked, trial=False).rates is None
    with pytest.raises(AssertionError, match="weights were loaded"):
        actkit.plan(**asked)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("memory", "total available")(2**40, 10))
    assert actkit.plan(**asked).rates is None


@pytest.mark.slow
def test_suggestions_include_time_after_a_trial(asked: dict[str, Any], prompts: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    with data.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        writer.writerows([[f"{number} " + "The doctor reads a book. " * 8] for number in range(500)])
    prepared = actkit.plan(**{**asked, "data": str(data)})
    helping = suggest(prepared.spec, prepared.size, "time", rates=prepared.rates)
    times = [suggestion.estimate.time for suggestion in helping]
    assert prepared.estimate.time is not None
    assert all(time is not None and time.total < prepared.estimate.time.total for time in times)
    first = {suggestion.option.partition("=")[0]: suggestion.estimate for suggestion in helping}
    if "layers" in first:
        assert first["layers"].time is not None
        # two of three blocks
        assert first["layers"].time.computing == pytest.approx(prepared.estimate.time.computing * 2 / 3)
