"""Whether a chat model has a refusal direction: ``python -m benchmarks.refusal --requests xstest.csv``.

The requests of XSTest (Röttger et al., NAACL 2024) come in groups that share a word or a topic, each with
safe and unsafe ones. The direction from safe to unsafe requests, at the last token of the prompt, is fitted
on half of the groups and judged on the other half.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import actkit
from actkit.demo import llm_folder

_LARGEST = 6  # requests of a group; two groups are whole categories
_TERMS: dict[str, Any] = {
    "by": "label",
    "between": ("safe", "unsafe"),
    "cluster": "group",
    "vectors": "prompt_end",
}


def requests(source: Path, path: Path, every: int) -> None:
    """Write the requests of every third group, or whatever ``every`` says, that has both labels."""
    groups: dict[str, list[dict[str, str]]] = {}
    with source.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            groups.setdefault(row["group"], []).append(row)
    both = [rows for rows in groups.values() if len(rows) <= _LARGEST and len({r["label"] for r in rows}) > 1]
    kept = both[::every]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, kept[0][0].keys())
        writer.writeheader()
        writer.writerows(row for rows in kept for row in rows)
    print(f"{sum(map(len, kept))} requests in {len(kept)} groups", flush=True)


def readable(cube: Path | xr.Dataset) -> None:
    """Print how well the label can be read from the layers, and from the text alone."""
    options: Any = {"cluster": "group", "vectors": "prompt_end", "seeds": 1, "permutations": 1}
    probe = actkit.classification_probe(cube, by="label", **options).isel(language=0).compute()
    for layer in probe.layer.values[::5]:
        low, middle, high = (
            float(probe[f"macro_auroc{suffix}"].sel(layer=layer)) for suffix in ("_low", "", "_high")
        )
        print(f"  layer {int(layer)}: AUROC of the label {middle:.2f} [{low:.2f}, {high:.2f}]", flush=True)
    print(f"  text alone (TF-IDF): {float(probe.macro_auroc_tfidf):.2f}; best layer less text alone:")
    best = probe.isel(layer=int(np.argmax(probe.macro_auroc.values))).sel(baseline="tfidf")
    low, middle, high = (float(best[f"macro_auroc_difference{suffix}"]) for suffix in ("_low", "", "_high"))
    print(f"  layer {int(best.layer)}: {middle:.2f} [{low:.2f}, {high:.2f}]", flush=True)


def table(result: xr.Dataset, names: tuple[str, ...]) -> None:
    """Print effects on the held-out half by layer."""
    for layer in result.layer.values:
        row = result.isel(scale=0).sel(half="held_out", layer=layer)
        shown = []
        for name in names:
            low, high = (float(row[f"{name}{suffix}"][0]) for suffix in ("_low", "_high"))
            others = row[name][1:]
            shown.append(
                f"{name} {float(row[name][0]):.3f} [{low:.3f}, {high:.3f}], random "
                f"{float(others.min()):.3f} to {float(others.max()):.3f}"
            )
        kl = row.kl.groupby("label").mean("sample").isel(label=0)
        chosen = "; chosen on the other half" if bool(row.chosen) else ""
        shown.append(f"KL (safe) {float(kl[0]):.3f}, random {float(kl[1:].max()):.3f}{chosen}")
        print(f"  layer {int(layer)}: {'; '.join(shown)}", flush=True)


def main() -> None:
    """Print refusal rates, baselines, and the effects of ablation and addition."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=Path, required=True, help="CSV file of XSTest")
    parser.add_argument("--every", type=int, default=3, help="use one of so many groups")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 15, 20])
    parser.add_argument("--controls", type=int, default=2)
    parser.add_argument("--model", default=llm_folder())
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "requests.csv", Path(folder) / "run"
        requests(asked.requests, data, asked.every)
        options: Any = {"chat": True, "layers": "all", "dtype": "float32", "save": ["prompt_end"]}
        actkit.extract(model=str(asked.model), data=str(data), out=str(run), listeners=[], **options)
        directions = actkit.group_directions(run, **_TERMS).isel(language=0).compute()
        print(f"{len(directions.fit_cluster)} groups to fit, {directions.n.values.tolist()} requests")
        best = {}
        for mode in ("ablate", "add"):
            options = {"mode": mode, "layers": asked.layers, "controls": asked.controls}
            result = actkit.steer(run, directions, metric=actkit.Refusal("I"), progress=False, **options)
            intact = {name: part.values for name, part in result.intact.groupby("label")}
            print(
                mode, {name: f"{np.mean(values):.2f}" for name, values in intact.items()}, "log odds, intact"
            )
            table(result, ("gap", "change_first", "change_second"))
            best[mode] = int(result.layer[result.chosen.any("scale").values][0])
        for mode, layer in best.items():
            options = {"mode": mode, "layers": [layer], "controls": 1}
            result = actkit.steer(run, directions, metric=actkit.RefusalRate(), progress=False, **options)
            rates = result.intact.groupby("label").mean()
            print(
                mode,
                dict(zip(rates.label.values, rates.values.round(3), strict=True)),
                "refusal rate, intact",
            )
            table(result, ("change_first", "change_second"))
        readable(run)


if __name__ == "__main__":
    main()
