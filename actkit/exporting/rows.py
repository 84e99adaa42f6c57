"""A layer as a Hugging Face dataset, a row a sample, read from the cube as it is asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .selecting import select, where_labels

if TYPE_CHECKING:
    from datasets import IterableDataset

_SHARD = 64  # samples that are read together


def layer_dataset(
    run: str | Path, *, layer: int, component: str = "residual", where: Mapping[str, str] | None = None
) -> "IterableDataset":
    """Open a layer as a dataset to iterate over; nothing is exported.

    Parameters
    ----------
    run
        Run folder.
    layer
        The block.
    component
        ``residual``, ``attention`` or ``mlp``.
    where
        Label, or ``language``, to the value that samples must have.

    Returns
    -------
    datasets.IterableDataset
        ``sample_id``, ``language``, ``text`` and the labels, as text; ``token_ids``; ``activations``,
        dims ``(token, hidden)``, float32. It has a shard for each 64 samples; workers divide these, and
        ``shuffle`` changes their order.

    Raises
    ------
    InputError, MissingError
        Where the cube lacks what is asked for.

    Examples
    --------
    >>> from actkit.testing import write_cube
    >>> rows = layer_dataset(write_cube(n_samples=8, hidden=16), layer=1, where={"gender": "female"})
    >>> len(next(iter(rows))["activations"][0])
    16
    """
    from datasets import Features, IterableDataset, List, Value

    chosen = select(run, f"{component}_{layer}", None)
    rows = where_labels(chosen.cube, where)
    features = {name: Value("string") for name in chosen.row_names}
    features["token_ids"] = List(Value("int32"))
    features["activations"] = List(List(Value("float32"), length=chosen.hidden))
    # a list is what the library divides between workers
    shards = [rows[start : start + _SHARD].tolist() for start in range(0, len(rows), _SHARD)]
    kept = {"run": str(run), "layer": layer, "component": component, "shards": shards}
    return IterableDataset.from_generator(_rows, features=Features(features), gen_kwargs=kept)


def _rows(run: str, layer: int, component: str, shards: list[list[int]]) -> Iterator[dict[str, Any]]:
    chosen = select(run, f"{component}_{layer}", None)
    for shard in shards:
        for block in chosen.blocks(layer, np.array(shard)):
            columns = {name: chosen.column(name, block.rows) for name in chosen.row_names}
            for place, held in enumerate(block.held):
                row: dict[str, Any] = {name: values[place] for name, values in columns.items()}
                row["token_ids"] = block.token_ids[place, held]
                row["activations"] = block.values[place, held]
                yield row
