"""What can be asked of an extraction: one model for Python, YAML, the shell and the app."""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from . import layers as grammar
from .errors import Fault
from .schema import SAVABLE

MB = 2**20


class Config(BaseModel):
    """Everything an extraction is told.

    Notes
    -----
    Frozen: a run folder keeps its copy in ``config.yaml``, and a rerun must ask for the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Hugging Face id, or folder of a model")
    data: str = Field(min_length=1, description="CSV, TSV, JSONL or Parquet file of prompts")
    out: str = Field(min_length=1, description="run folder to write, or to continue")
    layers: str = Field("all", description=f"blocks to keep: {grammar.GRAMMAR}")
    languages: tuple[str, ...] | None = Field(None, description="languages to keep; all by default")
    text_column: str = Field("text", description="column of the texts, where one row is one sample")
    text_columns: dict[str, str] | None = Field(
        None, description="language=column pairs, where one row holds several languages"
    )
    language_column: str = Field("language", description="column that names the language")
    id_column: str = Field("sample_id", description="column that names the sample")
    labels: tuple[str, ...] | None = Field(
        None, description="columns to keep as labels; all others by default"
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="how many samples to take, from the first on, all languages together",
    )
    max_tokens: int | None = Field(None, ge=1, description="most tokens of a prompt; longer ones are cut")
    batch_size: int | Literal["auto"] = Field(
        "auto", description="number of prompts per forward pass, or auto"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, mps, cuda or cuda:N",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="dtype of the weights: auto (the checkpoint's), float32, bfloat16 or float16",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hugging Face id")
    save: tuple[str, ...] = Field(SAVABLE, description="variables to keep")
    storage: Literal["exact", "bfloat16", "float16"] = Field(
        "exact", description="rounding of residual and embedding: exact, bfloat16 or float16"
    )
    window_mb: int = Field(512, ge=1, le=8192, description="most memory of one window of samples, in MB")
    window_samples: int = Field(
        128, ge=1, description="most samples of a window: the unit of saving and resuming"
    )

    @field_validator("model", "data", "out", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value

    @field_validator("data", "out")
    @classmethod
    def _local(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(f"`{value}` is not on this machine; only local paths can be used yet")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | list | tuple | range):
            raise ValueError(f"write {grammar.GRAMMAR}")
        _, faults = grammar.parse(value)
        if faults:
            raise ValueError("; ".join(f"{fault.what} ({fault.mend})" for fault in faults))
        return str(value) if isinstance(value, str | int) else " ".join(map(str, value))

    @field_validator("languages", "labels", "save", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("save")
    @classmethod
    def _savable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in SAVABLE]
        if unknown or not value:
            raise ValueError(f"cannot save {unknown or 'nothing'}; choose from {', '.join(SAVABLE)}")
        return tuple(name for name in SAVABLE if name in value)

    @field_validator("text_columns", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [[side.strip() for side in pair.split("=", 1)] for pair in value.split(",")]
        if any(len(pair) != 2 or not all(pair) for pair in pairs):
            raise ValueError("write language=column,language=column")
        columns = dict(pairs)
        if len(columns) < len(pairs):
            raise ValueError("names a language twice")
        return columns

    @field_validator("languages", "text_columns")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value is not None and not value:
            raise ValueError("names no language; leave it out to take all")
        return value

    @field_validator("limit", "max_tokens", "batch_size", "window_mb", "window_samples", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        if isinstance(value, bool | float):
            raise ValueError(f"{value!r} is no whole number")
        return value

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("a batch holds 1 prompt or more")
        return value

    def to_yaml(self) -> str:
        """Return the settings that differ from the defaults, as YAML that :func:`read_yaml` reads."""
        asked = self.model_dump(mode="json", exclude_defaults=True)
        # the line breaks of Unicode would be folded unless escaped
        plain = json.dumps(asked, ensure_ascii=False).isprintable()
        return yaml.safe_dump(asked, allow_unicode=plain, sort_keys=False)


def check(options: Mapping[str, Any]) -> tuple[Config | None, list[Fault]]:
    """Turn options into a :class:`Config`.

    Parameters
    ----------
    options
        Field names and values; ``None`` values stand for the default.

    Returns
    -------
    config : Config or None
        With the faulty options left out, so that the rest can still be checked; None where even
        that cannot be made.
    faults : list of Fault
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Config(**given), []
    except ValidationError as error:
        # a union reports each of its members: one fault an option is enough
        faults = list(dict.fromkeys(_fault(dict(detail)) for detail in error.errors()))
        bad = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    try:
        return Config(**{name: value for name, value in given.items() if name not in bad}), faults
    except ValidationError:
        return None, faults


def _fault(detail: dict[str, Any]) -> Fault:
    where = ".".join(map(str, detail["loc"]))
    match detail["type"]:
        case "missing":
            return Fault(where, "is missing", f"give {Config.model_fields[where].description}")
        case "extra_forbidden":
            near = difflib.get_close_matches(where, Config.model_fields, n=1)
            known = f"did you mean {near[0]}?" if near else f"known: {', '.join(Config.model_fields)}"
            return Fault(where, "is no option", known)
        case "value_error":
            return Fault(where, str(detail["ctx"]["error"]))
        case _:
            option = where.partition(".")[0]
            expected = Config.model_fields[option].description or ""
            return Fault(option, f"{detail['input']!r} is not possible", f"give {expected}")


def read_yaml(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Read options from a YAML file, without running anything that it names.

    Parameters
    ----------
    path
        The file: a mapping of option names to values.

    Returns
    -------
    options : dict
    faults : list of Fault
        Unreadable file, bad UTF-8, tags, repeated keys; with line numbers.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        return {}, [Fault(str(path), f"cannot be read: {error.strerror}", "check the path")]
    except UnicodeDecodeError as error:
        return {}, [Fault(str(path), f"is not UTF-8 at byte {error.start}", "save it as UTF-8")]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        return {}, [Fault(where, problem, "write plain name: value lines")]
    except (ValueError, RecursionError) as error:  # a NUL in the path, a 13th month, endless brackets
        return {}, [Fault(str(path), f"cannot be read: {error}", "write plain name: value lines")]
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        return {}, [Fault(str(path), "is not a mapping of option names to values", "write name: value lines")]
    return loaded, []


class _Loader(yaml.SafeLoader):
    """YAML without tags, aliases and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag, alias = getattr(event, "tag", None), isinstance(event, yaml.AliasEvent)
        if tag is not None or alias:
            problem = "aliases are refused" if alias else f"tag {tag} is refused"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key}` is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
