"""Errors list their faults, survive a process boundary, and match the tree in the module docstring."""

import pickle
import re

import pytest

from actkit import errors
from actkit.errors import ActkitError, ChangedError, CorruptError, Fault, InputError, NonfiniteError, listed

FAULTS = [Fault("row 3", "`text` is empty", "correct or remove the row"), Fault("out", "is a file")]


def test_message_lists_every_fault_with_its_mend() -> None:
    assert str(InputError(FAULTS)) == (
        "cannot run: 2 faults\n  - row 3: `text` is empty (correct or remove the row)\n  - out: is a file"
    )
    assert str(InputError(FAULTS[1:])) == "cannot run: 1 fault\n  - out: is a file"


def test_message_of_many_faults_is_cut_and_the_error_keeps_all() -> None:
    error = InputError([Fault(f"row {row}", "is empty") for row in range(25)])
    lines = str(error).splitlines()
    assert lines[0] == "cannot run: 25 faults"
    assert lines[-2:] == ["  - row 19: is empty", "  … and 5 more"]
    assert len(error.faults) == 25


@pytest.mark.parametrize("kind", [InputError, ChangedError, CorruptError])
@pytest.mark.parametrize("heading", ["", "runs/x contains a cube made with other settings"])
def test_errors_with_faults_can_be_pickled(kind: type[errors.FaultsError], heading: str) -> None:
    error = kind(FAULTS, heading)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.faults, str(again)) == (error.faults, str(error))


def test_an_error_without_faults_can_be_pickled() -> None:
    error = NonfiniteError("residual of layer 3 of sample 7 holds 2 NaN")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (NonfiniteError, str(error))


def test_the_drawn_tree_is_the_tree() -> None:
    drawn: dict[str, str | None] = {}
    open_branches: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)(\w+Error)\b", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        open_branches = [branch for branch in open_branches if branch[0] < depth]
        drawn[name] = open_branches[-1][1] if open_branches else None
        open_branches.append((depth, name))
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, ActkitError) and value is not errors.FaultsError
    }
    assert drawn.keys() == classes.keys()
    for name, parent in drawn.items():
        assert parent is None or classes[parent] in classes[name].__mro__[1:], name


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (1, "n0"), (3, "n0, n1, n2"), (4, "n0, n1, n2 and 1 more")]
)
def test_the_first_few_of_many_names_are_listed(count: int, text: str) -> None:
    assert listed([f"n{index}" for index in range(count)]) == text
