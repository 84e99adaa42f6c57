"""Loading of tokenizers, processors and chat templates, only from the files of the model itself."""

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
from ..models.checkpoint import Checkpoint
from ..models.gguf_files import isolate
from .chat_template import Frame, chat_frame, custom_frame, reason_of, with_fixed_date
from .template_process import TemplateProcess
from .vocabulary_files import check_packages, check_vocabulary, named_package

_VOCABULARIES = ("tokenizer.json", "tekken.json", "tiktoken.model")
_LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_tokenizer(checkpoint: Checkpoint) -> tuple[PreTrainedTokenizerBase | None, list[Fault]]:
    """Load the tokenizer of a checkpoint."""
    where = f"model {checkpoint.name}"
    # a GGUF file contains its vocabulary; other files of its folder are not used
    if checkpoint.gguf is None and (faults := check_packages(checkpoint.folder, where)):
        return None, faults
    try:
        with isolate(checkpoint.folder, checkpoint.gguf) as (folder, source):
            tokenizer = AutoTokenizer.from_pretrained(folder, **source, **_LOCAL)
    except Exception as error:  # tokenizer classes raise any exception
        if package := named_package(error):
            return None, [Fault(where, f"its tokenizer needs {package}", f"pip install {package}")]
        return None, [Fault(where, f"its tokenizer cannot be loaded: {reason_of(error)}", "repair its files")]
    if checkpoint.gguf is not None:
        return tokenizer, []
    if faults := check_vocabulary(tokenizer, checkpoint.folder, where):
        return None, faults
    # a tokenizer without its vocabulary may load nevertheless and map every word to unknown
    files = set(tokenizer.vocab_files_names.values())
    if files and not any((checkpoint.folder / file).is_file() for file in (*files, *_VOCABULARIES)):
        problem = f"has no tokenizer ({' or '.join(sorted(files))})"
        return None, [Fault(where, problem, "download the whole model")]
    return tokenizer, []


def load_processor(
    checkpoint: Checkpoint, config: PreTrainedConfig
) -> tuple[ProcessorMixin | None, list[Fault]]:
    """Load the processor of a vision-language model.

    Parameters
    ----------
    checkpoint
        The model.
    config
        Full config of the model.

    Returns
    -------
    processor : ProcessorMixin or None
    faults : list of Fault
        Model that takes no images, or processor that cannot be loaded.
    """
    where, kind = f"model {checkpoint.name}", _processor_class(config)
    if kind is None:
        problem = f"the model takes no images (`{config.model_type}` has no image processor)"
        return None, [Fault("image_column", problem, "leave it out, or choose a vision-language model")]
    if faults := check_packages(checkpoint.folder, where):
        return None, faults
    # the video processor needs torchvision, the image processor does not
    kinds = [AutoProcessor] + ([_without_video(kind)] if "video_processor" in kind.get_attributes() else [])
    reason = package = ""
    for kind in kinds:
        try:
            processor = kind.from_pretrained(checkpoint.folder, **_LOCAL)
        except Exception as error:  # processor classes raise any exception
            reason, package = reason_of(error), named_package(error)
            continue
        if isinstance(processor, ProcessorMixin):
            faults = check_vocabulary(processor.tokenizer, checkpoint.folder, where)
            return (None if faults else processor), faults
        reason = reason or "it has none"  # AutoProcessor returned only a part, such as a tokenizer
    if package:
        return None, [Fault(where, f"its processor needs {package}", f"pip install {package}")]
    problem = f"its processor cannot be loaded: {reason}"
    return None, [Fault(where, problem, "repair its files, or leave out image_column")]


def _processor_class(config: PreTrainedConfig) -> Any:
    """Return the processor class of a vision-language model; None for other models."""
    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    return kind if kind is not None and "image_processor" in kind.get_attributes() else None


def _without_video(kind: Any) -> Any:
    attributes = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _cls: attributes)})


def find_frame(
    config: Config, tokenizer: PreTrainedTokenizerBase, processor: Any
) -> tuple[Frame | None, list[Fault]]:
    """Determine the template around each text.

    Parameters
    ----------
    config
        Options of the run, of which ``template``, ``chat``, ``system`` and ``image_column`` are used.
    tokenizer
        Tokenizer, whose chat template is used if there is no processor.
    processor
        Processor, whose chat template is used, or None.

    Returns
    -------
    frame : Frame or None
        None if prompts have no template.
    faults : list of Fault
        Missing or unusable template.
    """
    if not config.chats and config.template is None:
        return None, []
    option = "template" if config.template is not None else "chat"
    if not tokenizer.is_fast:
        problem = f"`{type(tokenizer).__name__}` does not return the offsets of tokens"
        return None, [Fault(option, f"{problem}, which templates require", "leave it out")]
    if config.template is not None:
        return custom_frame(config.template), []
    owner: Any = tokenizer if processor is None else processor
    template = _template(owner)
    if template is None:
        option = next(
            name for name in ("image_column", "system", "chat") if getattr(config, name) is not None
        )
        problem = f"the {'tokenizer' if processor is None else 'processor'} has no chat template"
        return None, [Fault(option, problem, "leave it out, or use a chat model")]
    template = with_fixed_date(template)
    process = TemplateProcess(template)

    def render(messages: list[dict[str, Any]]) -> str:
        # a chat that ends with the assistant needs no prompt for an answer
        add_prompt = messages[-1]["role"] != "assistant"
        with process.installed():
            string: str = owner.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=add_prompt
            )
        return string

    return chat_frame(render, system=config.system, image=processor is not None)


def _template(owner: Any) -> str | None:
    templates = owner.chat_template
    return templates.get("default") if isinstance(templates, dict) else templates


def leaves_special(frame: Frame | None, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> bool:
    """Return whether the special tokens of a chat are added by the tokenizer rather than the template.

    Processors add them if the template does not start with the BOS token, as in LLaVA; tokenizers never add
    them to chats.
    """
    first = tokenizer.bos_token
    begins = first is not None and frame is not None and frame.before.startswith(str(first))
    return _processor_class(config) is not None and not begins


def describe(
    config: Config, tokenizer: PreTrainedTokenizerBase, processor: Any, frame: Frame | None
) -> dict[str, str]:
    """Return the attributes of a cube that describe how its prompts were encoded."""
    attributes = {"tokenizer": type(tokenizer).__name__}
    if frame is not None:
        attributes["prompt"] = str(frame)
    if config.chats:
        template = _template(tokenizer if processor is None else processor) or ""
        attributes["chat_template_sha256"] = hashlib.sha256(template.encode()).hexdigest()
    if processor is not None:
        attributes["processor"] = type(processor).__name__
        attributes["image_processor"] = type(processor.image_processor).__name__
    return attributes
