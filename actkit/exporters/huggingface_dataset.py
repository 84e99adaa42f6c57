"""A layer as a Hugging Face dataset, a row a sample, read from the cube as it is asked for."""

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

    cube_path(run)  # a cube is refused: the library hashes what it is given, and workers open it again
    chosen = select(run, f"{component}_{layer}", None)
    rows = where_labels(chosen.cube, where)
    features = {name: Value("string") for name in chosen.column_names}
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
            names = zip(chosen.column_names, chosen.row_names, strict=True)
            columns = {shown: chosen.column(name, block.rows) for shown, name in names}
            for place, held in enumerate(block.held):
                row: dict[str, Any] = {name: values[place] for name, values in columns.items()}
                row["token_ids"] = block.token_ids[place, held]
                row["activations"] = block.values[place, held]
                yield row
