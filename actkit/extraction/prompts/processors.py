"""Load what turns texts and images into the input of a model, from its own files and no others."""

import hashlib
from typing import Any

from transformers import (
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from ...config import Config
from ...errors import Fault
from ..models.checkpoints import Checkpoint
from .templates import Frame, chat_frame, own_frame, reason_of, undated

_VOCABULARIES = ("tokenizer.json", "tekken.json", "tiktoken.model")
_LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_tokenizer(checkpoint: Checkpoint) -> tuple[PreTrainedTokenizerBase | None, list[Fault]]:
    """Load the tokenizer of a checkpoint."""
    where = f"model {checkpoint.name}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **_LOCAL)
    except Exception as error:  # each tokenizer class raises its own
        return None, [Fault(where, f"its tokenizer cannot be loaded: {reason_of(error)}", "mend its files")]
    # without its vocabulary a tokenizer may load all the same, and call every word unknown
    files = set(tokenizer.vocab_files_names.values())
    if files and not any((checkpoint.folder / file).is_file() for file in (*files, *_VOCABULARIES)):
        what = f"has no tokenizer ({' or '.join(sorted(files))})"
        return None, [Fault(where, what, "download the whole model")]
    return tokenizer, []


def load_processor(
    checkpoint: Checkpoint, config: PreTrainedConfig
) -> tuple[ProcessorMixin | None, list[Fault]]:
    """Load the processor of a model that sees images.

    Parameters
    ----------
    checkpoint
        Where it lies.
    config
        The config of the whole model.

    Returns
    -------
    processor : ProcessorMixin or None
    faults : list of Fault
        The model takes no images, or its processor cannot be loaded.
    """
    kind = _processor_class(config)
    if kind is None:
        what = f"the model takes no images (`{config.model_type}` has no image processor)"
        return None, [Fault("image_column", what, "leave it out, or choose a model that sees")]
    # the video part needs torchvision, which images do not
    kinds = [AutoProcessor] + ([_without_video(kind)] if "video_processor" in kind.get_attributes() else [])
    why = ""
    for kind in kinds:
        try:
            processor = kind.from_pretrained(checkpoint.folder, **_LOCAL)
        except Exception as error:  # each processor class raises its own
            why = reason_of(error)
            continue
        if isinstance(processor, ProcessorMixin):
            return processor, []
        why = why or "it has none"  # but a part of one, such as a tokenizer
    what = f"its processor cannot be loaded: {why}"
    return None, [Fault(f"model {checkpoint.name}", what, "mend its files, or leave out image_column")]


def _processor_class(config: PreTrainedConfig) -> Any:
    """Return the class of the processor of a model that sees images; None of one that does not."""
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    return kind if kind is not None and "image_processor" in kind.get_attributes() else None


def _without_video(kind: Any) -> Any:
    attributes = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _cls: attributes)})


def find_frame(
    config: Config, tokenizer: PreTrainedTokenizerBase, processor: Any
) -> tuple[Frame | None, list[Fault]]:
    """Find out which words stand around each text.

    Parameters
    ----------
    config
        Its ``template``, ``chat``, ``system`` and ``image_column`` are used.
    tokenizer
        Has a chat template, where there are no images.
    processor
        None, or has a chat template.

    Returns
    -------
    frame : Frame or None
        None where a prompt is nothing but its text.
    faults : list of Fault
    """
    if not config.chats and config.template is None:
        return None, []
    option = "template" if config.template is not None else "chat"
    if not tokenizer.is_fast:
        what = f"`{type(tokenizer).__name__}` does not say where its tokens come from"
        return None, [Fault(option, f"{what}: text and template cannot be told apart", "leave it out")]
    if config.template is not None:
        return own_frame(config.template), []
    owner: Any = tokenizer if processor is None else processor
    template = _template(owner)
    if template is None:
        option = next(
            name for name in ("image_column", "system", "chat") if getattr(config, name) is not None
        )
        what = f"the {'tokenizer' if processor is None else 'processor'} has no chat template"
        return None, [Fault(option, what, "leave it out, or use a model that was made for chats")]
    template = undated(template)

    def render(messages: list[dict[str, Any]]) -> str:
        string: str = owner.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        return string

    return chat_frame(render, system=config.system, image=processor is not None)


def _template(owner: Any) -> str | None:
    templates = owner.chat_template
    return templates.get("default") if isinstance(templates, dict) else templates


def leaves_special(frame: Frame | None, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> bool:
    """Tell whether a chat template leaves the special tokens to the tokenizer.

    Processors add them where a template does not begin with the first of them, as that of LLaVA;
    tokenizers never do.
    """
    first = tokenizer.bos_token
    begins = first is not None and frame is not None and frame.before.startswith(str(first))
    return _processor_class(config) is not None and not begins


def describe(
    config: Config, tokenizer: PreTrainedTokenizerBase, processor: Any, frame: Frame | None
) -> dict[str, str]:
    """Return what a cube says of how its prompts were made."""
    said = {"tokenizer": type(tokenizer).__name__}
    if frame is not None:
        said["prompt"] = str(frame)
    if config.chats:
        template = _template(tokenizer if processor is None else processor) or ""
        said["chat_template_sha256"] = hashlib.sha256(template.encode()).hexdigest()
    if processor is not None:
        said["processor"] = type(processor).__name__
        said["image_processor"] = type(processor.image_processor).__name__
    return said
