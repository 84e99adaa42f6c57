"""Hook points of a model: its blocks, and the modules in each block whose outputs are added to the stream."""

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
    "attention and mlp are the outputs of the sublayers, before addition and normalisation: the architecture "
    "normalises each sum, so that they do not add up to residual"
)
_NORMED_STREAM = (
    "attention and mlp are the outputs of the sublayers, before addition: the architecture adds them to the "
    "normalised stream, so that they do not add up to residual"
)


@dataclass(frozen=True)
class _BlockLayout:
    """Paths of attention and mlp inside a block; the first existing path of each is used."""

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    # steps of the stream through the block: a sublayer added to it, or the path of a norm applied to it
    order: tuple[str, ...] = ("attention", "mlp")
    # required values of the config
    config: Mapping[str, object] = field(default_factory=dict)
    exception: str = ""


# most specific first; each block uses the first layout whose paths all exist
_LAYOUTS = (
    # norms between a sublayer and the addition: GLM-4, T5Gemma; Gemma 2 and 3, OLMo 2; AFMoE
    _BlockLayout(("post_self_attn_layernorm",), ("post_mlp_layernorm", "post_feedforward_layernorm")),
    _BlockLayout(("post_attention_layernorm",), ("post_feedforward_layernorm", "post_mlp_layernorm")),
    # sublayers that do the addition themselves: BLOOM (Falcon uses the same names), MPT, T5
    _BlockLayout(
        ("self_attention.dense",),
        ("mlp.dense_4h_to_h",),
        order=("input_layernorm", "attention", "post_attention_layernorm", "mlp"),
        config={"model_type": "bloom", "apply_residual_connection_post_layernorm": True},
        exception=_NORMED_STREAM,
    ),
    _BlockLayout(("self_attention.dense",), ("mlp.dense_4h_to_h",)),
    _BlockLayout(("attn",), ("ffn.down_proj",)),
    _BlockLayout(("layer.0.SelfAttention",), ("layer.1.DenseReluDense",)),
    # the BERT family; models without a norm after the sum (RoBERTa-PreLayerNorm) obey the sum rule
    _BlockLayout(
        ("attention.output.dense",),
        ("output.dense",),
        order=("attention", "attention.output.LayerNorm", "mlp", "output.LayerNorm"),
        exception=_POST_NORM,
    ),
    _BlockLayout(("attention.output.dense",), ("output.dense",)),
    _BlockLayout(  # DistilBERT
        ("attention",),
        ("ffn",),
        order=("attention", "sa_layer_norm", "mlp", "output_layer_norm"),
        exception=_POST_NORM,
    ),
    *(
        _BlockLayout(
            ("self_attn",),
            ("fc2",),
            order=("attention", "self_attn_layer_norm", "mlp", "final_layer_norm"),
            config=config,
            exception=_POST_NORM,
        )
        for config in ({"model_type": "opt", "do_layer_norm_before": False}, {"model_type": "bart"})
    ),
    _BlockLayout(
        ("self_attn", "linear_attn", "attention", "attn", "self_attention"),
        ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2"),
    ),
)
_PARTS = ("attention", "mlp")
# config attributes with the factor by which sublayer outputs are multiplied before the addition
_SCALES = ("residual_multiplier",)  # Granite

# scaling and adding each round a part by up to half a spacing: two spacings in total
SUM_RULE_TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {dtype: 2 * torch.finfo(dtype).eps for dtype in (torch.float32, torch.bfloat16, torch.float16)}
)


@dataclass(frozen=True)
class HookPoints:
    """The modules of a model whose outputs are captured.

    Parameters
    ----------
    decoder
        Module that is called with text and contains the blocks.
    blocks
        Blocks in order; their outputs are `residual`.
    components
        For each of `attention` and `mlp`, the module of each block whose output is added to the stream;
        empty unless every block has both.
    scale
        Factor by which these outputs are multiplied before the addition.
    exception
        Empty if `residual` is the sum of its parts; otherwise a sentence that describes what is stored.
    order
        Steps of the stream through each block: the component that is added to it, or the norm that is
        applied to it.
    """

    decoder: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    components: Mapping[str, tuple[nn.Module, ...]]
    scale: float
    exception: str
    order: tuple[tuple[str | nn.Module, ...], ...]


def find_hook_points(model: PreTrainedModel, n_layers: int) -> HookPoints:
    """Find the blocks of a model and the sublayers in them.

    Parameters
    ----------
    model
        The model, or its skeleton on the meta device.
    n_layers
        Number of blocks according to the config.

    Raises
    ------
    ModelError
        If the blocks cannot be identified unambiguously.
    """
    decoder = find_decoder(model)
    blocks = find_blocks(decoder, n_layers)
    config = decoder.config
    scale = next((float(getattr(config, name)) for name in _SCALES if getattr(config, name, None)), 1.0)
    sublayers = [parts for block in blocks if (parts := _find_sublayers(block, config)) is not None]
    if len(sublayers) < n_layers:  # the sum rule cannot be checked for some blocks only
        return HookPoints(decoder, blocks, {}, scale, "", ())
    components = {name: tuple(parts[name] for parts, _, _ in sublayers) for name in _PARTS}
    # blocks that share a module would overwrite each other's output
    if any(len(set(modules)) < n_layers for modules in components.values()):
        return HookPoints(decoder, blocks, {}, scale, "", ())
    exception = next((exception for _, _, exception in sublayers if exception), "")
    return HookPoints(
        decoder, blocks, components, scale, exception, tuple(order for _, order, _ in sublayers)
    )


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module that contains the blocks: the text decoder, or the encoder of an encoder-decoder."""
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
    """Return the blocks: the only module list of that length with the class that transformers records.

    Raises
    ------
    ModelError
        If no list, or more than one, matches.
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
        names = ", ".join(name for name, _ in candidates) or "none"
        raise ModelError(
            f"{type(decoder).__name__}: cannot identify its {n_layers} blocks; matching module lists: {names}"
        )
    return tuple(candidates[0][1])


def _recorded_class(decoder: PreTrainedModel) -> type[nn.Module]:
    record: Any = (getattr(decoder, "_can_record_outputs", None) or {}).get("hidden_states")
    record = getattr(record, "target_class", record)
    return record if isinstance(record, type) else nn.Module


def _find_sublayers(
    block: nn.Module, config: Any
) -> tuple[dict[str, nn.Module], tuple[str | nn.Module, ...], str] | None:
    """Return the sublayers of a block, the steps of the stream through it, and the exception."""
    for layout in _LAYOUTS:
        if any(getattr(config, name, None) != value for name, value in layout.config.items()):
            continue
        candidates = {
            "attention": _first_module(block, layout.attention),
            "mlp": _first_module(block, layout.mlp),
        }
        order = [step if step in _PARTS else _first_module(block, (step,)) for step in layout.order]
        parts = {name: part for name, part in candidates.items() if part is not None}
        steps = tuple(step for step in order if step is not None)
        if len(parts) == len(candidates) and len(steps) == len(order):
            return parts, steps, layout.exception
    return None


def _first_module(block: nn.Module, paths: tuple[str, ...]) -> nn.Module | None:
    for path in paths:
        try:
            return block.get_submodule(path)
        except AttributeError:
            continue
    return None


def hook_output(output: Any, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return the output tensor of a block or sublayer, which may be the first entry of a tuple or list.

    Parameters
    ----------
    output
        Return value of the module's forward.
    like
        Tensor of dims ``(sample, token, hidden)``, to whose shape an output of flattened tokens is restored.

    Raises
    ------
    ModelError
        If the output is not a tensor or has another shape.
    """
    tensor = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(tensor, torch.Tensor):
        raise ModelError(f"a block returned a {type(tensor).__name__}, not a tensor")
    if like is not None and tensor.shape != like.shape:
        if tensor.shape != (like.shape[:-1].numel(), like.shape[-1]):
            raise ModelError(
                f"a sublayer returned shape {tuple(tensor.shape)} in a block of shape {tuple(like.shape)}"
            )
        tensor = tensor.view(like.shape)
    return tensor


@contextmanager
def hooks(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove hooks when the context ends, also after an error."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_sum_rule(hook_points: HookPoints, forward: Callable[[], object]) -> list[float]:
    """Check that ``residual[l-1] + attention[l] + mlp[l]`` is ``residual[l]``.

    Parameters
    ----------
    hook_points
        Hook points of a model that has both components.
    forward
        Function that runs the model once; it may stop early.

    Returns
    -------
    list of float
        For each block that was run, the largest relative error of any value,
        ``|out - (in + attention + mlp)| / (|in| + |attention| + |mlp|)``; NaN if no value is finite. If the
        architecture normalises sums, the input of each norm is compared with its sum instead.

    Raises
    ------
    ModelError
        If a block combines its attention and mlp in another way, a sublayer is not called exactly once per
        block, or a module other than the blocks modifies the stream.
    """
    measured = _measure(hook_points, forward)
    for layer, (error, dtype) in enumerate(measured):
        if error > SUM_RULE_TOLERANCE[dtype]:
            raise ModelError(
                f"{type(hook_points.decoder).__name__}: attention and mlp of block {layer} do not sum to the "
                f"block's update of the stream (relative error {error:.1e}); `residual` can still be captured"
            )
    return [error for error, _ in measured]


def _measure(hook_points: HookPoints, forward: Callable[[], object]) -> list[tuple[float, torch.dtype]]:
    """Return the error of each block and the coarsest dtype of the tensors that were added."""
    norms = [{step for step in order if isinstance(step, nn.Module)} for order in hook_points.order]
    outputs: dict[str | nn.Module, list[torch.Tensor]] = {}
    measured: list[tuple[float, torch.dtype]] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        stream = (args[0] if args else kwargs["hidden_states"]).clone()
        if "out" in outputs and not torch.equal(
            outputs["out"][0].to(stream).nan_to_num(), stream.nan_to_num()
        ):
            raise ModelError(
                f"{type(hook_points.decoder).__name__}: the stream is modified between blocks "
                f"{len(measured) - 1} and {len(measured)}; `residual` can still be captured"
            )
        outputs.clear()
        outputs["in"] = [stream]

    def add(name: str, layer: int, _module: Any, _args: Any, output: Any) -> None:
        if layer == len(measured):
            # cloned, because some blocks add the next part in place
            outputs.setdefault(name, []).append(hook_output(output, outputs["in"][0]).clone())

    def normalise(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        like = outputs["in"][0]
        outputs[module] = [hook_output(tensor, like).clone() for tensor in (args[0], output)]

    def leave(_module: Any, _args: Any, output: Any) -> None:
        layer = len(measured)
        for name in hook_points.components:
            if (count := len(outputs.get(name, ()))) != 1:
                raise ModelError(
                    f"{type(hook_points.decoder).__name__}: {name} of block {layer} was called {count} "
                    "times, not once; `residual` can still be captured"
                )
        outputs["out"] = [hook_output(output).clone()]
        measured.append(_sum_error(outputs, hook_points.order[layer], hook_points.scale))

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in hook_points.blocks]
    handles += [block.register_forward_hook(leave) for block in hook_points.blocks]
    handles += [norm.register_forward_hook(normalise) for block_norms in norms for norm in block_norms]
    for name, modules in hook_points.components.items():
        handles += [m.register_forward_hook(partial(add, name, layer)) for layer, m in enumerate(modules)]
    with hooks(handles), torch.no_grad():
        forward()
    return measured


def _sum_error(
    outputs: Mapping[str | nn.Module, list[torch.Tensor]], order: tuple[str | nn.Module, ...], scale: float
) -> tuple[float, torch.dtype]:
    """Follow the stream through a block; return the largest relative error and the coarsest dtype."""
    dtypes = {tensor.dtype for tensors in outputs.values() for tensor in tensors}
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    # on the CPU, because parts may be on several devices, not all of which support float64
    wide = {name: [tensor.cpu().double() for tensor in tensors] for name, tensors in outputs.items()}
    stream, errors = wide["in"][0], []
    size = stream.abs()

    def compare(actual: torch.Tensor) -> None:
        # values that are not finite, or overflow the dtype, cannot be checked
        checked = stream.isfinite() & (stream.abs() <= torch.finfo(coarsest).max)
        error = (actual - stream).abs() / (size + torch.finfo(coarsest).tiny)
        errors.append(error[checked].nan_to_num(nan=torch.inf))

    for step in order:
        if isinstance(step, str):
            part = wide[step][0] * scale
            stream, size = stream + part, size + part.abs()
        else:
            before, after = wide[step]
            compare(before)
            stream, size = after, after.abs()
    compare(wide["out"][0])
    checked_errors = torch.cat(errors)
    return (float(checked_errors.max()) if checked_errors.numel() else float("nan")), coarsest
