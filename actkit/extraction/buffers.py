"""The arrays that hold a window while it is computed: samples in the order in which they come, no pads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..planning import Plan
from ..schema import OF_RESIDUAL, VARIABLES, VISION
from ..store.ragged import Ragged
from .packing import Packing
from .prompts.encoding import Prompt
from .selection import Rules
from .transfer import Mark, Transfer, allocate

_BY_SAMPLE = ("pooled", "last")


def counted(kind: str, component: str) -> str:
    """Return the name under which something is counted in what a component gives."""
    return f"{component}:{kind}"


@dataclass(frozen=True)
class Place:
    """Where a batch lies in a window: its first position, and its first sample."""

    position: int
    slot: int


class _Group:
    """The arrays of the cube itself, or of the vision tower."""

    def __init__(self, plan: Plan, name: str, variables: Sequence[str]) -> None:
        prefix = f"{name}/" if name else ""
        own = [VARIABLES[variable] for variable in variables if VARIABLES[variable].group == name]
        shape = plan.vision if name else plan.shape
        assert shape is not None
        self.variables = {variable.name.removeprefix(prefix): variable for variable in own}
        self.layers, self.hidden, self.tokens = shape.layer, shape.hidden, shape.token
        self.capacity = max(
            len(plan.samples_of(window)) * shape.token if name else plan.stored_in(window)
            for window in range(plan.n_windows)
        )
        self.samples = min(plan.window, plan.shape.sample)
        self.starts, self.lengths, self.slots = (np.zeros(self.samples, dtype=np.int64) for _ in range(3))
        self.tensors: dict[str, torch.Tensor] = {}
        self.positions = self.taken = 0

    def shape_of(self, name: str, rows: int) -> tuple[int, ...]:
        if name in _BY_SAMPLE:
            return rows, self.samples, self.hidden
        if ":" in name:
            return rows, self.samples
        return (rows, self.capacity) if name == "norm" else (rows, self.capacity, self.hidden)


class WindowBuffer:
    """The arrays of one window, allocated once and used for every other window.

    Parameters
    ----------
    plan
        Its shape and windows give the sizes.
    variables
        Names of the variables that are written by window.
    rules
        Which layers are kept of each component.
    transfer
        Brings the values.
    pinned
        Whether they come from CUDA.
    """

    def __init__(
        self, plan: Plan, variables: Sequence[str], rules: Rules, transfer: Transfer, *, pinned: bool
    ) -> None:
        self._groups = {
            group: _Group(plan, group, variables)
            for group in dict.fromkeys(VARIABLES[name].group for name in variables)
        }
        self._axis = rules.axis
        self._layers = rules.layers
        self._transfer, self._pinned = transfer, pinned
        self._mark: Mark | None = None
        self.prompts: list[Prompt] = []
        self.kept: list[np.ndarray] = []

    @torch.inference_mode()  # in which pinned memory was allocated
    def begin(self, n_samples: int) -> None:
        """Forget the window before, and take one of so many samples."""
        for group in self._groups.values():
            group.positions = group.taken = 0
            for name in group.tensors:
                if ":" in name:
                    group.tensors[name].zero_()
        nothing = np.empty(0, dtype=np.int64)
        self.prompts, self.kept = [Prompt(nothing, nothing)] * n_samples, [nothing] * n_samples

    def holds(self, name: str, group: str = "") -> bool:
        """Tell whether a variable is kept."""
        return name in self._groups[group].variables

    def place(self, rows: np.ndarray, packing: Packing, group: str = "") -> Place:
        """Make room for a batch.

        Parameters
        ----------
        rows
            Its samples, by their positions in the window.
        packing
            Says how many positions are kept of each.
        group
            ``""``, or that of the vision tower.
        """
        into = self._groups[group]
        place = Place(into.positions, into.taken)
        into.starts[rows] = place.position + np.cumsum(packing.kept_lengths) - packing.kept_lengths
        into.lengths[rows] = packing.kept_lengths
        into.slots[rows] = place.slot + np.arange(len(rows))
        into.positions += int(packing.kept_lengths.sum())
        into.taken += len(rows)
        return place

    def rewind(self, to: Mapping[str, Place]) -> None:
        """Give back the room of batches that could not be computed."""
        for name, place in to.items():
            self._groups[name].positions, self._groups[name].taken = place.position, place.slot

    def reached(self) -> dict[str, Place]:
        """Return up to where each group is filled."""
        return {name: Place(group.positions, group.taken) for name, group in self._groups.items()}

    def target(
        self, name: str, layer: int, place: Place, count: int, dtype: torch.dtype, group: str = ""
    ) -> torch.Tensor:
        """Return where the values of a batch belong, dims ``(position, …)`` or ``(sample, …)``.

        Parameters
        ----------
        name
            Of the variable, without its group; or from :func:`counted`.
        layer
            The block.
        place
            From :meth:`place`.
        count
            How many positions or samples.
        dtype
            In which it is held, if this is the first of its values.
        group
            That of the place.
        """
        into = self._groups[group]
        rows = self._rows(name, group)
        if name not in into.tensors:
            into.tensors[name] = allocate(into.shape_of(name, len(rows)), dtype, pinned=self._pinned)
            if ":" in name:
                into.tensors[name].zero_()
        held = into.tensors[name]
        if dtype.is_floating_point and torch.promote_types(held.dtype, dtype) != held.dtype:
            # a block that gives more precise values than those before it
            wider = allocate(held.shape, torch.promote_types(held.dtype, dtype), pinned=self._pinned)
            held = into.tensors[name] = wider.copy_(held)
        first = place.slot if name in _BY_SAMPLE or ":" in name else place.position
        return held[rows.index(layer), first : first + count]

    def _rows(self, name: str, group: str) -> tuple[int, ...]:
        """Return the blocks that the first dimension of a variable's tensor stands for."""
        name = name.partition(":")[0]
        if group:
            return self._layers[VISION]
        if name == "embedding":
            return (0,)
        return self._layers["residual" if name in OF_RESIDUAL else name]

    def complete(self) -> None:
        """Note that all of the window was computed, and may be on its way."""
        self._mark = self._transfer.mark()

    def wait(self) -> None:
        """Return once all of the window has arrived."""
        if self._mark is not None:
            self._mark.wait()

    def met(self, kind: str, group: str = "") -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield component, block and counts, dims ``(sample,)``, of what was counted anywhere."""
        own = self._groups[group]
        for name, tensor in own.tensors.items():
            component, _, what = name.partition(":")
            if what == kind:
                counts = tensor.numpy()[:, own.slots[: len(self.prompts)]]
                yield from zip([component] * len(counts), self._rows(name, group), counts, strict=True)

    def _nonfinite(self, group: str) -> np.ndarray:
        axis = self._layers[VISION] if group else self._axis
        counts = np.zeros((len(axis), len(self.prompts)), dtype=np.int32)
        for component, layer, found in self.met("nonfinite", group):
            counts[0 if component == "embedding" else axis.index(layer)] += found
        return counts

    def arrays(self) -> dict[str, np.ndarray | Ragged]:
        """Return what the model gave, as :meth:`~actkit.store.writing.CubeWriter.write` takes it."""
        arrays: dict[str, np.ndarray | Ragged] = {}
        for prefix, group in self._groups.items():
            for name, variable in group.variables.items():
                if variable.is_full or name in ("norm", *_BY_SAMPLE):
                    arrays[variable.name] = self._array(name, prefix)
                elif name == "nonfinite":
                    arrays[variable.name] = self._nonfinite(prefix)
                elif prefix and name == "n_tokens":
                    arrays[variable.name] = group.lengths[: len(self.prompts)].astype(np.int32)
        return arrays

    def _array(self, name: str, prefix: str) -> np.ndarray | Ragged:
        group, count = self._groups[prefix], len(self.prompts)
        rows = self._rows(name, prefix)
        axis = rows if prefix else self._axis
        tensor = group.tensors[name]
        # NumPy has no bfloat16, and takes its bits
        values = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        places = tuple(axis.index(layer) for layer in rows) if name != "embedding" else (0,)
        if name in _BY_SAMPLE:
            dense = np.full((group.layers, count, group.hidden), np.nan, dtype=np.float32)
            dense[list(places)] = values[:, group.slots[:count]]
            return dense
        ragged = Ragged(values, group.starts[:count], group.lengths[:count], places)
        return ragged.dense(group.layers, group.tokens) if name == "norm" else ragged
