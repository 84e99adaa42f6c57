"""The model that a cube was extracted with, loaded again with its head."""

import json
from dataclasses import dataclass
from pathlib import Path

import xarray as xr
from transformers import PreTrainedTokenizerBase

from ..config import Config
from ..errors import Fault
from ..extraction.models.architecture import Architecture, read_architecture
from ..extraction.models.checkpoint import Checkpoint, find_checkpoint
from ..extraction.models.loader import LoadedModel, check_model_options, load_model
from ..extraction.prompts.processor import load_tokenizer
from ..schema import current_options

# options of a run that determine what its model computes
_OPTIONS = ("attn_implementation", "batch_size", "device_map", "dtype", "quantization")


@dataclass(frozen=True)
class CubeModel:
    """A model with a language modelling head, which was checked and can be loaded.

    Parameters
    ----------
    checkpoint, architecture
        The model.
    config
        Options of the run that determine what the model computes.
    tokenizer
        Its tokenizer.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    config: Config
    tokenizer: PreTrainedTokenizerBase

    def load(self) -> LoadedModel:
        """Load the weights."""
        return load_model(self.checkpoint, self.architecture, self.config, head=True)


def model_name(cube: xr.Dataset, model: str | Path | None) -> tuple[str, list[Fault]]:
    """Return the name of the model that is asked for, by default that of the cube; also return faults."""
    name = str(cube.attrs.get("model", "")) if model is None else str(model)
    return name, [] if name else [Fault("model", "the cube names no model", "give its name or folder")]


def find_model(cube: xr.Dataset, model: str | Path, device: str) -> tuple[CubeModel | None, list[Fault]]:
    """Find a model, and check that it can be loaded as for the cube; also return faults.

    Parameters
    ----------
    cube
        From :func:`actkit.canonical.as_cube`.
    model
        Name, folder or GGUF file of the model, as for :func:`actkit.extract`.
    device
        Device of the model.
    """
    options = current_options(json.loads(str(cube.attrs.get("options", "{}"))))
    kept = {name: options[name] for name in _OPTIONS if name in options}
    revision = cube.attrs.get("model_revision") if str(model) == cube.attrs.get("model") else None
    config = Config(
        model=str(model), data="cube", out="cube", adapter=cube.attrs.get("adapter"), device=device, **kept
    )
    checkpoint, faults = find_checkpoint(config.model, _commit(revision), adapter=config.adapter)
    if checkpoint is None:
        return None, faults
    architecture, found = read_architecture(checkpoint)
    faults += found
    if architecture is not None and not architecture.can_generate:
        what = f"`{architecture.full.model_type}` is an encoder, which predicts no next token"
        faults.append(Fault("model", what, "give a model that generates text, if the cube is of one"))
    faults += check_model_options(architecture, config, checkpoint)
    tokenizer, found = load_tokenizer(checkpoint)
    faults += found
    if architecture is None or tokenizer is None:
        return None, faults
    return CubeModel(checkpoint, architecture, config, tokenizer), faults


def _commit(revision: object) -> str | None:
    """Return a revision that names a commit of a Hugging Face id; folders have a SHA-256 instead."""
    return str(revision) if revision is not None and len(str(revision)) == 40 else None
