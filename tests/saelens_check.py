"""Exchange files with plain SAELens, in an environment of its own: `make test-saelens`.

With a folder as its argument, write there the files of SAELens that tests/features/test_sae_loader.py
reads.
"""

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sae_lens
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import save_file

from actkit.features.sae import Sae
from actkit.features.sae_files import layer_folder, write_manifest, write_sae
from actkit.features.sae_loader import load_saes, read_sae

HIDDEN, FEATURES, K = 6, 12, 3
TOLERANCE = 1e-5
HOOKS = {"residual": "hook_resid_post", "attention": "hook_attn_out", "mlp": "hook_mlp_out"}


def activations(n: int = 200, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(seed)) + 1


def randomize(sae: torch.nn.Module) -> None:
    """Give every parameter values that matter, as SAELens starts with zero biases and equal norms."""
    rng = torch.Generator().manual_seed(1)
    for name, parameter in sae.named_parameters():
        values = torch.randn(parameter.shape, generator=rng)
        parameter.data = values.abs() if "threshold" in name else values * (0.3 if parameter.ndim < 2 else 1)


def small_config(cls: type, **options: object) -> object:
    metadata = sae_lens.saes.sae.SAEMetadata(model_name="tiny", hook_name=f"blocks.2.{HOOKS['residual']}")
    return cls(d_in=HIDDEN, d_sae=FEATURES, metadata=metadata, **options)


def compare(name: str, ours: Sae, theirs: sae_lens.SAE) -> None:
    x = activations()
    with torch.no_grad():
        features, outputs = theirs.encode(x), theirs(x)
    features = features.to_dense() if features.is_sparse else features
    assert torch.equal(ours.encode(x) != 0, features != 0), f"{name}: other features are active"
    pairs = {"features": (ours.encode(x), features), "outputs": (ours.decode(ours.encode(x)), outputs)}
    errors = {what: float((a - b).norm() / b.norm()) for what, (a, b) in pairs.items()}
    assert max(errors.values()) < TOLERANCE, f"{name}: {errors}"
    l0 = (features != 0).sum(-1).float().mean()
    print(f"{name}: L0 {l0:.1f}, features {errors['features']:.0e}, outputs {errors['outputs']:.0e}")


def our_sae(architecture: str, component: str, layer: int) -> Sae:
    rng = torch.Generator().manual_seed(layer)
    w_dec = torch.randn(FEATURES, HIDDEN, generator=rng)
    thresholds = {"batchtopk": torch.full((FEATURES,), 0.7), "jumprelu": torch.linspace(0, 2, FEATURES)}
    return Sae(
        layer,
        component,  # type: ignore[arg-type]
        architecture,  # type: ignore[arg-type]
        w_enc=w_dec.T + 0.1,
        b_enc=torch.randn(FEATURES, generator=rng),
        w_dec=w_dec / w_dec.norm(dim=1, keepdim=True),
        b_dec=torch.randn(HIDDEN, generator=rng),
        threshold=thresholds.get(architecture),
        k=K if architecture == "topk" else None,
        subtract_b_dec=component != "mlp",
        metadata={"model_name": "tiny", "hook_name": f"blocks.{layer}.{HOOKS[component]}"},
    )


def check_ours(folder: Path) -> None:
    """SAELens loads every file that we write."""
    for component in HOOKS:
        for layer, architecture in enumerate(("standard", "topk", "batchtopk", "jumprelu")):
            sae = our_sae(architecture, component, layer)
            path = folder / component / layer_folder(layer, sae.component)
            write_sae(path, sae)
            theirs = sae_lens.SAE.load_from_disk(path)
            assert theirs.cfg.metadata.hook_name == f"blocks.{layer}.{HOOKS[component]}"
            assert theirs.cfg.metadata.component == component
            compare(f"actkit {component} {architecture}", sae, theirs)
        write_manifest(folder / component)


def trained_batchtopk(**options: object) -> sae_lens.TrainingSAE:
    cfg = small_config(sae_lens.BatchTopKTrainingSAEConfig, k=K, decoder_init_norm=0.5, **options)
    trainer_config = SAETrainerConfig(
        total_training_samples=20 * 64,
        train_batch_size_samples=64,
        lr=1e-2,
        lr_end=1e-3,
        n_batches_for_norm_estimate=5,
        logger=LoggingConfig(log_to_wandb=False),
    )
    batches = (activations(64, seed) for seed in range(10**6))
    torch.manual_seed(0)
    sae = sae_lens.BatchTopKTrainingSAE(cfg)
    return sae_lens.SAETrainer(trainer_config, sae, batches).fit()


def saved_by_saelens() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Yield names of autoencoders, and functions that save them."""
    for name, options in {
        "batchtopk": {"rescale_acts_by_decoder_norm": False},
        "batchtopk_rescaled": {},
        "batchtopk_scaled": {"normalize_activations": "expected_average_only_in"},
    }.items():
        yield name, trained_batchtopk(**options).save_inference_model
    inference = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
        "standard_no_b_dec": (
            sae_lens.StandardSAE,
            sae_lens.StandardSAEConfig,
            {"apply_b_dec_to_input": False},
        ),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": K}),
        "topk_rescaled": (
            sae_lens.TopKSAE,
            sae_lens.TopKSAEConfig,
            {"k": K, "rescale_acts_by_decoder_norm": True},
        ),
    }
    for name, (cls, cfg_cls, options) in inference.items():
        sae = cls(small_config(cfg_cls, **options))
        randomize(sae)
        yield name, sae.save_model


def check_theirs(folder: Path) -> None:
    """We read what SAELens saves."""
    for name, save in saved_by_saelens():
        save(folder / name)
        theirs = sae_lens.SAE.load_from_disk(folder / name)
        compare(f"SAELens {name}", read_sae(folder / name), theirs)
    sae = trained_batchtopk()  # as saved during training, which `load_from_disk` refuses
    sae.save_model(folder / "checkpoint")
    sae.save_inference_model(folder / "inference")
    theirs = sae_lens.SAE.load_from_disk(folder / "inference")
    compare("SAELens checkpoint", read_sae(folder / "checkpoint"), theirs)


def check_published(folder: Path) -> None:
    """We read the layouts of others as SAELens does."""
    sae = our_sae("jumprelu", "residual", 20)
    tensors = {"W_enc": sae.w_enc, "W_dec": sae.w_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    tensors |= {"threshold": sae.threshold - 0.5}

    def converter(load: Callable, repo: str, name: str) -> Callable:
        def convert(_path: object, device: str, cfg_overrides: object = None) -> tuple:
            sizes = {"d_in": HIDDEN, "d_sae": FEATURES}
            return load(repo, name, device=device, cfg_overrides=sizes)[:2]

        return convert

    def download(repo_id: str, filename: str, subfolder: str = "", **_options: object) -> str:
        return str(folder / repo_id / subfolder / filename)

    loaders.hf_hub_download = download
    loaders.get_safetensors_tensor_shapes = lambda *_: {
        "w_enc": [HIDDEN, FEATURES],
        "w_dec": [FEATURES, HIDDEN],
    }

    repo, name = "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"
    (folder / repo / name).mkdir(parents=True)
    np.savez(folder / repo / name / "params.npz", **{key: value.numpy() for key, value in tensors.items()})
    theirs = sae_lens.SAE.load_from_disk(
        "", converter=converter(loaders.gemma_2_sae_huggingface_loader, repo, name)
    )
    ours = load_saes(folder / repo)
    compare("Gemma Scope 1", ours[20], theirs)
    assert ours[20].metadata["model_name"] == f"google/{theirs.cfg.metadata.model_name}"

    repo, name = "google/gemma-scope-2-1b-it", "resid_post_all/layer_20_width_16k_l0_small"
    (folder / repo / name).mkdir(parents=True)
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-1b-it",
        "hf_hook_point_in": "model.layers.20.output",
        "hf_hook_point_out": "model.layers.20.output",
    }
    (folder / repo / name / "config.json").write_text(json.dumps(config))
    lower = {key.replace("W_", "w_"): value.contiguous() for key, value in tensors.items()}
    save_file(lower, folder / repo / name / "params.safetensors")
    theirs = sae_lens.SAE.load_from_disk(
        "", converter=converter(loaders.gemma_3_sae_huggingface_loader, repo, name)
    )
    compare("Gemma Scope 2", load_saes(folder / repo)[20], theirs)


def write_fixtures(folder: Path) -> None:
    """Write small files of SAELens, with activations and what SAELens computes from them."""
    shutil.rmtree(folder, ignore_errors=True)
    x = activations(20)
    expected = {"activations": x.numpy()}
    for name, save in saved_by_saelens():
        save(folder / name)
        theirs = sae_lens.SAE.load_from_disk(folder / name)
        with torch.no_grad():
            expected |= {f"{name}_features": theirs.encode(x).numpy(), f"{name}_outputs": theirs(x).numpy()}
    np.savez_compressed(folder / "expected.npz", **expected)


def main() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    print(f"SAELens {sae_lens.__version__}, torch {torch.__version__}")
    if len(sys.argv) > 1:
        write_fixtures(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        check_ours(Path(folder) / "actkit")
        check_theirs(Path(folder) / "saelens")
        check_published(Path(folder) / "published")


if __name__ == "__main__":
    main()
