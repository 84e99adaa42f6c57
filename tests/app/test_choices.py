"""What the app shows of a file of prompts, in every format, and what it refuses to unpack."""

import json
from pathlib import Path

import openpyxl
import pandas as pd
import pytest

from actkit.demo import MODEL
from actkit.demo.llm import LLM
from actkit.errors import InputError
from app.choices import BUNDLED_DATA, BUNDLED_MODEL, data_files, model_of, models, preview
from app.form import read_form
from app.settings import Settings

ROWS = pd.DataFrame({"id": ["x", "y"], "lang": ["en", ""], "prompt": ["Hi", "Ho"], "n": [1, 2]})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    return Settings(workspace=tmp_path, max_preview_bytes=2**16)


def test_every_format_is_offered_and_shown_alike(settings: Settings) -> None:
    folder = settings.data
    ROWS.to_csv(folder / "a.csv", index=False)
    ROWS.to_csv(folder / "b.csv", sep=";")
    ROWS.to_json(folder / "c.json", orient="records")
    ROWS.to_json(folder / "d.jsonl", orient="records", lines=True)
    ROWS.to_parquet(folder / "e.parquet")
    ROWS.to_excel(folder / "f.xlsx")
    names = [name for name in data_files(settings) if name != BUNDLED_DATA]
    assert names == ["a.csv", "b.csv", "c.json", "d.jsonl", "e.parquet", "f.xlsx"]
    for name in names:
        shown = preview(settings, folder / name)
        assert (shown.text, shown.language, shown.name, shown.labels) == ("prompt", "lang", "id", ("n",)), (
            name
        )
        assert shown.languages == ("en",)
        assert shown.n_rows == 2
        assert shown.rows[0][-2:] == ("Hi", "1")


def test_chats_are_shown_as_text_and_what_is_nested_is_no_label(settings: Settings, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat, "tags": ["a"], "source": "x"}))
    shown = preview(settings, path)
    assert shown.text == "messages"
    assert shown.labels == ("source",)
    assert shown.rows[0][0] == "user: Hi\nassistant: Hello"


def test_a_workbook_that_unpacks_to_too_much_is_not_read(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "large.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["text"])
    for _ in range(3000):
        book.active.append(["the same words"])
    book.save(path)
    assert path.stat().st_size < settings.max_preview_bytes
    with pytest.raises(InputError, match="is larger than 65,536 bytes"):
        preview(settings, path)


def test_without_the_language_model_the_bundled_one_is_offered(settings: Settings, user_cache: Path) -> None:
    offered = models(settings)
    assert offered[BUNDLED_MODEL] == str(MODEL)
    assert LLM not in offered
    with pytest.raises(InputError, match=f"'{LLM}' is not an available model"):
        model_of(settings, LLM)


def test_the_language_model_is_offered_once_it_is_there(settings: Settings, cached_llm: Path) -> None:
    assert list(models(settings))[:2] == [BUNDLED_MODEL, LLM]
    assert model_of(settings, LLM) == str(cached_llm)
    config, faults, _ = read_form(settings, {"model": LLM, "data": BUNDLED_DATA, "chat": "true"})
    assert faults == {}
    assert config is not None
    assert config.model == str(cached_llm)
