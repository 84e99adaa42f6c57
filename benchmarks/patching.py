"""Cost of a patching map relative to the forward passes that it needs: ``python -m benchmarks.patching``.

SmolLM2 in float32: the residual stream at every layer and token of one pair of twins, from the twin and from
an unrelated prompt. The reference is the bare model on the same batches, as often.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers as tf

import actkit

from .subjects import model_folder

_SENTENCE = "{} is an engineer from a small town near the coast who wrote in a letter last week that"
_OTHER = "{} is a teacher from a large city near the lake who wrote in a book last year that"


def twins(path: Path) -> None:
    """Write two pairs of twins; the second is the unrelated prompt of the first."""
    lines = [
        f'"{sentence.format(word)}",{gender},{scene}'
        for scene, sentence in enumerate((_SENTENCE, _OTHER))
        for word, gender in (("He", "male"), ("She", "female"))
    ]
    path.write_text("text,gender,scene\n" + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Print process times of the map and of the bare passes, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--layers", type=int, nargs="+", default=None)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.model or model_folder("smollm", Path(temporary))
        data, run = Path(temporary) / "twins.csv", Path(temporary) / "run"
        twins(data)
        options: Any = {"layers": [0], "dtype": "float32", "listeners": []}
        actkit.extract(model=str(folder), data=str(data), out=str(run), **options)
        cube = actkit.open_cube(run)
        model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        n_layers = len(asked.layers or range(model.config.num_hidden_layers))
        maps, bare = [], []
        for _ in range(asked.rounds):
            start = time.process_time()
            result = actkit.patch(
                cube,
                metric=actkit.LogitDifference(" he", " she"),
                paired_by="scene",
                by="gender",
                between=("female", "male"),
                layers=asked.layers,
                progress=False,
            )
            maps.append(time.process_time() - start)
            ids = [
                torch.from_numpy(row[:length].astype("int64"))
                for row, length in zip(cube.token_id.values, cube.n_tokens.values, strict=True)
            ]
            counts = result.value.notnull().sum(["source", "component", "token"]).isel(layer=0).values
            rows = dict(zip(cube.sample_id.values.tolist(), ids, strict=True))
            start = time.process_time()
            with torch.inference_mode():
                for name, count in zip(result.sample_id.values.tolist(), counts.tolist(), strict=True):
                    batch = rows[name].expand(count, -1)
                    for _layer in range(n_layers):
                        model(input_ids=batch, use_cache=False, logits_to_keep=1)
            bare.append(time.process_time() - start)
            lengths = [len(rows[name]) for name in result.sample_id.values.tolist()]
            print(f"{n_layers} layers, tokens {lengths}: map {maps[-1]:.1f} s, bare {bare[-1]:.1f} s (CPU)")
    print(f"ratio {statistics.median(maps) / statistics.median(bare):.2f}")


if __name__ == "__main__":
    main()
