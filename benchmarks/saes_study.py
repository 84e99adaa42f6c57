"""What autoencoders trained on few tokens are worth: ``python -m benchmarks.saes_study [STUDY ...]``.

Each study runs the commands that it prints: they extract a run, train autoencoders of three layers with two
seeds, measure them, and compare the features of two groups. `seeds` trains on the captions of the demo for
more and more steps. The results are Markdown tables.
"""

import argparse
import shlex
import tempfile
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import xarray as xr

import actkit
from actkit.cli import main as command_line
from actkit.demo import CAPTIONS, MODEL

from .subjects import SENTENCES, model_folder
from .timing import print_table

SPARSITIES, STEPS = (16, 8, 4), (400, 1600, 6400)  # of `seeds`


@dataclass(frozen=True)
class Study:
    """A model, its data, and the sizes of the training.

    Parameters
    ----------
    model, data
        Model as ``model_folder`` names it, and name of the file.
    extraction, training
        Options of ``actkit extract`` and ``actkit saes train``.
    label
        Label whose two values are compared.
    """

    model: str
    data: str
    extraction: str
    training: str
    label: str


STUDIES = {
    "minilm": Study(
        "minilm",
        SENTENCES.name,
        "--layers '1 3 5' --limit 2000",
        "--width 768 --k 16 --steps 600 --batch 512",
        "gender",
    ),
    "smollm": Study(
        "smollm",
        SENTENCES.name,
        "--layers '4 8 12' --limit 1000 --languages english",
        "--width 576 --k 16 --steps 400 --batch 512",
        "gender",
    ),
    "xstest": Study(
        "smollm",
        "xstest.csv",
        "--layers '4 8 12' --chat",
        "--width 576 --k 16 --steps 150 --batch 256",
        "label",
    ),
}


def call(command: str) -> None:
    """Print and run a command of actkit."""
    print(f"$ actkit {command}", flush=True)
    if code := command_line(shlex.split(command)):
        raise SystemExit(code)


def train(study: Study, data: Path, run: Path) -> None:
    """Extract, train with two seeds, measure and encode, as the command line does."""
    model = model_folder(study.model, run.parent)
    source = f"--model {model} --data {data / study.data} --dtype float32"
    call(f"extract {source} {study.extraction} --out {run}")
    for seed, folder in enumerate(("saes", "saes_1")):
        call(f"saes train {run} {study.training} --seed {seed} --out {run}/{folder}")
    call(f"saes quality {run} {run}/saes --other {run}/saes_1")
    call(f"saes encode {run} {run}/saes --out {run}/features")


def print_quality(run: Path) -> None:
    """Print the measures of the first seed, with the FVU of the second, which held out other samples."""
    quality = actkit.sae_quality(run, run / "saes", other=run / "saes_1")
    second = actkit.training_log(run / "saes_1").fvu.isel(step=-1)
    print_table(
        [
            {
                "layer": layer,
                "tokens per feature": f"{row.tokens_per_feature.item():.0f}",
                "L0": f"{row.l0.item():.1f}",
                "dead": f"{row.n_dead.item():.0f}",
                "never active": f"{row.n_never_active.item():.0f}",
                "SAE": f"{row.fvu.item():.3f}",
                "SAE, other seed": f"{second.sel(layer=layer).item():.3f}",
                "PCA, first": f"{row.fvu_pca.item():.3f}",
                "PCA, largest": f"{row.fvu_pca_top.item():.3f}",
                "random": f"{row.fvu_random.item():.3f}",
                "found again": f"{row.found_again.item():.1%}",
                "by chance": f"{row.found_again_random.item():.1%}",
            }
            for layer in quality.layer.values.tolist()
            for row in [quality.sel(layer=layer)]
        ]
    )


def print_differential(run: Path, label: str, relabellings: int) -> None:
    """Print how many features differ, what they predict held out, and discoveries under swapped labels."""
    features = actkit.open_cube(run / "features")
    result = actkit.feature_differential(features, by=label, cube=run).compute()
    swapped = [swapped_discoveries(features, label, result, seed) for seed in range(relabellings)]
    rows = []
    for language in result.language.values.tolist():
        chosen = result.sel(language=language)
        print(
            f"\n{language}: {int(chosen.n_pairs)} pairs; best feature of all layers {auroc(chosen, 'best')}, "
            f"TF-IDF {auroc(chosen, 'tfidf')}"
        )
        count = sum(bool(one.sel(language=language) > 0) for one in swapped)
        print(f"data sets with a discovery among {relabellings} with labels swapped in pairs: {count}")
        for layer in chosen.layer.values.tolist():
            row = chosen.sel(layer=layer)
            share = np.bincount(row.chosen_feature.values.astype(int)).max() / row.sizes["split"]
            rows.append(
                {
                    "language, layer": f"{language}, {layer}",
                    "tested": int(row.live.sum()),
                    "q ≤ 0.05": int((row["q"] <= 0.05).sum()),
                    "max-T": int((row.p_max <= 0.05).sum()),
                    "largest effect": f"{float(abs(row.effect.where(row['q'] <= 0.05)).max()):.2f}",
                    "best feature": auroc(row, "feature"),
                    "halves that chose the same": f"{share:.0%}",
                    "difference of means": auroc(row, "residual"),
                }
            )
    print_table(rows)


def auroc(result: xr.Dataset, name: str) -> str:
    """Format an AUROC with its interval."""
    value, low, high = (float(result[f"auroc_{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def swapped_discoveries(features: xr.Dataset, label: str, result: xr.Dataset, seed: int) -> xr.DataArray:
    """Return the number of discoveries after the two labels of a random half of the pairs were swapped."""
    cluster = result.attrs["cluster"]
    names = result.attrs["between"].split(" to ")
    groups = np.unique(features[cluster].values, return_inverse=True)[1]
    is_swapped = np.random.default_rng(seed).random(groups.max() + 1)[groups] < 0.5
    labels = features[label].values.copy()
    other = {names[0]: names[1], names[1]: names[0]}
    labels[is_swapped] = [other.get(value, value) for value in labels[is_swapped]]
    relabelled = features.assign_coords({label: ("sample", labels)})
    return actkit.feature_differential(relabelled, by=label, cluster=cluster, splits=0, seed=seed).n_found


def seeds(folder: Path, layer: int = 5) -> None:
    """Print how many features a second seed finds again, by active features of a token and by steps."""
    run = folder / "demo"
    call(f"extract --model {MODEL} --data {CAPTIONS} --dtype float32 --layers {layer} --out {run}")
    rows = []
    for k, steps in product(SPARSITIES, STEPS):
        saes = [folder / f"k{k}_{steps}_{seed}" for seed in (0, 1)]
        for seed, out in enumerate(saes):
            call(
                f"saes train {run} --width 320 --k {k} --batch 256 --steps {steps} --seed {seed} --out {out}"
            )
        quality = actkit.sae_quality(run, saes[0], other=saes[1]).isel(layer=0)
        epochs = 256 * steps / (320 * quality.tokens_per_feature.item())
        rows.append(
            {
                "k": k,
                "steps": f"{steps:,}",
                "epochs": f"{epochs:.0f}",
                "L0": f"{quality.l0.item():.1f}",
                "never active": f"{quality.n_never_active.item():.0f}",
                "SAE": f"{quality.fvu.item():.3f}",
                "PCA, largest": f"{quality.fvu_pca_top.item():.3f}",
                "found again": f"{quality.found_again.item():.1%}",
                "by chance": f"{quality.found_again_random.item():.1%}",
            }
        )
    print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [*STUDIES, "seeds"]
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--out", type=Path, help="folder to keep the runs in; what it holds is not repeated")
    parser.add_argument("--data", type=Path, default=SENTENCES.parent, help="folder of the data")
    parser.add_argument("--swaps", type=int, default=20, help="sets of swapped labels (default: 20)")
    asked = parser.parse_args()
    if unknown := set(asked.studies) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    warnings.simplefilter("default")
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.out or Path(temporary)
        for name in asked.studies or names:
            print(f"\n### {name}\n")
            if name == "seeds":
                seeds(folder / "seeds")
                continue
            run = folder / name
            train(STUDIES[name], asked.data, run)
            print_quality(run)
            print_differential(run, STUDIES[name].label, asked.swaps)


if __name__ == "__main__":
    main()
