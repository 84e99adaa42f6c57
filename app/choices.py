"""What a user of the app can choose from: models, files of prompts, and what their columns seem to be."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actkit.demo import CAPTIONS, MODEL
from actkit.errors import Fault, InputError
from actkit.tables import FORMATS, Table, read_table

from .confining import inside
from .settings import Settings

BUNDLED_MODEL = "the bundled model"
BUNDLED_DATA = "the bundled captions"
_MOST = 500  # of each kind
_LANGUAGE = {"language", "lang", "locale"}
_TEXT = ("text", "caption", "prompt", "sentence", "question", "content")
_NAMES = {"sample_id", "id", "uid", "key", "index"}


def models(settings: Settings) -> dict[str, str]:
    """Return the models that can be chosen: what is shown, and what an extraction is told."""
    found = {BUNDLED_MODEL: str(MODEL)}
    for folder in settings.models:
        for config in sorted([*folder.glob("*/config.json"), *folder.glob("*/*/config.json")])[:_MOST]:
            own = config.parent.resolve()
            if own.is_relative_to(folder):  # links lead nowhere else
                found[str(config.parent.relative_to(folder))] = str(own)
    for name in _cached():
        found.setdefault(name, name)
    return found


def model_of(settings: Settings, shown: str) -> str:
    """Return what an extraction is told of a choice, or of an id that was typed.

    Raises
    ------
    InputError
        Where there is no such model, or none may be typed.
    """
    known = models(settings)
    if shown in known:
        return known[shown]
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", shown) and ".." not in shown
    if settings.typed_models and is_id:
        return shown
    mend = "choose one of the list, or type a Hugging Face id" if settings.typed_models else "choose one"
    raise InputError([Fault("model", f"{shown!r} is no model that can be chosen", mend)])


def data_files(settings: Settings) -> dict[str, Path]:
    """Return the files of prompts that can be chosen."""
    found = {BUNDLED_DATA: CAPTIONS}
    if settings.data.is_dir():
        paths = [path for path in settings.data.rglob("*") if path.suffix.lower() in FORMATS]
        for path in sorted(paths)[:_MOST]:
            if path.is_file() and path.resolve().is_relative_to(settings.data.resolve()):
                found[str(path.relative_to(settings.data))] = path
    return found


def data_of(settings: Settings, shown: str) -> Path:
    """Return the file of a choice.

    Raises
    ------
    InputError
        Where there is none.
    """
    if shown == BUNDLED_DATA:
        return CAPTIONS
    path = inside(settings.data, shown, "data")
    if path.suffix.lower() not in FORMATS or not path.is_file():
        raise InputError([Fault("data", f"{shown!r} is no file of prompts", "choose one of the list")])
    return path


@dataclass(frozen=True)
class Preview:
    """The first rows of a file, and what its columns seem to be."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_rows: int
    text: str
    language: str | None
    languages: tuple[str, ...]
    name: str | None
    labels: tuple[str, ...]


def preview(settings: Settings, path: Path) -> Preview:
    """Read a file of prompts.

    Raises
    ------
    InputError
        Where it cannot be read, or is too large to be looked at here.
    """
    if path.stat().st_size > settings.max_preview_bytes:
        size = f"is larger than {settings.max_preview_bytes:,} bytes"
        raise InputError([Fault(path.name, size, "start it in a shell, or set ACTKIT_MAX_PREVIEW_BYTES")])
    table, faults = read_table(path)
    if table is None:
        raise InputError(faults, f"{path.name} cannot be read")
    return _look(table, settings)


def _look(table: Table, settings: Settings) -> Preview:
    columns = tuple(table.columns)
    lower = {name.lower(): name for name in columns}
    language = next((lower[name] for name in _LANGUAGE if name in lower), None)
    texts = [name for name in columns if table.holds_text(name)]
    text = (
        next((lower[name] for name in _TEXT if name in lower), None) or _longest(table, texts) or columns[0]
    )
    name = next((lower[own] for own in _NAMES if own in lower), None)
    cells = table.columns[language] if language else []
    rows = [
        tuple(_cell(table.columns[own][row], settings.preview_characters) for own in columns)
        for row in range(min(len(table), settings.preview_rows))
    ]
    return Preview(
        columns=columns,
        rows=tuple(rows),
        n_rows=len(table),
        text=text,
        language=language,
        languages=tuple(dict.fromkeys(str(cell) for cell in cells if cell is not None))[:50],
        name=name,
        labels=tuple(own for own in columns if own not in (text, language, name)),
    )


def _longest(table: Table, names: list[str]) -> str | None:
    """Return the column whose first cells are the longest."""
    sizes = {name: sum(len(str(cell or "")) for cell in table.columns[name][:50]) for name in names}
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _cell(value: Any, most: int) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _cached() -> list[str]:
    """Return the ids of complete models in the local cache of Hugging Face."""
    try:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError:  # the core alone is installed
        return []
    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return []
    return sorted(
        found.repo_id
        for found in repositories
        if found.repo_type == "model"
        and any(file.file_name == "config.json" for revision in found.revisions for file in revision.files)
    )[:_MOST]
