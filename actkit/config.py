"""Options of an extraction: one model for Python, YAML, the shell and the app."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from . import layer_spec
from .errors import Fault
from .object_urls import is_url, url_faults
from .schema import SAVABLE, SAVED


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _parse_pairs(value: Any, form: str, noun: str) -> Any:
    """Parse pairs that the shell passes as one string."""
    if not isinstance(value, str):
        return value
    pairs = [[side.strip() for side in pair.split("=", 1)] for pair in value.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"write {form}")
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise ValueError(f"names a {noun} twice")
    return settings


class ContradictionError(ValueError):
    """Options that contradict each other."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


class Generation(BaseModel):
    """Options for generating a continuation of each prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(
        ge=1, le=100_000, description="maximum number of tokens to generate, 1 to 100,000"
    )
    do_sample: bool = Field(False, description="sample tokens instead of taking the most likely one")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="sampling temperature, above 0")
    top_p: float = Field(
        1.0, gt=0, le=1, description="total probability of the most likely tokens to sample from, up to 1"
    )
    top_k: int | None = Field(None, ge=1, description="number of the most likely tokens to sample from")
    seed: int = Field(0, ge=0, lt=2**32, description="random seed, from 0 to 4294967295")

    _whole = field_validator("max_new_tokens", "top_k", "seed", mode="before")(_whole_number)

    @model_validator(mode="after")
    def _check_sampling(self) -> "Generation":
        unused = {"temperature", "top_p", "top_k", "seed"} & self.model_fields_set
        if unused and not self.do_sample:
            raise ValueError(f"set do_sample: true; nothing uses {', '.join(sorted(unused))} without it")
        return self


class Tracking(BaseModel):
    """Options for logging a run to Weights & Biases."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str = Field(
        pattern=r"^[^/\\#?%:]{1,128}$",
        description="project name, of up to 128 characters, without / \\ # ? % :",
    )
    entity: str | None = Field(
        None, min_length=1, description="user or team that owns the project; your default entity if left out"
    )
    name: str | None = Field(
        None, min_length=1, description="display name of the run; the name of the run folder by default"
    )
    group: str | None = Field(
        None, min_length=1, description="group of the run; the name of the run folder by default"
    )
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="online (the default unless WANDB_MODE is set), or offline, to upload with `wandb sync`",
    )


class Config(BaseModel):
    """All options of an extraction.

    Notes
    -----
    Frozen: a run folder keeps a copy in ``config.yaml``, and a rerun must use the same options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="Hugging Face model id, model folder, or GGUF file")
    adapter: str | None = Field(
        None, min_length=1, description="folder of a LoRA adapter to merge into the model"
    )
    data: str = Field(
        min_length=1,
        description="CSV, TSV, JSON, JSONL, Parquet or .xlsx file of prompts; folder or pattern of "
        "Parquet or JSONL shards; or Hugging Face dataset",
    )
    out: str = Field(
        min_length=1,
        description="run folder to create or continue, or its URL in an object store",
    )
    layers: str = Field("all", description=f"layers to capture: {layer_spec.GRAMMAR}")
    languages: tuple[str, ...] | None = Field(None, description="languages to keep; all by default")
    text_column: str = Field("text", description="column of the texts or chats, one sample per row")
    text_columns: dict[str, str] | None = Field(
        None, description="language=column pairs, if a row holds texts in several languages"
    )
    language_column: str = Field("language", description="column of the language names")
    id_column: str = Field("sample_id", description="column of the sample ids")
    labels: tuple[str, ...] | None = Field(
        None, description="columns to keep as labels; all others by default"
    )
    image_column: str | None = Field(None, description="column of the images: paths or encoded images")
    image_root: str | None = Field(
        None, description="folder that image paths are relative to; the folder of the data by default"
    )
    on_bad_row: Literal["raise", "skip"] = Field(
        "raise", description="treatment of rows that cannot be used: raise, or skip (and list them)"
    )
    streaming: bool = Field(False, description="stream the dataset, in constant memory")
    split: str | None = Field(None, description="split of the dataset; train by default")
    subset: str | None = Field(None, description="configuration of a Hugging Face dataset")
    category_column: str = Field("category", description="column of the category names")
    categories: tuple[str, ...] | None = Field(None, description="categories to keep; all by default")
    max_per_category: int | None = Field(None, ge=1, description="maximum number of samples per category")
    chat: bool | None = Field(
        None, description="apply the model's chat template; by default, only to prompts with images"
    )
    system: str | None = Field(None, min_length=1, description="system prompt for the chat template")
    template: str | None = Field(
        None, description="template around each text, with {text} where the text goes"
    )
    limit: int | None = Field(
        None, ge=1, description="number of samples to take, in the order of the data, over all languages"
    )
    max_tokens: int | None = Field(
        None, ge=1, description="maximum number of tokens per prompt; longer ones are truncated"
    )
    keep_tokens: Literal["all", "last", "content", "mean"] = Field(
        "all",
        description="positions to keep: all, last (the last one), content, or mean (over content tokens)",
    )
    generate: Generation | None = Field(
        None,
        description="options for continuing each prompt: "
        "max_new_tokens=20,do_sample=true,temperature=0.7,seed=0",
    )
    batch_size: int | Literal["auto"] = Field(
        "auto", description="number of prompts per forward pass, or auto"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="dtype of the weights: auto (that of the checkpoint), float32, bfloat16 or float16",
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None,
        description="distribution of the weights over all devices by accelerate: auto, balanced, "
        "balanced_low_0 or sequential",
    )
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = Field(
        None,
        description="attention implementation: eager, sdpa, flash_attention_2, flash_attention_3 or "
        "flex_attention",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="bitsandbytes quantization of the weights: 8bit or 4bit"
    )
    revision: str | None = Field(None, description="branch, tag or commit of the Hugging Face model")
    save: tuple[str, ...] = Field(SAVED, description="variables to save")
    storage: Literal["exact", "bfloat16", "float16"] = Field(
        "exact", description="rounding of the stored activations of each token: exact, bfloat16 or float16"
    )
    sparse: int | None = Field(
        None,
        ge=1,
        description="number of largest absolute values to keep of each token's vectors, with their indices, "
        "in place of the vectors",
    )
    on_nonfinite: Literal["keep", "zero", "raise"] = Field(
        "keep", description="treatment of NaN and Inf values: keep, zero or raise; they are always counted"
    )
    whiten: bool = Field(
        False,
        description="also accumulate the moments for whitening: 8 × hidden² bytes per language and layer",
    )
    memory_budget: int | Literal["auto"] = Field(
        "auto",
        description="host memory in MB for the two windows held at once, or auto: 1024, or more if two "
        "batches of a GPU need more",
    )
    window_samples: int = Field(
        512, ge=1, description="maximum number of samples per window: the unit of saving and resuming"
    )
    wandb: Tracking | None = Field(
        None,
        description="logging to Weights & Biases: project=NAME,entity=TEAM,group=NAME,mode=offline",
    )

    @field_validator("model", "adapter", "data", "out", "image_root", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value

    @field_validator("out")
    @classmethod
    def _writable(cls, value: str) -> str:
        if is_url(value) and (faults := url_faults(value)):
            raise ValueError("; ".join(fault.message for fault in faults))
        return value

    @field_validator("data", "image_root")
    @classmethod
    def _local(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError(f"`{value}` is not on this machine; only local paths are supported")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | list | tuple | range):
            raise ValueError(f"write {layer_spec.GRAMMAR}")
        _, faults = layer_spec.parse(value)
        if faults:
            raise ValueError("; ".join(fault.message for fault in faults))
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
        return _parse_pairs(value, "language=column,language=column", "language")

    @field_validator("languages", "text_columns", "categories")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and not value:
            noun = "category" if info.field_name == "categories" else "language"
            raise ValueError(f"names no {noun}; leave it out to take all")
        return value

    @field_validator("template")
    @classmethod
    def _has_text(cls, value: str | None) -> str | None:
        if value is not None and value.count("{text}") != 1:
            raise ValueError("must contain {text} exactly once, where the text goes")
        return value

    @field_validator("generate", mode="before")
    @classmethod
    def _assignments(cls, value: Any) -> Any:
        return _parse_pairs(value, "max_new_tokens=20, and further pairs separated by commas", "setting")

    @field_validator("wandb", mode="before")
    @classmethod
    def _tracking(cls, value: Any) -> Any:
        return _parse_pairs(value, "project=NAME, and further pairs separated by commas", "setting")

    @model_validator(mode="after")
    def _check_contradictions(self) -> "Config":
        """Reject options that contradict each other."""
        faults = []
        if self.system is not None and self.chat is False:
            hint = "leave out chat: false"
            faults.append(Fault("system", "a system prompt needs the chat template", hint))
        if self.template is not None and self.chats:
            hint = "put its wording into the texts"
            faults.append(Fault("template", "cannot be combined with the chat template", hint))
        if self.image_column is not None and self.chat is False:
            hint = "leave out chat: false"
            faults.append(Fault("chat", "images need the chat template", hint))
        if self.whiten and "residual" not in self.save:
            faults.append(Fault("whiten", "needs `residual`", "add residual to save"))
        if self.whiten and self.sparse is not None:
            faults.append(Fault("whiten", "needs whole vectors", "leave out sparse"))
        if self.device_map is not None and self.device != "auto":
            faults.append(Fault("device_map", "chooses the devices by itself", "leave out device"))
        if faults:
            raise ContradictionError(faults)
        return self

    @property
    def image_folder(self) -> Path:
        """The folder that image paths are relative to."""
        return Path(self.image_root) if self.image_root else Path(self.data).parent

    @property
    def chats(self) -> bool:
        """Whether prompts are rendered with the chat template."""
        return bool(self.chat) or self.system is not None or self.image_column is not None

    _whole = field_validator(
        "limit",
        "max_tokens",
        "max_per_category",
        "batch_size",
        "memory_budget",
        "window_samples",
        "sparse",
        mode="before",
    )(_whole_number)

    @field_validator("memory_budget")
    @classmethod
    def _in_bounds(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 2 <= value <= 2**20:
            raise ValueError(f"{value} is not possible (give 2 to {2**20:,} MB, or auto)")
        return value

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("a batch holds at least 1 prompt")
        return value

    def to_yaml(self) -> str:
        """Return the options that differ from the defaults, as YAML that `read_yaml` reads."""
        options = self.model_dump(mode="json", exclude_defaults=True)
        # Unicode line breaks would be folded unless escaped
        plain = json.dumps(options, ensure_ascii=False).isprintable()
        return yaml.safe_dump(options, allow_unicode=plain, sort_keys=False)
