"""Where in a model the components lie: its blocks, and in each the modules whose outputs a block adds."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import ModelError

_POST_NORM = (
    "attention and mlp are what the sublayers give before they are added and normalised: the architecture "
    "normalises each sum, so that they do not add up to residual"
)
_NORMED_STREAM = (
    "attention and mlp are what the sublayers give before they are added: the architecture adds them to the "
    "normalised stream, so that they do not add up to residual"
)


@dataclass(frozen=True)
class _Places:
    """Where some architectures have their attention and mlp: paths inside a block, the first there counts."""

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    # what happens to the stream: a part is added, or a norm, by its path, takes its place
    order: tuple[str, ...] = ("attention", "mlp")
    # what the config must say
    config: Mapping[str, object] = field(default_factory=dict)
    exception: str = ""


# most specific first; the first line whose paths are all there is taken, block by block
_PLACES = (
    # norms after the sublayers, before they are added: GLM-4, T5Gemma; Gemma 2 and 3, OLMo 2; AFMoE
    _Places(("post_self_attn_layernorm",), ("post_mlp_layernorm", "post_feedforward_layernorm")),
    _Places(("post_attention_layernorm",), ("post_feedforward_layernorm", "post_mlp_layernorm")),
    # the sublayers add the stream themselves: BLOOM (Falcon has the same names), MPT, T5
    _Places(
        ("self_attention.dense",),
        ("mlp.dense_4h_to_h",),
        order=("input_layernorm", "attention", "post_attention_layernorm", "mlp"),
        config={"model_type": "bloom", "apply_residual_connection_post_layernorm": True},
        exception=_NORMED_STREAM,
    ),
    _Places(("self_attention.dense",), ("mlp.dense_4h_to_h",)),
    _Places(("attn",), ("ffn.down_proj",)),
    _Places(("layer.0.SelfAttention",), ("layer.1.DenseReluDense",)),
    # BERT and its kin; those without a norm after the sum (RoBERTa-PreLayerNorm) keep the rule
    _Places(
        ("attention.output.dense",),
        ("output.dense",),
        order=("attention", "attention.output.LayerNorm", "mlp", "output.LayerNorm"),
        exception=_POST_NORM,
    ),
    _Places(("attention.output.dense",), ("output.dense",)),
    _Places(  # DistilBERT
        ("attention",),
        ("ffn",),
        order=("attention", "sa_layer_norm", "mlp", "output_layer_norm"),
        exception=_POST_NORM,
    ),
    *(
        _Places(
            ("self_attn",),
            ("fc2",),
            order=("attention", "self_attn_layer_norm", "mlp", "final_layer_norm"),
            config=config,
            exception=_POST_NORM,
        )
        for config in ({"model_type": "opt", "do_layer_norm_before": False}, {"model_type": "bart"})
    ),
    _Places(
        ("self_attn", "linear_attn", "attention", "attn", "self_attention"),
        ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2"),
    ),
)
_PARTS = ("attention", "mlp")
# attributes of configs that say what sublayers are multiplied with before they are added
_SCALES = ("residual_multiplier",)  # Granite

# each part is rounded to half a spacing when it is scaled, and again when it is added: two spacings in all
SUM_RULE_TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {dtype: 2 * torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16, torch.float16)}
)


@dataclass(frozen=True)
class Sites:
    """The modules of a model whose outputs are kept.

    Parameters
    ----------
    decoder
        The module that is called for text; the blocks are its own.
    blocks
        The blocks, in order: what they give is `residual`.
    components
        `attention` and `mlp`, and of each block the module that gives what the block adds to the
        stream; empty where an architecture has no such two modules in every block.
    scale
        What these outputs are multiplied with before they are added.
    exception
        Empty where `residual` is the sum of its parts; else one sentence that says what is stored.
    order
        Of each block, what happens to the stream: the component that is added, or the norm that it goes
        through.
    """

    decoder: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    components: Mapping[str, tuple[nn.Module, ...]]
    scale: float
    exception: str
    order: tuple[tuple[str | nn.Module, ...], ...]


def find_sites(model: PreTrainedModel, n_layers: int) -> Sites:
    """Find the blocks of a model and the sublayers in them.

    Parameters
    ----------
    model
        The model, or its skeleton on the meta device.
    n_layers
        The number of blocks that its config names.

    Raises
    ------
    ModelError
        Where the blocks cannot be told for certain.
    """
    decoder = find_decoder(model)
    blocks = find_blocks(decoder, n_layers)
    config = decoder.config
    scale = next((float(getattr(config, name)) for name in _SCALES if getattr(config, name, None)), 1.0)
    found = [found for block in blocks if (found := _find_places(block, config)) is not None]
    if len(found) < n_layers:  # a part alone could not be checked
        return Sites(decoder, blocks, {}, scale, "", ())
    components = {name: tuple(parts[name] for parts, _, _ in found) for name in _PARTS}
    if any(
        len(set(modules)) < n_layers for modules in components.values()
    ):  # what blocks share, they overwrite
        return Sites(decoder, blocks, {}, scale, "", ())
    exception = next((exception for _, _, exception in found if exception), "")
    return Sites(decoder, blocks, components, scale, exception, tuple(order for _, order, _ in found))


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module that owns the block list: the text decoder, or the encoder of an encoder-decoder."""
    if getattr(model.config, "is_encoder_decoder", False):
        encoder = model.get_encoder()
        return encoder if isinstance(encoder, PreTrainedModel) else model
    while hasattr(model, "get_decoder"):
        inner = model.get_decoder()  # type: ignore[no-untyped-call]
        if inner is model or not isinstance(inner, PreTrainedModel):
            break
        model = inner
    return model


def find_blocks(decoder: PreTrainedModel, n_layers: int) -> tuple[nn.Module, ...]:
    """Return the blocks: the one module list of that length, whose class transformers records itself.

    Raises
    ------
    ModelError
        Where no list, or more than one, fits.
    """
    recorded = _recorded_class(decoder)
    candidates = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(set(module)) == len(module) == n_layers
        and all(isinstance(block, recorded) for block in module)
    ]
    if len(candidates) != 1:
        found = ", ".join(name for name, _ in candidates) or "none"
        name = type(decoder).__name__
        raise ModelError(f"{name}: cannot tell its {n_layers} blocks for certain; these lists fit: {found}")
    return tuple(candidates[0][1])


def _recorded_class(decoder: PreTrainedModel) -> type[nn.Module]:
    record: Any = (getattr(decoder, "_can_record_outputs", None) or {}).get("hidden_states")
    record = getattr(record, "target_class", record)
    return record if isinstance(record, type) else nn.Module


def _find_places(
    block: nn.Module, config: Any
) -> tuple[dict[str, nn.Module], tuple[str | nn.Module, ...], str] | None:
    """Return the parts of a block, the order in which the stream meets them, and the exception."""
    for places in _PLACES:
        if any(getattr(config, name, None) != value for name, value in places.config.items()):
            continue
        parts = {"attention": _first(block, places.attention), "mlp": _first(block, places.mlp)}
        order = [step if step in _PARTS else _first(block, (step,)) for step in places.order]
        there = {name: part for name, part in parts.items() if part is not None}
        steps = tuple(step for step in order if step is not None)
        if len(there) == len(parts) and len(steps) == len(order):
            return there, steps, places.exception
    return None


def _first(block: nn.Module, paths: tuple[str, ...]) -> nn.Module | None:
    for path in paths:
        try:
            return block.get_submodule(path)
        except AttributeError:
            continue
    return None


def site_output(output: Any, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return the tensor that a block or sublayer gives, alone or first in a tuple or list.

    Parameters
    ----------
    output
        What its forward returned.
    like
        A tensor of dims ``(sample, token, hidden)``, whose shape is given to tokens that were flattened.

    Raises
    ------
    ModelError
        Where it gave something else.
    """
    tensor = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(tensor, torch.Tensor):
        raise ModelError(f"a block gave a {type(tensor).__name__}, not a tensor")
    if like is not None and tensor.shape != like.shape:
        if tensor.shape != (like.shape[:-1].numel(), like.shape[-1]):
            raise ModelError(f"a sublayer gave shape {tuple(tensor.shape)}, its block {tuple(like.shape)}")
        tensor = tensor.view(like.shape)
    return tensor


@contextmanager
def hooks(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_sum_rule(sites: Sites, forward: Callable[[], object]) -> list[float]:
    """Check that ``residual[l-1] + attention[l] + mlp[l]`` is ``residual[l]``.

    Parameters
    ----------
    sites
        Of a model that has both components.
    forward
        Runs the model once; it may stop early.

    Returns
    -------
    list of float
        One a block that was run: the largest ``|out - (in + attention + mlp)|`` of any value, divided by
        ``|in| + |attention| + |mlp|`` of the same value. NaN where nothing finite was given. Where the
        architecture normalises sums, what enters each norm is held against its sum instead.

    Raises
    ------
    ModelError
        Where a block does something else with its attention and its mlp, a sublayer was not called once
        in its block, or something else than a block adds to the stream.
    """
    measured = _measure(sites, forward)
    for layer, (error, dtype) in enumerate(measured):
        if error > SUM_RULE_TOLERANCE[dtype]:
            raise ModelError(
                f"{type(sites.decoder).__name__}: attention and mlp of block {layer} do not add up to what "
                f"the block adds (relative error {error:.1e}); `residual` can still be captured"
            )
    return [error for error, _ in measured]


def _measure(sites: Sites, forward: Callable[[], object]) -> list[tuple[float, torch.dtype]]:
    """Return the error of each block, and the coarsest dtype of what was added."""
    norms = [{step for step in order if isinstance(step, nn.Module)} for order in sites.order]
    given: dict[str | nn.Module, list[torch.Tensor]] = {}
    measured: list[tuple[float, torch.dtype]] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        stream = (args[0] if args else kwargs["hidden_states"]).clone()
        if "out" in given and not torch.equal(given["out"][0].to(stream).nan_to_num(), stream.nan_to_num()):
            raise ModelError(
                f"{type(sites.decoder).__name__}: the stream is changed between blocks {len(measured) - 1} "
                f"and {len(measured)}; `residual` can still be captured"
            )
        given.clear()
        given["in"] = [stream]

    def add(name: str, layer: int, _module: Any, _args: Any, output: Any) -> None:
        if layer == len(measured):
            # cloned: some blocks add the next part in place
            given.setdefault(name, []).append(site_output(output, given["in"][0]).clone())

    def normalise(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        like = given["in"][0]
        given[module] = [site_output(tensor, like).clone() for tensor in (args[0], output)]

    def leave(_module: Any, _args: Any, output: Any) -> None:
        layer = len(measured)
        for name in sites.components:
            if (count := len(given.get(name, ()))) != 1:
                raise ModelError(
                    f"{type(sites.decoder).__name__}: {name} of block {layer} was called {count} times, not "
                    "once; `residual` can still be captured"
                )
        given["out"] = [site_output(output).clone()]
        measured.append(_miss(given, sites.order[layer], sites.scale))

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in sites.blocks]
    handles += [block.register_forward_hook(leave) for block in sites.blocks]
    handles += [norm.register_forward_hook(normalise) for found in norms for norm in found]
    for name, modules in sites.components.items():
        handles += [m.register_forward_hook(partial(add, name, layer)) for layer, m in enumerate(modules)]
    with hooks(handles), torch.no_grad():
        forward()
    return measured


def _miss(
    given: Mapping[str | nn.Module, list[torch.Tensor]], order: tuple[str | nn.Module, ...], scale: float
) -> tuple[float, torch.dtype]:
    """Follow the stream through a block."""
    dtypes = {tensor.dtype for tensors in given.values() for tensor in tensors}
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    # on the CPU: parts may lie on several devices, of which not all have float64
    wide = {name: [tensor.cpu().double() for tensor in tensors] for name, tensors in given.items()}
    stream, errors = wide["in"][0], []
    size = stream.abs()

    def compare(actual: torch.Tensor) -> None:
        # what is no number already, or too large for one, says nothing
        checked = stream.isfinite() & (stream.abs() <= torch.finfo(coarsest).max)
        miss = (actual - stream).abs() / (size + torch.finfo(coarsest).tiny)
        errors.append(miss[checked].nan_to_num(nan=torch.inf))

    for step in order:
        if isinstance(step, str):
            part = wide[step][0] * scale
            stream, size = stream + part, size + part.abs()
        else:
            before, after = wide[step]
            compare(before)
            stream, size = after, after.abs()
    compare(wide["out"][0])
    found = torch.cat(errors)
    return (float(found.max()) if found.numel() else float("nan")), coarsest
