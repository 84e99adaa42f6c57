"""A layer as a Hugging Face dataset with one row per sample, read lazily from the cube."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schema import Component
from ..store.layout import cube_path
from .cube_blocks import select, where_labels

if TYPE_CHECKING:
    from datasets import IterableDataset

_SHARD = 64  # samples that are read together


def layer_dataset(
    run: str | Path, *, layer: int, component: Component = "residual", where: Mapping[str, Any] | None = None
) -> "IterableDataset":
    """Open a layer as an iterable dataset, without exporting files.

    Parameters
    ----------
    run
        Run folder.
    layer
        Layer index.
    component
        ``residual``, ``attention`` or ``mlp``.
    where
        Required value of each label given, or of ``language``.

    Returns
    -------
    datasets.IterableDataset
        ``sample_id``, ``language``, ``text`` and the labels as text, empty if missing; ``token_ids``; and
        ``activations``, dims ``(token, hidden)``, float32. There is one shard per 64 samples; workers divide
        the shards, and ``shuffle`` changes their order.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data.

    Examples
    --------
    >>> from actkit.testing import write_cube
    >>> rows = layer_dataset(write_cube(n_samples=8, hidden=16), layer=1, where={"gender": "female"})
    >>> len(next(iter(rows))["activations"][0])
    16
    """
    from datasets import Features, IterableDataset, List, Value

    cube_path(run)  # refuses a Dataset: the library would hash all its values, and workers need a path
    chosen = select(run, f"{component}_{layer}", None)
    rows = where_labels(chosen.cube, where)
    features = {name: Value("string") for name in chosen.column_names}
    features["token_ids"] = List(Value("int32"))
    features["activations"] = List(List(Value("float32"), length=chosen.hidden))
    # the library divides lists between workers
    shards = [rows[start : start + _SHARD].tolist() for start in range(0, len(rows), _SHARD)]
    arguments = {"run": str(run), "layer": layer, "component": component, "shards": shards}
    return IterableDataset.from_generator(_rows, features=Features(features), gen_kwargs=arguments)


def _rows(run: str, layer: int, component: str, shards: list[list[int]]) -> Iterator[dict[str, Any]]:
    chosen = select(run, f"{component}_{layer}", None)
    for shard in shards:
        for block in chosen.blocks(layer, np.array(shard)):
            names = zip(chosen.column_names, chosen.row_names, strict=True)
            columns = {column_name: chosen.column(name, block.rows) for column_name, name in names}
            for index, is_token in enumerate(block.is_token):
                row: dict[str, Any] = {name: values[index] for name, values in columns.items()}
                row["token_ids"] = block.token_ids[index, is_token]
                row["activations"] = block.values[index, is_token]
                yield row
