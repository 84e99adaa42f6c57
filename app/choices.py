"""Choices offered to users: models, prompt files, and the guessed roles of their columns."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from actkit.chats import chat_fault, readable
from actkit.demo import CAPTIONS, MODEL
from actkit.demo.llm import LLM, llm_folder
from actkit.errors import Fault, InputError
from actkit.regular_files import unpacked_bytes
from actkit.sources import default_labels
from actkit.tables import FORMATS, Table, read_table

from .allowed_paths import inside
from .settings import Settings

BUNDLED_MODEL = "the bundled model"
BUNDLED_DATA = "the bundled captions"
_MOST = 500  # choices of each kind
_LANGUAGE = {"language", "lang", "locale"}
_TEXT = ("text", "caption", "prompt", "sentence", "question", "content", "messages")
_NAMES = {"sample_id", "id", "uid", "key", "index"}


def models(settings: Settings) -> dict[str, str]:
    """Return the available models: displayed name to folder or Hugging Face id."""
    choices = {BUNDLED_MODEL: str(MODEL)}
    if llm := llm_folder():
        choices[LLM] = str(llm)
    for folder in settings.models:
        for config in sorted([*folder.glob("*/config.json"), *folder.glob("*/*/config.json")])[:_MOST]:
            model_folder = config.parent.resolve()
            if model_folder.is_relative_to(folder):  # rejects links that lead outside the folder
                choices[str(config.parent.relative_to(folder))] = str(model_folder)
    for name in _cached():
        choices.setdefault(name, name)
    return choices


def model_of(settings: Settings, shown: str) -> str:
    """Return the folder or Hugging Face id of a choice, or of an id that was typed.

    Raises
    ------
    InputError
        If the choice is unknown, or typed ids are disabled or malformed.
    """
    known = models(settings)
    if shown in known:
        return known[shown]
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", shown) and ".." not in shown
    if settings.typed_models and is_id:
        return shown
    hint = (
        "choose from the list, or type a Hugging Face id" if settings.typed_models else "choose from the list"
    )
    raise InputError([Fault("model", f"{shown!r} is not an available model", hint)])


def data_files(settings: Settings) -> dict[str, Path]:
    """Return the available prompt files."""
    files = {BUNDLED_DATA: CAPTIONS}
    if settings.data.is_dir():
        paths = [path for path in settings.data.rglob("*") if path.suffix.lower() in FORMATS]
        for path in sorted(paths)[:_MOST]:
            if path.is_file() and path.resolve().is_relative_to(settings.data.resolve()):
                files[str(path.relative_to(settings.data))] = path
    return files


def data_of(settings: Settings, shown: str) -> Path:
    """Return the path of a chosen file.

    Raises
    ------
    InputError
        If the file does not exist or its format is unsupported.
    """
    if shown == BUNDLED_DATA:
        return CAPTIONS
    path = inside(settings.data, shown, "data")
    if path.suffix.lower() not in FORMATS or not path.is_file():
        raise InputError([Fault("data", f"{shown!r} is not a prompt file", "choose from the list")])
    return path


@dataclass(frozen=True)
class Preview:
    """First rows of a file, and the guessed roles of its columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_rows: int
    text: str
    language: str | None
    languages: tuple[str, ...]
    name: str | None
    labels: tuple[str, ...]


def preview(settings: Settings, path: Path) -> Preview:
    """Read a prompt file.

    Raises
    ------
    InputError
        If the file cannot be read or is too large for a preview.
    """
    size_in_memory = path.stat().st_size
    if path.suffix.lower() == ".xlsx":
        with suppress(BadZipFile, OSError, ValueError):  # read_table reports the error below
            size_in_memory = unpacked_bytes(path)
    if size_in_memory > settings.max_preview_bytes:
        size = f"is larger than {settings.max_preview_bytes:,} bytes"
        raise InputError(
            [Fault(path.name, size, "start the run from a shell, or increase ACTKIT_MAX_PREVIEW_BYTES")]
        )
    table, faults = read_table(path, settings.max_preview_bytes)
    if table is None:
        raise InputError(faults, f"{path.name} cannot be read")
    return _look(table, settings)


def _look(table: Table, settings: Settings) -> Preview:
    columns = tuple(table.columns)
    lower = {name.lower(): name for name in columns}
    language = next((lower[name] for name in _LANGUAGE if name in lower), None)
    texts = [name for name in columns if table.kind(name) == "text"]
    text = (
        next((lower[name] for name in _TEXT if name in lower), None) or _longest(table, texts) or columns[0]
    )
    name = next((lower[column] for column in _NAMES if column in lower), None)
    cells = table.columns[language] if language else []
    rows = [
        tuple(_cell(table.columns[column][row], settings.preview_characters) for column in columns)
        for row in range(min(len(table), settings.preview_rows))
    ]
    return Preview(
        columns=columns,
        rows=tuple(rows),
        n_rows=len(table),
        text=text,
        language=language,
        languages=tuple(dict.fromkeys(str(cell) for cell in cells if cell))[:50],
        name=name,
        labels=tuple(column for column in default_labels(table) if column not in (text, language, name)),
    )


def _longest(table: Table, names: list[str]) -> str | None:
    """Return the column with the longest text in its first 50 cells."""
    sizes = {name: sum(len(str(cell or "")) for cell in table.columns[name][:50]) for name in names}
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _cell(value: Any, most: int) -> str:
    is_chat = isinstance(value, list) and not chat_fault(value)
    text = "" if value is None else readable(value) if is_chat else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _cached() -> list[str]:
    """Return the ids of models in the local Hugging Face cache."""
    try:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError:  # only the core is installed
        return []
    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return []
    return sorted(
        repository.repo_id
        for repository in repositories
        if repository.repo_type == "model"
        and any(
            file.file_name == "config.json" for revision in repository.revisions for file in revision.files
        )
    )[:_MOST]
