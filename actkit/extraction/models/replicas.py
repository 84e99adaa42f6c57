"""One model several times, with its weights in memory once."""

import copy
from itertools import chain

from .loading import LoadedModel


def replicate(model: LoadedModel) -> LoadedModel:
    """Return a model with modules of its own, so that a pass through it meets no hook of another thread.

    Parameters
    ----------
    model
        Its weights and buffers are shared; where a pass puts another buffer in the place of one, as some
        rotary embeddings do, it does so in one of the two.
    """
    tensors = chain(model.model.parameters(), model.model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
