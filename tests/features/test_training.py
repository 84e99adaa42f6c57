"""Training on cubes: what is refused, what is written, and that it is in the units of the cube."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import actkit
from actkit.canonical import as_cube
from actkit.cli import main
from actkit.errors import CubeError, InputError, MissingError, NonfiniteError
from actkit.exporters.torch_dataset import LayerTokens
from actkit.features import training, training_input, training_progress
from actkit.features.layer_trainer import LayerTrainer
from actkit.features.published_saes import published_saes
from actkit.features.training_progress import TrainingBar, TrainingProgress
from actkit.stats.holdout import held_out
from actkit.testing import write_cube

HIDDEN = 24
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens for.*features:UserWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(
        tmp_path_factory.mktemp("cube") / "run", n_samples=150, n_tokens=8, hidden=HIDDEN, window=32
    )


def train(run: Any, out: Path, **options: Any) -> Any:
    sizes = {"width": 48, "k": 4, "batch": 64, "steps": 30, "layers": "1"}
    return actkit.train_saes(run, out=out, **{"listeners": [], **sizes, **options})


@pytest.fixture(scope="module")
def trained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "saes"
    train(run, out, layers="0-1", steps=60)
    return out


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"width": 1}, "width: is 1 (give an integer of at least 2)"),
    "k": ({"k": 0}, "k: is 0"),
    "k above the width": ({"k": 49}, "k: is 49, but there are 48 features"),
    "k above half of the width": ({"k": 30}, "k: is 30, more than half of the 48 features"),
    "tokens": ({"width": 5000}, "width: is 5,000, but there are only"),
    "architecture": ({"architecture": "jumprelu"}, "architecture: 'jumprelu' cannot be trained"),
    "steps and epochs": ({"epochs": 2}, "epochs: is given besides steps"),
    "lr": ({"lr": float("nan")}, "lr: is nan"),
    "batch": ({"batch": 2.5}, "batch: is 2.5"),
    "memory": ({"memory": "lots"}, "memory: is 'lots'"),
    "component": ({"layers": "mlp_1"}, "layers: names mlp, but component is residual"),
    "layers of attention": ({"layers": "attention_1"}, "layers: names attention, but component is residual"),
    "layers": ({"layers": "9"}, "layers: `9`: the model has no layer 9"),
    "device": ({"device": "gpu"}, "device: 'gpu' is unknown (auto, cpu, mps, cuda or cuda:N)"),
    "index of a device": ({"device": "cuda:x"}, "device: 'cuda:x' is unknown"),
    "device that is not here": ({"device": "cuda:99"}, "device: there is no `cuda:99` here"),
    "where": ({"where": {"gender": "unknown"}}, "where: no sample has"),
    "holdout": ({"holdout": "colour"}, "the cube has no label `colour`"),
    "kind": ({"tokens": "nouns"}, "'nouns' is not a kind of token"),
    "no tokens": ({"tokens": "image"}, "tokens: the training samples have no token of image"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_before_anything_is_written(run: Path, tmp_path: Path, name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(InputError) as error:
        train(run, tmp_path / "saes", **options)
    assert message in str(error.value)
    assert not (tmp_path / "saes").exists()


def test_a_component_that_the_cube_lacks_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="the cube has no `mlp`"):
        train(run, tmp_path / "saes", layers="all", component="mlp")


def test_all_faults_are_listed_together(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(InputError) as error:
        train(run, tmp_path, k=0, lr=-1)
    assert [fault.where for fault in error.value.faults] == ["k", "lr", f"out {tmp_path}"]


def test_nan_is_an_error_before_any_step(run: Path, tmp_path: Path) -> None:
    cube = actkit.open_cube(run).load().copy(deep=True)
    cube = cube.drop_vars("nonfinite", errors="ignore")
    cube.residual[1, 50, 1, 3] = np.nan
    events: list[TrainingProgress] = []
    with pytest.raises(NonfiniteError, match=r"`residual` contains NaN or Inf values at layers \[1\]"):
        train(cube, tmp_path / "saes", layers="0-2", listeners=[events.append])
    assert [(event.state, event.step) for event in events] == [("failed", 0)]


def test_layers_are_trained_on_the_device_asked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[torch.device] = []

    def trainer(settings: Any, layer: int, scale: float, device: torch.device) -> Any:
        devices.append(device)
        return LayerTrainer(settings, layer, scale, torch.device("cpu"))

    monkeypatch.setattr(training_input, "check_device", lambda name: [])
    monkeypatch.setattr(training, "LayerTrainer", trainer)
    train(run, tmp_path / "saes", steps=1, device="cuda:1")
    assert devices == [torch.device("cuda", 1)]
    assert actkit.training_log(tmp_path / "saes").attrs["device"] == "cuda"


def test_few_tokens_are_said_with_what_is_published(run: Path, tmp_path: Path) -> None:
    cube = actkit.open_cube(run).assign_attrs(model="google/gemma-3-1b-it")
    with pytest.warns(UserWarning, match=r"48 features are \d+ for each.*google/gemma-scope-2-1b-it"):
        train(cube, tmp_path / "saes")


def test_published_autoencoders_are_those_of_the_model() -> None:
    assert published_saes("/models/gemma-3-27b-pt", "mlp") == "google/gemma-scope-2-27b-pt"
    assert published_saes("google/gemma-2-2b-it", "residual") == "google/gemma-scope-2b-pt-res"
    assert published_saes("google/gemma-2-27b", "mlp") is None
    assert (
        published_saes("meta-llama/Llama-3.1-8B-Instruct", "attention")
        == "OpenMOSS-Team/Llama3_1-8B-Base-LXA-8x"
    )
    assert published_saes("openai-community/gpt2", "residual") == "jbloom/GPT2-Small-SAEs-Reformatted"
    assert published_saes("HuggingFaceTB/SmolLM2-135M-Instruct", "residual") is None


def held_out_tokens(run: Path, layer: int) -> torch.Tensor:
    """Return all held-out tokens of a layer, found without the training's own code."""
    cube = as_cube(actkit.open_cube(run))
    chosen = np.flatnonzero(held_out(cube, cluster="image_id"))
    clusters = set(cube.image_id.values[chosen].tolist())
    assert not clusters & set(np.delete(cube.image_id.values, chosen).tolist())
    values = cube.residual.sel(layer=layer).isel(sample=chosen).values
    is_content = np.arange(values.shape[1])[None] < cube.n_tokens.values[chosen][:, None]
    is_content[:, 0] = False  # the first token is a special one
    return torch.from_numpy(values[is_content].astype(np.float32))


@pytest.mark.parametrize("layer", [0, 1])
def test_written_weights_are_in_the_units_of_the_cube(run: Path, trained: Path, layer: int) -> None:
    sae = actkit.load_saes(trained)[layer]
    x = held_out_tokens(run, layer)
    features = sae.encode(x)
    error = (sae.decode(features) - x).square().sum()
    fvu = float(error / (x - x.mean(0)).square().sum())
    log = actkit.training_log(trained).sel(layer=layer).isel(step=-1)
    assert fvu == pytest.approx(float(log.fvu), rel=1e-4)
    assert float((features > 0).sum()) / len(x) == pytest.approx(float(log.l0), rel=1e-3)
    assert sae.w_dec.norm(dim=1).numpy() == pytest.approx(1, rel=1e-5)


def test_files_say_where_they_come_from(run: Path, trained: Path) -> None:
    metadata = json.loads((trained / "residual_1" / "cfg.json").read_text())["metadata"]
    cube = actkit.open_cube(run)
    assert metadata["cube_sha256"] == cube.attrs["metadata_sha256"]
    assert (metadata["holdout_cluster"], metadata["holdout_share"]) == ("image_id", 0.1)
    assert metadata["training_tokens"] < int((cube.n_tokens - 1).sum())
    assert (metadata["training_steps"], metadata["n_dead"]) == (60, 0)
    scale = HIDDEN**0.5 / np.linalg.norm(cube.residual.sel(layer=1).values[:, 1:], axis=-1)
    assert metadata["scale"] == pytest.approx(float(np.nanmean(scale)), rel=0.1)


def test_several_layers_are_those_trained_alone(run: Path, trained: Path, tmp_path: Path) -> None:
    train(run, tmp_path / "saes", layers="1", steps=60)
    together, alone = actkit.load_saes(trained)[1], actkit.load_saes(tmp_path / "saes")[1]
    torch.testing.assert_close(together.w_dec, alone.w_dec, rtol=1e-4, atol=1e-5)


def test_the_log_and_the_status_tell_the_end(trained: Path) -> None:
    log = actkit.training_log(trained)
    assert log.fvu.dims == ("layer", "step")
    assert log.layer.values.tolist() == [0, 1]
    assert int(log.step[-1]) == 60
    assert bool((log.fvu.isel(step=-1) < log.fvu.isel(step=0)).all())
    assert log.attrs["holdout_cluster"] == "image_id"
    status = json.loads((trained / "status.json").read_text())
    assert (status["state"], status["step"], status["total_steps"]) == ("done", 60, 60)
    assert "training.json" in {path.name for path in trained.iterdir()}


def test_a_folder_without_a_training_has_no_log(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match="no autoencoders were trained there"):
        actkit.training_log(tmp_path)


def test_top_k_keeps_k_features_of_each_token(run: Path, tmp_path: Path) -> None:
    train(run, tmp_path / "saes", architecture="topk")
    sae = actkit.load_saes(tmp_path / "saes")[1]
    active = (sae.encode(held_out_tokens(run, 1)) > 0).sum(1)
    assert (sae.architecture, int(active.max())) == ("topk", 4)


def test_options_may_be_numbers_of_numpy(run: Path, tmp_path: Path) -> None:
    numbers = {"width": 48, "k": 4, "batch": 64, "steps": 2, "seed": 1}
    train(
        run,
        tmp_path / "saes",
        **{name: np.int64(value) for name, value in numbers.items()},
        lr=np.float32(0.01),
    )
    stored = json.loads((tmp_path / "saes" / "training.json").read_text())["settings"]
    assert {name: stored[name] for name in numbers} == numbers


def test_only_selected_tokens_and_samples_are_used(run: Path, tmp_path: Path) -> None:
    options = {"tokens": actkit.TokenFilter(positions=[-1]), "where": {"language": "arabic"}, "width": 40}
    train(run, tmp_path / "saes", **options)
    assert actkit.training_log(tmp_path / "saes").attrs["n_tokens"] <= 75
    with pytest.raises(InputError, match="tokens: was"):
        train(run, tmp_path / "saes", **{**options, "tokens": actkit.TokenFilter(positions=[-2])})


def test_the_bar_shows_the_measures(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TrainingBar()
    measured = {"loss": 2.0, "fvu": 0.25, "l0": 31.7, "n_dead": 3, "layers": {1: {"fvu": 0.25}}}
    bar(TrainingProgress("running", step=5, total_steps=10, **measured))
    bar(TrainingProgress("done", step=10, total_steps=10, **measured))
    shown = capsys.readouterr().err
    assert "FVU=0.250" in shown
    assert "L0=31.7" in shown


@pytest.mark.parametrize("first", [0, 1, 7, 13, 25, 26, 27, 30])
def test_batches_can_be_left_out_without_changing_the_others(run: Path, first: int) -> None:
    samples = np.setdiff1d(np.arange(150), np.arange(0, 150, 7))
    tokens = LayerTokens(run, layer=[2, 0], samples=samples, batch_size=20, buffer_bytes=16_000, seed=3)
    every = list(tokens)
    assert len(every) == 27
    later = list(tokens.batches(first))
    assert len(later) == max(0, 27 - first)
    for batch, expected in zip(later, every[first:], strict=True):
        assert torch.equal(batch, expected)


def test_tokens_of_chosen_samples_are_those_of_a_selection(run: Path) -> None:
    samples = np.array([3, 4, 9, 77, 149])
    chosen = torch.cat(list(LayerTokens(run, layer=1, samples=samples, shuffle=False)))
    selection: xr.Dataset = actkit.open_cube(run).isel(sample=samples)
    assert torch.equal(chosen, torch.cat(list(LayerTokens(selection, layer=1, shuffle=False))))


def test_weights_and_biases_gets_the_measures_of_each_layer(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    class Tracker:
        def __init__(self, init: Any, summary: Any, metrics_of: Any) -> None:
            sent.append(init)
            self.metrics_of = metrics_of

        def __call__(self, event: TrainingProgress) -> None:
            sent.append(self.metrics_of(event))

        def close(self) -> None:
            sent.append("closed")

    monkeypatch.setattr(training_progress, "Tracker", Tracker)
    train(run, tmp_path / "saes", wandb="project=test,mode=offline")
    init, *_, last, closed = sent
    assert (init["project"], init["name"], init["config"]["k"]) == ("test", "saes", 4)
    assert last["layer_1/fvu"] == pytest.approx(float(actkit.training_log(tmp_path / "saes").fvu[0, -1]))
    assert closed == "closed"
    with pytest.raises(InputError, match=r"wandb\.project"):
        train(run, tmp_path / "other", wandb="project=a/b")


def test_the_command_trains_and_shows_each_layer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "saes",
        "train",
        str(run),
        "--out",
        str(tmp_path / "saes"),
        "--layers",
        "0 2",
        "--width",
        "48",
    ]
    arguments += ["--k", "4", "--batch", "64", "--steps", "10", "--where", "gender=female"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "held out  image_id" in shown
    assert [line.split()[0] for line in shown.split("dead")[1].splitlines()[1:3]] == ["0", "2"]
    assert main([*arguments, "--seed", "1"]) == 1
    assert "seed: was 0, and is now 1" in capsys.readouterr().err
