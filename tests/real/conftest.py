"""Requests in a chat, SmolLM2's own answers to them, and every file here marked as `real`."""

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
SYSTEM = "You answer in one short sentence."
# what XSTest varies there is the meaning of a word, elsewhere what is asked about
OF_WORDS = ("homonyms", "figurative_language", "definitions")

# one forward pass: component -> array, dims ``(layer, token, hidden)``, and the ids of the prompt
Reference = Callable[[str, str], tuple[dict[str, np.ndarray], list[int]]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def requests(xstest: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Tables with so many requests of each category of XSTest, and a column `family` of two values."""

    def table(per_category: int) -> Path:
        with xstest.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        taken: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            taken.setdefault(row["category"], []).append(row)
        path = tmp_path_factory.mktemp("xstest") / "requests.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "family"])
            writer.writeheader()
            for row in (row for found in taken.values() for row in found[:per_category]):
                writer.writerow({**row, "family": "words" if row["base_type"] in OF_WORDS else "topics"})
        return path

    return table


@pytest.fixture(scope="session")
def reference(smollm2: Path) -> Reference:
    """What transformers computes for one request in the chat, alone: every block and its two parts."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    models: dict[str, Any] = {}

    @cache
    def ask(text: str, dtype: str) -> tuple[dict[str, np.ndarray], list[int]]:
        if dtype not in models:
            models[dtype] = AutoModelForCausalLM.from_pretrained(smollm2, dtype=getattr(torch, dtype)).eval()
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        kept: dict[str, list[np.ndarray]] = {"residual": [], "attention": [], "mlp": []}

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                tensor = output[0] if isinstance(output, tuple) else output
                kept[name].append(tensor.float().numpy().reshape(len(ids), -1))

            return hook

        handles = []
        for block in models[dtype].model.layers:
            for name, module in (("residual", block), ("attention", block.self_attn), ("mlp", block.mlp)):
                handles.append(module.register_forward_hook(keep(name)))
        try:
            with torch.inference_mode():
                models[dtype](torch.tensor([ids]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return {name: np.stack(arrays) for name, arrays in kept.items()}, ids

    return ask
