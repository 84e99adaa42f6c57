"""What can be asked of an extraction: one model for Python, YAML, the shell and the app."""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from . import layers as grammar
from .errors import Fault
from .schema import SAVABLE

MB = 2**20


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _paired(value: Any, form: str, noun: str) -> Any:
    """Read the pairs that the shell gives as one text."""
    if not isinstance(value, str):
        return value
    pairs = [[side.strip() for side in pair.split("=", 1)] for pair in value.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"write {form}")
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise ValueError(f"names a {noun} twice")
    return settings


class _ContradictionError(ValueError):
    """Options that contradict each other."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


class Generation(BaseModel):
    """How each prompt is continued."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(ge=1, le=100_000, description="most tokens to generate, 1 to 100,000")
    do_sample: bool = Field(False, description="draw tokens, rather than take the likeliest one")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="temperature of the draw, above 0")
    top_p: float = Field(1.0, gt=0, le=1, description="total of the likeliest tokens to draw from, up to 1")
    top_k: int | None = Field(None, ge=1, description="number of the likeliest tokens to draw from")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the draw, from 0 to 4294967295")

    _whole = field_validator("max_new_tokens", "top_k", "seed", mode="before")(_whole_number)

    @model_validator(mode="after")
    def _drawn(self) -> "Generation":
        unused = {"temperature", "top_p", "top_k", "seed"} & self.model_fields_set
        if unused and not self.do_sample:
            raise ValueError(f"set do_sample: true, without which nothing uses {', '.join(sorted(unused))}")
        return self


class Tracking(BaseModel):
    """Where Weights & Biases shows a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str = Field(
        pattern=r"^[^/\\#?%:]{1,128}$",
        description="name of the project, of up to 128 characters and none of / \\ # ? % :",
    )
    entity: str | None = Field(
        None, min_length=1, description="user or team that owns the project; your default one if left out"
    )
    name: str | None = Field(
        None, min_length=1, description="name to show; that of the run folder by default"
    )
    group: str | None = Field(
        None, min_length=1, description="group to show it in; the name of the run folder by default"
    )
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="online (the default, unless WANDB_MODE says otherwise), or offline, for `wandb sync`",
    )


class Config(BaseModel):
    """Everything an extraction is told.

    Notes
    -----
    Frozen: a run folder keeps its copy in ``config.yaml``, and a rerun must ask for the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Hugging Face id, or folder of a model")
    data: str = Field(
        min_length=1,
        description="CSV, TSV, JSONL or Parquet file of prompts; folder or pattern of such shards; "
        "or Hugging Face dataset",
    )
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
    image_column: str | None = Field(None, description="column of the images: paths, or encoded images")
    image_root: str | None = Field(
        None, description="folder below which image paths lie; that of the data by default"
    )
    on_bad_row: Literal["raise", "skip"] = Field(
        "raise", description="what to do with a row that cannot be used: raise, or skip and list it"
    )
    streaming: bool = Field(False, description="read a dataset as a stream, in constant memory")
    split: str | None = Field(None, description="split of a dataset; train by default")
    subset: str | None = Field(None, description="configuration of a Hugging Face dataset")
    category_column: str = Field("category", description="column that names the category of a row")
    categories: tuple[str, ...] | None = Field(None, description="categories to keep; all by default")
    max_per_category: int | None = Field(None, ge=1, description="most samples of each category")
    chat: bool | None = Field(
        None, description="put prompts into the chat template of the model; by default, those with images"
    )
    system: str | None = Field(None, min_length=1, description="system prompt of the chat")
    template: str | None = Field(None, description="words around each text, which stands at {text}")
    limit: int | None = Field(
        None,
        ge=1,
        description="how many samples to take, from the first on, all languages together",
    )
    max_tokens: int | None = Field(None, ge=1, description="most tokens of a prompt; longer ones are cut")
    tokens: Literal["all", "last", "content", "mean"] = Field(
        "all",
        description="positions to keep: all, last (the last one), content, or mean (over content tokens)",
    )
    generate: Generation | None = Field(
        None,
        description="how to continue each prompt: max_new_tokens=20,do_sample=true,temperature=0.7,seed=0",
    )
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
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None,
        description="how accelerate spreads the weights over all devices: auto, balanced, balanced_low_0 "
        "or sequential",
    )
    attn_implementation: str | None = Field(
        None,
        pattern=r"^(eager|sdpa|flash_attention_2|flash_attention_3|flex_attention)$",
        description="how attention is computed: eager, sdpa, flash_attention_2 or _3, flex_attention",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="precision in which bitsandbytes loads the weights: 8bit or 4bit"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hugging Face id")
    save: tuple[str, ...] = Field(SAVABLE, description="variables to keep")
    storage: Literal["exact", "bfloat16", "float16"] = Field(
        "exact", description="rounding of what is kept of each token: exact, bfloat16 or float16"
    )
    on_nonfinite: Literal["keep", "zero", "raise"] = Field(
        "keep", description="what to do with NaN and Inf values: keep, zero or raise; they are counted anyway"
    )
    whiten: bool = Field(
        False, description="also gather what whitening needs, by language and layer; 8 × hidden² bytes each"
    )
    memory_budget: int | Literal["auto"] = Field(
        "auto",
        description="host memory for the two windows that are held at once, in MB, or auto: 1024, or as "
        "much as two batches take on a device of its own",
    )
    window_samples: int = Field(
        512, ge=1, description="most samples of a window: the unit of saving and resuming"
    )
    wandb: Tracking | None = Field(
        None,
        description="where Weights & Biases shows the run: project=NAME,entity=TEAM,group=NAME,mode=offline",
    )

    @field_validator("model", "data", "out", "image_root", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value

    @field_validator("data", "out", "image_root")
    @classmethod
    def _local(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError(f"`{value}` is not on this machine; only local paths can be used yet")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | list | tuple | range):
            raise ValueError(f"write {grammar.GRAMMAR}")
        _, faults = grammar.parse(value)
        if faults:
            raise ValueError("; ".join(fault.told for fault in faults))
        return str(value) if isinstance(value, str | int) else " ".join(map(str, value))

    @field_validator("languages", "labels", "save", "categories", mode="before")
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
        return _paired(value, "language=column,language=column", "language")

    @field_validator("languages", "text_columns", "categories")
    @classmethod
    def _some(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and not value:
            noun = "category" if info.field_name == "categories" else "language"
            raise ValueError(f"names no {noun}; leave it out to take all")
        return value

    @field_validator("template")
    @classmethod
    def _place(cls, value: str | None) -> str | None:
        if value is not None and value.count("{text}") != 1:
            raise ValueError("has to hold {text} once, where the text belongs")
        return value

    @field_validator("generate", mode="before")
    @classmethod
    def _assignments(cls, value: Any) -> Any:
        return _paired(value, "max_new_tokens=20, and more such pairs after a comma", "setting")

    @field_validator("wandb", mode="before")
    @classmethod
    def _tracking(cls, value: Any) -> Any:
        return _paired(value, "project=NAME, and more such pairs after a comma", "setting")

    @model_validator(mode="after")
    def _together(self) -> "Config":
        """Refuse options that contradict each other."""
        faults = []
        if self.system is not None and self.chat is False:
            mend = "leave out chat: false"
            faults.append(Fault("system", "a system prompt needs the chat template", mend))
        if self.template is not None and self.chats:
            mend = "put its words into the texts"
            faults.append(Fault("template", "cannot be combined with the chat template", mend))
        if self.image_column is not None and self.chat is False:
            mend = "leave out chat: false"
            faults.append(Fault("chat", "images stand in the chat template", mend))
        if self.whiten and "residual" not in self.save:
            faults.append(Fault("whiten", "needs what `residual` keeps", "add residual to save"))
        if self.device_map is not None and self.device != "auto":
            faults.append(Fault("device_map", "chooses the devices itself", "leave out device"))
        if faults:
            raise _ContradictionError(faults)
        return self

    @property
    def image_folder(self) -> Path:
        """The folder below which image paths lie."""
        return Path(self.image_root) if self.image_root else Path(self.data).parent

    @property
    def chats(self) -> bool:
        """Whether prompts are put into the chat template."""
        return bool(self.chat) or self.system is not None or self.image_column is not None

    _whole = field_validator(
        "limit",
        "max_tokens",
        "max_per_category",
        "batch_size",
        "memory_budget",
        "window_samples",
        mode="before",
    )(_whole_number)

    @field_validator("memory_budget")
    @classmethod
    def _two(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 2 <= value <= 2**20:
            raise ValueError(f"{value} is not possible (give 2 to {2**20:,} MB, or auto)")
        return value

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("a batch holds 1 prompt or more")
        return value

    def to_yaml(self) -> str:
        """Return the settings that differ from the defaults, as YAML that `read_yaml` reads."""
        asked = self.model_dump(mode="json", exclude_defaults=True)
        # the line breaks of Unicode would be folded unless escaped
        plain = json.dumps(asked, ensure_ascii=False).isprintable()
        return yaml.safe_dump(asked, allow_unicode=plain, sort_keys=False)


# options that have settings of their own
_SETTINGS: dict[str, type[BaseModel]] = {"generate": Generation, "wandb": Tracking}


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
    placeholders: dict[str, Any] = {}
    faults: list[Fault] = []
    while True:  # contradictions are looked for once every option is right by itself
        try:
            config = Config(**placeholders, **given)
            return (None if placeholders else config), faults
        except ValidationError as error:
            details: list[dict[str, Any]] = [dict(detail) for detail in error.errors()]
        found = [fault for detail in details for fault in _faults(detail)]
        # a union reports each of its members: one fault an option is enough
        faults += dict.fromkeys(found)
        bad = {str(detail["loc"][0]) for detail in details if detail["loc"]} or {
            fault.where for fault in found
        }
        given = {name: value for name, value in given.items() if name not in bad}
        placeholders |= {name: "-" for name in ("model", "data", "out") if name in bad}


def _faults(detail: dict[str, Any]) -> list[Fault]:
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, _ContradictionError):
        return error.faults
    option, *inner = map(str, detail["loc"])
    fields = Config.model_fields
    where = name = option
    if inner and option in _SETTINGS:
        fields, name = _SETTINGS[option].model_fields, inner[0]
        where = f"{option}.{name}"
    match detail["type"]:
        case "missing":
            return [Fault(where, "is missing", f"give {fields[name].description}")]
        case "extra_forbidden":
            near = difflib.get_close_matches(name, fields, n=1)
            known = f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}"
            return [Fault(where, "is no option", known)]
        case "value_error":
            return [Fault(where, str(error))]
        case "bool_parsing" | "bool_type":
            return [Fault(where, f"{detail['input']!r} is not possible", "give true or false")]
        case _:
            return [Fault(where, f"{detail['input']!r} is not possible", f"give {fields[name].description}")]
