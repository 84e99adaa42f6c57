"""Arrays of one window while it is computed: samples in batch order, without padding."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ...batch_plan import Plan
from ...errors import ModelError
from ...schema import PROMPT_END, VARIABLES, VISION, K, component_of
from ...store.ragged import Ragged
from ..prompts.encoder import Prompt
from .device_copy import Mark, Transfer, allocate
from .packing import Packing
from .spec import Rules

CountKind = Literal["nonfinite", "overflows"]
_BY_SAMPLE = ("pooled", "last", PROMPT_END)


@dataclass(frozen=True)
class Count:
    """Number of values of one kind that a component outputs, by block and sample.

    Parameters
    ----------
    kind
        ``nonfinite``: NaN and Inf; ``overflows``: finite values too large for float16.
    component
        The component whose output is counted, or ``embedding``.
    """

    kind: CountKind
    component: str


ArrayKey = str | Count  # a variable, named without its group, or a count


class Dtypes(dict[tuple[str, ArrayKey], torch.dtype]):
    """Dtype in which each array is held, by group and key; the same in all windows.

    Attributes
    ----------
    closed
        Whether all dtypes are known, so that several threads may write into one tensor.
    """

    closed = False

    def add(self, key: tuple[str, ArrayKey], dtype: torch.dtype) -> torch.dtype:
        """Record the dtype of an output, and return one that also holds all outputs before it."""
        self[key] = torch.promote_types(self.get(key, dtype), dtype)
        return self[key]


class _GroupArrays:
    """Arrays of one group of the cube: the decoder (``""``) or the vision tower."""

    def __init__(
        self,
        plan: Plan,
        name: str,
        variables: Sequence[str],
        rules: Rules,
        transfer: Transfer,
        dtypes: Dtypes,
        *,
        pinned: bool,
    ) -> None:
        shape = plan.vision if name else plan.shape
        assert shape is not None
        self.variables = {
            variable.removeprefix(f"{name}/"): VARIABLES[variable]
            for variable in variables
            if VARIABLES[variable].group == name
        }
        self.layers, self.hidden, self.tokens, self.k = shape.layer, shape.hidden, shape.token, shape.k
        self.name = name
        self.axis = rules.layers[VISION] if name else rules.axis
        self.capacity = max(
            len(plan.samples_of(window)) * shape.token if name else plan.stored_in(window)
            for window in range(plan.n_windows)
        )
        self.samples = min(plan.window, plan.shape.sample)
        # by sample: first reserved position, index in the tensors, first position and number of positions
        self.reserved, self.indices, self.starts, self.lengths = np.zeros((4, self.samples), dtype=np.int64)
        self._component_layers, self._dtypes, self._pinned = rules.layers, dtypes, pinned
        self._transfer = transfer
        self._tensors: dict[ArrayKey, torch.Tensor] = {}
        self._lock = threading.Lock()

    def begin(self, order: np.ndarray, most: np.ndarray) -> None:
        """Reserve room for each sample of a window."""
        if self.name:  # the number of patches of an image is known only when it is read again
            most = np.full_like(most, self.tokens)
        self.reserved[order] = np.cumsum(most[order]) - most[order]
        self.indices[order] = np.arange(len(order))
        for key, tensor in self._tensors.items():
            if isinstance(key, Count):
                tensor.zero_()

    def tensor(self, key: ArrayKey, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor that holds values of a dtype, allocated on first use."""
        tensor = self._tensors.get(key)
        if tensor is None or torch.promote_types(tensor.dtype, dtype) != tensor.dtype:
            with self._lock:
                tensor = self._allocate(key, dtype)
        return tensor

    def _allocate(self, key: ArrayKey, dtype: torch.dtype) -> torch.Tensor:
        """Allocate a tensor or widen it, unless another thread already did."""
        tensor, known = self._tensors.get(key), self._dtypes.get((self.name, key), dtype)
        widest = self._dtypes.add((self.name, key), dtype)
        if tensor is not None and tensor.dtype == widest:
            return tensor
        if self._dtypes.closed and widest != known:
            # widening would lose what other threads write into the tensor meanwhile
            raise ModelError(f"{key}: a block that gave {known} values gives {dtype} now")
        allocated = allocate(self._shape(key), widest, pinned=self._pinned)
        if tensor is not None:
            self._transfer.mark().wait()  # values may still be arriving in it
            allocated.copy_(tensor)
        elif isinstance(key, Count):
            allocated.zero_()
        self._tensors[key] = allocated
        return allocated

    def _shape(self, key: ArrayKey) -> tuple[int, ...]:
        blocks = len(self.blocks(key))
        if isinstance(key, Count):
            return blocks, self.samples
        if key in _BY_SAMPLE:
            return blocks, self.samples, self.hidden
        if key == "norm":
            return blocks, self.capacity
        entries = self.k if self.variables[key].dims[-1] == K else self.hidden
        return blocks, self.capacity, entries

    def blocks(self, key: ArrayKey) -> tuple[int, ...]:
        """Return the blocks along the first dimension of a tensor."""
        name = key.component if isinstance(key, Count) else key
        if self.name:
            return self._component_layers[VISION]
        component = component_of(name)
        return (0,) if component == "embedding" else self._component_layers[component]

    def counts(self, kind: CountKind, samples: int) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield component, block and counts, dims ``(sample,)``, in the order of the window's samples."""
        for key, tensor in self._tensors.items():
            if isinstance(key, Count) and key.kind == kind:
                counts = tensor.numpy()[:, self.indices[:samples]]
                for block, row in zip(self.blocks(key), counts, strict=True):
                    yield key.component, block, row

    def nonfinite(self, samples: int) -> np.ndarray:
        """Return the number of NaN and Inf values in all components, dims ``(layer, sample)``."""
        total = np.zeros((len(self.axis), samples), dtype=np.int32)
        for component, block, counts in self.counts("nonfinite", samples):
            total[0 if component == "embedding" else self.axis.index(block)] += counts
        return total

    def array(self, name: str, samples: int) -> np.ndarray | Ragged:
        """Return a variable in the form in which the writer takes it."""
        tensor = self._tensors[name]
        # NumPy has no bfloat16, and takes its bits
        is_bits = tensor.dtype in (torch.bfloat16, torch.int16)  # of bfloat16, or of unsigned indices
        values = (tensor.view(torch.uint16) if is_bits else tensor).numpy()
        blocks = self.blocks(name)
        layers = (0,) if "layer" not in self.variables[name].dims else tuple(map(self.axis.index, blocks))
        if name in _BY_SAMPLE:
            dense = np.full((self.layers, samples, self.hidden), np.nan, dtype=np.float32)
            dense[list(layers)] = values[:, self.indices[:samples]]
            return dense
        ragged = Ragged(values, self.starts[:samples], self.lengths[:samples], layers)
        return ragged.dense(self.layers, self.tokens) if name == "norm" else ragged


@dataclass(frozen=True)
class Slot:
    """Part of the arrays of a window that one batch fills.

    Parameters
    ----------
    positions, samples
        Kept positions and samples of the batch, as slices of the tensors.
    """

    positions: slice
    samples: slice
    _arrays: _GroupArrays

    def holds(self, name: str) -> bool:
        """Return whether a variable is kept."""
        return name in self._arrays.variables

    def view(self, key: ArrayKey, layer: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the memory for the values of one block, dims ``(position, …)`` or ``(sample, …)``.

        Parameters
        ----------
        key
            A variable, named without its group, or a count.
        layer
            The block.
        dtype
            Dtype of the values. The view has the widest dtype of all values so far.

        Raises
        ------
        ModelError
            If all dtypes were known, and the values need a wider one.
        """
        by_sample = isinstance(key, Count) or key in _BY_SAMPLE
        block = self._arrays.blocks(key).index(layer)
        return self._arrays.tensor(key, dtype)[block, self.samples if by_sample else self.positions]


class WindowBuffer:
    """Arrays of one window, allocated once and reused by later windows.

    Parameters
    ----------
    plan
        The plan of the run, whose shape and windows determine the sizes.
    variables
        Names of the variables that are written by window.
    rules
        Which layers of each component are kept.
    transfer
        Copies values into the buffer.
    pinned
        Whether the values come from CUDA.
    dtypes
        Dtypes shared by the buffers of a run.
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
        dtypes = Dtypes() if dtypes is None else dtypes
        self._groups = {
            group: _GroupArrays(plan, group, variables, rules, transfer, dtypes, pinned=pinned)
            for group in dict.fromkeys(VARIABLES[name].group for name in variables)
        }
        self._transfer = transfer
        self._mark: Mark | None = None
        self.prompts: list[Prompt] = []
        self.kept: list[np.ndarray] = []

    @torch.inference_mode()  # the mode in which pinned memory was allocated
    def begin(self, order: np.ndarray, most: np.ndarray) -> None:
        """Discard the previous window, and start the next one.

        Parameters
        ----------
        order
            Samples of the window, by their positions in it, batch after batch.
        most
            Maximum number of positions kept of each sample, dims ``(sample,)``.
        """
        for group in self._groups.values():
            group.begin(order, most)
        empty = np.empty(0, dtype=np.int64)
        self.prompts, self.kept = [Prompt(empty, empty)] * len(order), [empty] * len(order)

    def place(self, rows: np.ndarray, packing: Packing, group: str = "") -> Slot:
        """Return the slot of a batch, which does not depend on the order of computation.

        Parameters
        ----------
        rows
            Samples of the batch, by their positions in the window.
        packing
            Positions that are kept of each sample.
        group
            ``""``, or the vision tower.
        """
        arrays, lengths = self._groups[group], packing.kept_lengths
        position, sample = int(arrays.reserved[rows[0]]), int(arrays.indices[rows[0]])
        # contiguous, even if fewer tokens were generated than reserved
        arrays.starts[rows] = position + np.cumsum(lengths) - lengths
        arrays.lengths[rows] = lengths
        return Slot(
            slice(position, position + int(lengths.sum())), slice(sample, sample + len(lengths)), arrays
        )

    def complete(self) -> None:
        """Mark the window as computed; copies may still be under way."""
        self._mark = self._transfer.mark()

    def wait(self) -> None:
        """Return once all copies into the window have finished."""
        if self._mark is not None:
            self._mark.wait()

    def counts(self, kind: CountKind, group: str = "") -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield component, block and counts, dims ``(sample,)``."""
        return self._groups[group].counts(kind, len(self.prompts))

    def arrays(self) -> dict[str, np.ndarray | Ragged]:
        """Return the captured variables as :meth:`~actkit.store.writer.CubeWriter.write` takes them."""
        samples = len(self.prompts)
        arrays: dict[str, np.ndarray | Ragged] = {}
        for group in self._groups.values():
            for name, variable in group.variables.items():
                if variable.is_full or name in ("norm", *_BY_SAMPLE):
                    arrays[variable.name] = group.array(name, samples)
                elif name == "nonfinite":
                    arrays[variable.name] = group.nonfinite(samples)
                elif group.name and name == "n_tokens":
                    arrays[variable.name] = group.lengths[:samples].astype(np.int32)
        return arrays
