"""Grammar of layer specifications, the same in Python, YAML, the shell and the app."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from . import schema
from .errors import Fault

COMPONENTS = (*schema.COMPONENTS, schema.VISION)
_PLURALS = {"residuals": "residual", "mlps": "mlp", "attentions": "attention"}
_RANGE = re.compile(r"(?P<start>-?\d{1,9})(?:-(?P<stop>-?\d{1,9})(?::(?P<step>\d{1,9}))?)?")

GRAMMAR = "all, 7, -1, 10-23, 0-32:2, 0-10 24-33, residual_all, mlp_5-15, vision_all, or a list of these"

Spec = str | int | Sequence[str | int]


@dataclass(frozen=True)
class Part:
    """One term of a specification: a component and an inclusive range of blocks."""

    text: str
    component: str = "residual"
    start: int = 0
    stop: int = -1
    step: int = 1


def parse(spec: Spec) -> tuple[list[Part], list[Fault]]:
    """Parse a specification without knowledge of a model.

    Parameters
    ----------
    spec
        Terms separated by spaces or commas, an integer, or a list of these.

    Returns
    -------
    parts : list of Part
    faults : list of Fault
        Terms that cannot be parsed; empty if ``parts`` is usable.

    Examples
    --------
    >>> parts, faults = parse("0-10 residual_24-33")
    >>> [(part.start, part.stop) for part in parts], faults
    ([(0, 10), (24, 33)], [])
    """
    parts: list[Part] = []
    faults: list[Fault] = []
    for term in _terms(spec):
        part = _parse_term(term)
        if isinstance(part, Part):
            parts.append(part)
        else:
            faults.append(part)
    if not parts and not faults:
        faults.append(Fault("layers", "names no layer", f"write {GRAMMAR}"))
    return parts, faults


def resolve(
    parts: Iterable[Part], n_layers: Mapping[str, int]
) -> tuple[dict[str, tuple[int, ...]], list[Fault]]:
    """Resolve parts to the sorted block indices of a model.

    Parameters
    ----------
    parts
        Parts from :func:`parse`.
    n_layers
        Number of blocks that have each component, without components that the model lacks.

    Returns
    -------
    layers : dict
        Component to sorted, unique block indices, in the order of ``COMPONENTS``.
    faults : list of Fault
        Components and layers that the model lacks, with those that it has.
    """
    chosen: dict[str, set[int]] = {}
    faults: list[Fault] = []
    for part in parts:
        if part.component not in n_layers:
            what = f"`{part.text}`: the model has no `{part.component}` that can be captured"
            faults.append(Fault("layers", what, f"it has {', '.join(n_layers)}"))
            continue
        count = n_layers[part.component]
        start, stop = (_from_end(index, count) for index in (part.start, part.stop))
        outside = [
            number for number, index in ((part.start, start), (part.stop, stop)) if not 0 <= index < count
        ]
        if outside:
            of = "vision tower" if part.component == "vision" else "model"
            what = f"`{part.text}`: the {of} has no layer {outside[0]}"
            faults.append(Fault("layers", what, f"it has {count} layers, 0–{count - 1}"))
        elif start > stop:
            faults.append(Fault("layers", f"`{part.text}` runs backwards", f"write {stop}-{start}"))
        else:
            chosen.setdefault(part.component, set()).update(range(start, stop + 1, part.step))
    return {name: tuple(sorted(chosen[name])) for name in COMPONENTS if name in chosen}, faults


def describe(layers: Iterable[int]) -> str:
    """Format block indices as short ranges that :func:`parse` reads.

    Examples
    --------
    >>> describe([0, 1, 2, 5, 8, 9])
    '0-2 5 8-9'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def describe_all(layers: Mapping[str, Iterable[int]]) -> str:
    """Format the blocks of each component so that :func:`parse` reads them.

    Examples
    --------
    >>> describe_all({"residual": [0, 1, 2], "mlp": [1, 2, 5]})
    '0-2 mlp_1-2 mlp_5'
    """
    return " ".join(
        term if component == "residual" else f"{component}_{term}"
        for component, indices in layers.items()
        for term in describe(indices).split()
    )


def _terms(spec: Spec) -> list[str]:
    items = [spec] if isinstance(spec, str | int) else spec
    return [term for item in items for term in str(item).replace(",", " ").split()]


def _parse_term(term: str) -> Part | Fault:
    prefix, separator, rest = term.rpartition("_")
    prefix = prefix if separator else "residual"
    component = _PLURALS.get(prefix, prefix)
    if component not in COMPONENTS:
        what = f"`{term}`: component `{prefix}` is unknown"
        return Fault("layers", what, f"components: {', '.join(COMPONENTS)}")
    if rest == "all":
        return Part(term, component)
    numbers = _RANGE.fullmatch(rest)
    if numbers is None:
        return Fault("layers", f"cannot read `{term}`", f"write {GRAMMAR}")
    step = int(numbers["step"] or 1)
    if step == 0:
        return Fault("layers", f"`{term}` has step 0", "give a step of at least 1")
    start = int(numbers["start"])
    return Part(term, component, start, int(numbers["stop"] or start), step)


def _from_end(index: int, n_layers: int) -> int:
    return index + n_layers if index < 0 else index
