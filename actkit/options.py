"""Options of an extraction as typed keyword arguments, for editors and type checkers."""

from pathlib import Path
from typing import Any, Literal, TypedDict

from .config import Generation, Tracking
from .layer_spec import Spec

Names = tuple[str, ...] | list[str] | str


class Options(TypedDict, total=False):
    """Every option of :class:`~actkit.config.Config`, with the types that it accepts."""

    model: str | Path
    adapter: str | Path | None
    data: str | Path
    out: str | Path
    layers: Spec
    languages: Names | None
    text_column: str
    text_columns: dict[str, str] | str | None
    language_column: str
    id_column: str
    labels: Names | None
    image_column: str | None
    image_root: str | Path | None
    on_bad_row: Literal["raise", "skip"]
    streaming: bool
    split: str | None
    subset: str | None
    category_column: str
    categories: Names | None
    max_per_category: int | None
    chat: bool | None
    system: str | None
    template: str | None
    limit: int | None
    max_tokens: int | None
    keep_tokens: Literal["all", "last", "content", "mean"]
    generate: Generation | dict[str, Any] | str | None
    batch_size: int | Literal["auto"]
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    )
    quantization: Literal["8bit", "4bit"] | None
    revision: str | None
    save: Names
    storage: Literal["exact", "bfloat16", "float16"]
    sparse: int | None
    on_nonfinite: Literal["keep", "zero", "raise"]
    whiten: bool
    memory_budget: int | Literal["auto"]
    window_samples: int
    wandb: Tracking | dict[str, Any] | str | None
