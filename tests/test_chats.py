"""Columns of chats in every format that has lists, and faults that name the turn."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

from pathlib import Path
from typing import Any

import pytest

from tests.data_files import read_file
from tests.test_nested_fields import write

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_chats_are_recognised_by_their_cells(suffix: str, tmp_path: Path) -> None:
    chats = [[USER], [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, USER]]
    path = write(tmp_path / f"data{suffix}", [{"messages": chat, "label": "x"} for chat in chats])
    samples, faults = read_file(path, text_column="messages")
    assert faults == []
    assert samples is not None
    assert samples.prompts == chats
    assert samples.text.tolist() == ["Hi", "system: Be brief.\nuser: Hi\nassistant: Hello\nuser: Hi"]
    assert list(samples.labels) == ["label"]


def test_chats_within_objects(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"data": {"messages": [USER]}}])
    samples, faults = read_file(path, text_column="data.messages")
    assert faults == []
    assert samples is not None
    assert samples.prompts == [[USER]]


BAD: list[tuple[Any, str]] = [
    (None, "is empty"),
    ([], "is empty"),
    ([{"role": "user", "content": " "}], "is empty"),
    ("Hi", "holds a str, where other rows hold chats"),
    (["Hi"], "turn 1 is a str, not an object with `role` and `content`"),
    ([USER, {"from": "gpt", "value": "Hello"}], "turn 2 has no `role`; it has `from`, `value`"),
    ([USER, {"role": "assistant", "content": None, "tool_calls": []}], "turn 2 has no `content`; it has `role`, `tool_calls`"),
    ([{"role": "human", "content": "Hi"}], "turn 1 has the role 'human'; chat templates know system, user, assistant, tool, developer"),
    ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}], "turn 1 has a content of type 'image'; only text can be read"),
    ([{"role": "user", "content": 3}], "turn 1 holds a int, not text"),
    ([{"role": "user", "content": "\ud800"}], "turn 1 holds half a surrogate pair, which UTF-8 cannot store"),
]  # fmt: skip


@pytest.mark.parametrize(("chat", "what"), BAD, ids=[ascii(case[0]) for case in BAD])
def test_a_chat_that_cannot_be_read_is_a_row_at_fault(chat: Any, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"messages": [USER]}, {"messages": chat}])
    samples, faults = read_file(path, text_column="messages")
    assert samples is None
    assert faults == [f"row 2 (line 2): `messages` {what} (correct or remove the row)"]


def test_a_system_turn_and_a_system_prompt_exclude_each_other(tmp_path: Path) -> None:
    chats = [[USER], [{"role": "system", "content": "Be brief."}, USER]]
    path = write(tmp_path / "data.jsonl", [{"messages": chat} for chat in chats])
    _, faults = read_file(path, text_column="messages", system="Be kind.")
    assert faults == [
        "row 2 (line 2): `messages` has a system turn, and `system` is set: leave out one of them (correct or remove the row)"
    ]


def test_columns_of_chats_and_of_texts_cannot_be_mixed(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [{"a": [USER], "b": "Hi"}])
    _, faults = read_file(path, text_columns={"english": "a", "arabic": "b"})
    assert "text_columns: some hold chats and others text (give columns of one kind)" in faults


def test_json_in_a_cell_of_csv_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('messages\n"[{""role"": ""user"", ""content"": ""Hi""}]"\n')
    samples, faults = read_file(path, text_column="messages")
    assert faults == []
    assert samples is not None
    assert samples.text.tolist() == ['[{"role": "user", "content": "Hi"}]']
