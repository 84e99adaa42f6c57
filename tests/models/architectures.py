"""Small random models of every architecture in the model matrix."""

import shutil
from pathlib import Path

from actkit.demo import MODEL

from .decoders import DECODERS
from .others import OTHERS

ARCHITECTURES = DECODERS | OTHERS


def build(name: str, folder: Path) -> Path:
    """Save a small random model of an architecture, with the shared tokenizer, to a folder.

    No parameter keeps its initial value: omitting a bias of zero or a norm of one would not be noticed.
    """
    import torch
    import transformers as tf

    architecture = ARCHITECTURES[name]
    config = getattr(tf, architecture.config)(**architecture.options)
    torch.manual_seed(0)
    model = getattr(tf, architecture.model)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(MODEL) / file, folder / file)
    return folder
