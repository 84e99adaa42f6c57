"""What the direction between two groups does to the bundled model: ``python -m benchmarks.steering``.

English captions of twins are cut before a pronoun, " his" or " her", that an earlier word decides. The
direction between female and male prompts is fitted on half of the scenes and judged on the other half.
"""

import argparse
import csv
import re
import tempfile
from pathlib import Path
from typing import Any

import xarray as xr

import actkit
from actkit.demo import CAPTIONS, MODEL

_CUT = re.compile(r"^(.*\b(?:[Hh]e|[Ss]he|man|woman|himself|herself|boy|girl)\b.*?) (?:his|her)\b")


def twins(path: Path) -> int:
    """Write the cut captions of scenes of which both twins can be cut; return the number of scenes."""
    scenes: dict[str, dict[str, dict[str, str]]] = {}
    with Path(CAPTIONS).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["language"] == "english" and (match := _CUT.match(row["text"])):
                scenes.setdefault(row["scene"], {})[row["gender"]] = {**row, "text": match[1]}
    pairs = [pair for pair in scenes.values() if len(pair) == 2]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, pairs[0]["male"].keys())
        writer.writeheader()
        writer.writerows(row for pair in pairs for row in pair.values())
    return len(pairs)


def table(result: xr.Dataset, name: str) -> None:
    """Print an effect on the held-out half by layer."""
    held_out = result.isel(scale=0).sel(half="held_out")
    for layer in held_out.layer.values:
        row = held_out.sel(layer=layer)
        low, high = (float(row[f"{name}{suffix}"][0]) for suffix in ("_low", "_high"))
        controls = row[name][1:]
        chosen = "  chosen on the other half" if bool(row.chosen) else ""
        print(
            f"  layer {int(layer)}: {float(row[name][0]):6.2f} [{low:.2f}, {high:.2f}]   random "
            f"{float(controls.min()):.2f} to {float(controls.max()):.2f}   "
            f"KL {float(row.kl[0].mean()):.3f}{chosen}"
        )


def main() -> None:
    """Print the effects of ablation, addition and clamping on the gap between the twins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--controls", type=int, default=2)
    parser.add_argument("--data", type=Path, help="only write the prompts to this CSV file")
    asked = parser.parse_args()
    if asked.data:
        print(f"{twins(asked.data)} scenes")
        return
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "twins.csv", Path(folder) / "run"
        print(f"{twins(data)} scenes")
        options: Any = {"layers": "all", "dtype": "float32", "listeners": []}
        actkit.extract(model=str(MODEL), data=str(data), out=str(run), **options)
        directions = actkit.group_directions(run, by="gender", between=("female", "male"), vectors="last")
        for mode in ("ablate", "add", "clamp"):
            result = actkit.steer(
                run,
                directions.sel(language="english"),
                metric=actkit.LogitDifference(" his", " her"),
                mode=mode,
                layers=asked.layers,
                controls=asked.controls,
            )
            gap = float((result.gap / result.remaining).sel(half="held_out").isel(layer=0, scale=0)[0])
            name = "remaining" if mode == "ablate" else "change_first"
            shown = "share of it that remains" if mode == "ablate" else "change in female prompts"
            print(f"{mode}: intact gap {gap:.2f}; {shown}")
            table(result, name)


if __name__ == "__main__":
    main()
