"""Division of prompts into windows and batches by their lengths, without data or torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .config import Config
from .regular_files import MB
from .schema import VARIABLES, K, Variable, component_of

# on a CPU: with more, two concurrent passes would exceed the memory allowed beside model and windows, and be
# at most a tenth faster (docs/decisions/0020)
AUTO_TOKENS = 1024
AUTO_PROMPTS = 64  # most prompts in a batch of AUTO_TOKENS, scaled with larger batches
# measured by benchmarks/chunks.py
CHUNK_BYTES = MB // 4
CHUNK_TOKENS = 32
WINDOW_BYTES = 512 * MB


@dataclass(frozen=True)
class Shape:
    """Lengths of the dimensions of a cube; ``k`` is 0 unless it holds the largest entries of vectors."""

    layer: int
    sample: int
    token: int
    hidden: int
    k: int = 0

    def __getitem__(self, dim: str) -> int:
        return int(getattr(self, dim))


@dataclass(frozen=True)
class Plan:
    """Division of the samples of a run into windows, and of windows into batches.

    Parameters
    ----------
    shape
        Lengths of the cube's dimensions; ``token`` is the largest number of positions kept of a prompt.
    lengths
        Number of tokens of each prompt, dims ``(sample,)``.
    stored
        Maximum number of positions kept of each prompt, dims ``(sample,)``: fewer than its tokens if
        ``keep_tokens`` selects some of them, more if the model continues the prompt.
    window
        Number of samples in a window; the last one may hold fewer.
    window_bytes
        Memory of the largest window.
    batches
        Batch of each sample, numbered over the whole run, dims ``(sample,)``.
    vision
        Lengths of the dimensions of the vision tower's group, if there is one.
    """

    shape: Shape
    lengths: np.ndarray
    stored: np.ndarray
    window: int
    window_bytes: int
    batches: np.ndarray
    vision: Shape | None = None

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return -(-self.shape.sample // self.window)

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return int(self.batches.max()) + 1

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return int(self.lengths.sum())

    @property
    def padded_tokens(self) -> int:
        """Number of positions that the model computes, including padding."""
        return int(self.batch_positions.sum())

    @property
    def batch_positions(self) -> np.ndarray:
        """Positions that the model computes in each batch, including padding, dims ``(batch,)``."""
        longest = np.zeros(self.n_batches, dtype=np.int64)
        np.maximum.at(longest, self.batches, self.lengths)
        return longest * np.bincount(self.batches)

    @property
    def held_bytes(self) -> int:
        """Memory of the two window buffers: windows of even index share one, those of odd index the other."""
        _, _, stored = self.by_window()
        largest = [int(stored[first::2].max(initial=0)) for first in (0, 1)]
        return self.window_bytes * sum(largest) // max(int(stored.max()), 1)

    def by_window(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions to compute, samples, and maximum positions kept of each window."""
        starts = np.arange(0, self.shape.sample, self.window)
        computed = np.zeros(self.n_windows, dtype=np.int64)
        owners = np.empty(self.n_batches, dtype=np.int64)
        owners[self.batches] = np.arange(self.shape.sample) // self.window
        np.add.at(computed, owners, self.batch_positions)
        samples = np.diff(np.append(starts, self.shape.sample))
        return computed, samples, np.add.reduceat(self.stored.astype(np.int64), starts)

    def samples_of(self, window: int) -> range:
        """Return the samples of a window."""
        return range(window * self.window, min((window + 1) * self.window, self.shape.sample))

    def batches_of(self, window: int) -> Iterator[np.ndarray]:
        """Yield the sample indices of each batch of a window."""
        samples = np.asarray(self.samples_of(window))
        batches = self.batches[samples]
        for batch in np.unique(batches):
            yield samples[batches == batch]

    def order_of(self, window: int) -> np.ndarray:
        """Return the samples of a window as indices into it, batch by batch."""
        samples = self.samples_of(window)
        return np.argsort(self.batches[samples.start : samples.stop], kind="stable")

    def shape_of(self, variable: Variable) -> Shape:
        """Return the lengths of the dimensions of the variable's group."""
        if not variable.group:
            return self.shape
        assert self.vision is not None
        return self.vision

    def chunk_of(self, variable: Variable) -> tuple[int, int]:
        """Return the numbers of samples and tokens in an inner chunk of a variable with tokens and hidden."""
        shape = self.shape_of(variable)
        # chunks of equal size, so that few hold nothing but the ends of long prompts
        tokens = -(-shape.token // -(-shape.token // CHUNK_TOKENS))
        samples = _power_of_two(CHUNK_BYTES // (4 * tokens * shape[variable.dims[-1]]))
        return min(samples, _largest_divisor(self.window)), tokens

    def stored_in(self, window: int) -> int:
        """Return the maximum number of positions that a window keeps."""
        samples = self.samples_of(window)
        return int(self.stored[samples.start : samples.stop].sum())


def make_plan(
    config: Config,
    lengths: np.ndarray,
    *,
    layers: int,
    hidden: int,
    token_bytes: int,
    k: int = 0,
    sample_bytes: int = 0,
    stored: np.ndarray | None = None,
    vision: Shape | None = None,
    new_tokens: int = 0,
    boundary: int | None = None,
    batch_tokens: int = AUTO_TOKENS,
) -> Plan:
    """Divide the samples into windows and batches.

    Parameters
    ----------
    config
        Config, of which ``memory_budget``, ``window_samples`` and ``batch_size`` are used.
    lengths
        Number of tokens of each prompt, dims ``(sample,)``.
    layers, hidden
        Number of layers kept, and width of the model.
    k
        Number of entries kept of each vector, if not all.
    token_bytes, sample_bytes
        Memory that a window takes for each position kept, and in addition for each sample.
    stored
        Maximum number of positions kept of each prompt; its number of tokens by default.
    vision
        Lengths of the dimensions of the vision tower's group.
    new_tokens
        Maximum number of tokens that the model adds to each prompt.
    boundary
        Number of tokens beyond which prompts never share a batch with shorter ones.
    batch_tokens
        Maximum number of tokens in a batch, including padding, if its size is ``auto``.

    Returns
    -------
    Plan
        The plan, which depends on the arguments alone and not on the machine.
    """
    stored = lengths if stored is None else stored
    # the token axis exists even if no prompt has a position to keep
    shape = Shape(layers, len(lengths), max(1, int(stored.max())), hidden, k)
    sizes = stored.astype(np.int64) * token_bytes + sample_bytes
    window = _window(config, sizes, batch_tokens * token_bytes)
    batches = np.empty(shape.sample, dtype=np.int32)
    count = 0
    for start in range(0, shape.sample, window):
        part = lengths[start : start + window]
        order = np.argsort(-part, kind="stable")
        for members in _cut(part[order] + new_tokens, config.batch_size, boundary, batch_tokens):
            batches[start + order[members]] = count
            count += 1
    return Plan(shape, lengths, stored, window, _largest(sizes, window), batches, vision)


def _window(config: Config, sizes: np.ndarray, batch_bytes: int) -> int:
    """Return the number of samples per window, given their sizes in bytes; two windows are held at once."""
    budget = max(WINDOW_BYTES, batch_bytes)  # batches do not cross windows
    if config.memory_budget != "auto":
        budget = int(config.memory_budget) * MB // 2
    most = min(config.window_samples, len(sizes))
    step = _step(most)
    window = min(config.window_samples // step * step, -(-len(sizes) // step) * step)
    while window > 1:
        largest = _largest(sizes, window)
        if largest <= budget:
            break
        most = min(window - 1, max(1, window * budget // largest))
        window = most - most % _step(most)
    return window


def _largest(sizes: np.ndarray, window: int) -> int:
    return int(np.add.reduceat(sizes, np.arange(0, len(sizes), window)).max())


def _step(most: int) -> int:
    """Return the step of window sizes, which lets chunks hold several samples."""
    return min(16, _power_of_two(most))


def _cut(
    lengths: np.ndarray, batch_size: int | str, boundary: int | None, batch_tokens: int
) -> Iterator[slice]:
    """Yield the batches of prompts sorted by length, longest first; the first of each sets its padding."""
    long = len(lengths) if boundary is None else int((lengths > boundary).sum())
    most = AUTO_PROMPTS * max(batch_tokens // AUTO_TOKENS, 1)
    start = 0
    while start < len(lengths):
        size = batch_size if isinstance(batch_size, int) else batch_tokens // int(lengths[start])
        stop = start + (size if isinstance(batch_size, int) else min(max(size, 1), most))
        stop = min(stop, long) if start < long else stop
        yield slice(start, stop)
        start = stop


def _power_of_two(at_most: int) -> int:
    return 1 << (max(at_most, 1).bit_length() - 1)


def _largest_divisor(number: int) -> int:
    """Return the largest power of two that divides a number."""
    return number & -number


_ITEM = {"int8": 1, "uint16": 2, "str": 60}


def footprint(
    variables: Sequence[str], layers: Mapping[str, int], shape: Shape, vision: Shape | None, value_bytes: int
) -> tuple[int, int]:
    """Return the memory that a window takes for each position kept, and in addition for each sample.

    Parameters
    ----------
    variables
        Names of the variables written window by window.
    layers
        Number of layers captured of each component.
    shape, vision
        Lengths of the dimensions of the cube, and of the vision tower's group.
    value_bytes
        Bytes in which a value of the model's output is held.
    """
    token = sample = 0
    for variable in (VARIABLES[name] for name in variables):
        sizes = {dim: (vision if variable.group and vision else shape)[dim] for dim in variable.dims}
        if "layer" in sizes and not variable.group:
            of_entries = variable.dims[-1] == K
            name = component_of(variable.name) if of_entries else variable.name
            sizes["layer"] = layers.get(name, sizes["layer"])
        is_value = variable.is_full and variable.dtype == "float32"
        item = value_bytes if is_value else _ITEM.get(variable.dtype, 4)
        cells = math.prod(sizes.values()) // sizes["sample"] * item
        if variable.group or "token" not in sizes:
            sample += cells
        else:
            token += cells // sizes["token"]
    return token, sample
