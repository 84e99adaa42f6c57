"""The arrays that hold a window while it is computed: samples in the order in which they come, no pads."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ModelError
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


class Dtypes(dict[tuple[str, str], torch.dtype]):
    """In what each variable is held, by group and name; the same in all windows.

    Attributes
    ----------
    closed
        Whether all is known, so that several threads may put values into one tensor.
    """

    closed = False

    def add(self, of: tuple[str, str], dtype: torch.dtype) -> torch.dtype:
        """Take in what a block gives, and return what holds that and all before it."""
        self[of] = torch.promote_types(self.get(of, dtype), dtype)
        return self[of]


class _Group:
    """The arrays of the cube itself, or of the vision tower."""

    def __init__(self, plan: Plan, name: str, variables: Sequence[str]) -> None:
        prefix = f"{name}/" if name else ""
        own = [VARIABLES[variable] for variable in variables if VARIABLES[variable].group == name]
        shape = plan.vision if name else plan.shape
        assert shape is not None
        self.variables = {variable.name.removeprefix(prefix): variable for variable in own}
        self.layers, self.hidden, self.tokens = shape.layer, shape.hidden, shape.token
        self.name = name
        self.capacity = max(
            len(plan.samples_of(window)) * shape.token if name else plan.stored_in(window)
            for window in range(plan.n_windows)
        )
        self.samples = min(plan.window, plan.shape.sample)
        self.rooms, self.slots, self.starts, self.lengths = np.zeros((4, self.samples), dtype=np.int64)
        self.tensors: dict[str, torch.Tensor] = {}

    def begin(self, order: np.ndarray, most: np.ndarray) -> None:
        """Give each sample its room."""
        if self.name:  # how many patches an image has is known when it is read again
            most = np.full_like(most, self.tokens)
        self.rooms[order] = np.cumsum(most[order]) - most[order]
        self.slots[order] = np.arange(len(order))
        for name, tensor in self.tensors.items():
            if ":" in name:
                tensor.zero_()

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
    dtypes
        Shared by the buffers of a run.
    """

    def __init__(
        self,
        plan: Plan,
        variables: Sequence[str],
        rules: Rules,
        transfer: Transfer,
        *,
        pinned: bool,
        dtypes: Dtypes | None = None,
    ) -> None:
        self._groups = {
            group: _Group(plan, group, variables)
            for group in dict.fromkeys(VARIABLES[name].group for name in variables)
        }
        self._axis = rules.axis
        self._layers = rules.layers
        self._transfer, self._pinned = transfer, pinned
        self._dtypes = Dtypes() if dtypes is None else dtypes
        self._lock = threading.Lock()
        self._mark: Mark | None = None
        self.prompts: list[Prompt] = []
        self.kept: list[np.ndarray] = []

    @torch.inference_mode()  # in which pinned memory was allocated
    def begin(self, order: np.ndarray, most: np.ndarray) -> None:
        """Forget the window before, and take the next one.

        Parameters
        ----------
        order
            Its samples, by their positions in the window, batch after batch.
        most
            Most positions that are kept of each, dims ``(sample,)``.
        """
        for group in self._groups.values():
            group.begin(order, most)
        nothing = np.empty(0, dtype=np.int64)
        self.prompts, self.kept = [Prompt(nothing, nothing)] * len(order), [nothing] * len(order)

    def holds(self, name: str, group: str = "") -> bool:
        """Tell whether a variable is kept."""
        return name in self._groups[group].variables

    def place(self, rows: np.ndarray, packing: Packing, group: str = "") -> Place:
        """Return where a batch belongs, whatever else was computed.

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
        place = Place(int(into.rooms[rows[0]]), int(into.slots[rows[0]]))
        # one after the other, also where fewer were generated than there is room for
        into.starts[rows] = place.position + np.cumsum(packing.kept_lengths) - packing.kept_lengths
        into.lengths[rows] = packing.kept_lengths
        return place

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
            Of the values; a block may give more precise ones than those before it.
        group
            That of the place.

        Raises
        ------
        ModelError
            Where they are more precise than the same block's before.
        """
        into = self._groups[group]
        rows = self._rows(name, group)
        held = into.tensors.get(name)
        if held is None or torch.promote_types(held.dtype, dtype) != held.dtype:
            with self._lock:
                held = self._make(into, name, len(rows), dtype)
        first = place.slot if name in _BY_SAMPLE or ":" in name else place.position
        return held[rows.index(layer), first : first + count]

    def _make(self, into: _Group, name: str, rows: int, dtype: torch.dtype) -> torch.Tensor:
        """Make the tensor of a variable, unless another thread did; or a more precise one."""
        held, known = into.tensors.get(name), self._dtypes.get((into.name, name), dtype)
        wanted = self._dtypes.add((into.name, name), dtype)
        if held is not None and held.dtype == wanted:
            return held
        if self._dtypes.closed and wanted != known:
            # what other threads put into the tensor would be lost
            raise ModelError(f"{name}: a block that gave {known} values gives {dtype} now")
        made = allocate(into.shape_of(name, rows), wanted, pinned=self._pinned)
        if held is not None:  # a block that gives more precise values than those before it
            made.copy_(held)
        elif ":" in name:
            made.zero_()
        into.tensors[name] = made
        return made

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
