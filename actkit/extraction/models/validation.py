"""Validation of hook points against transformers' hidden states, and of padding against leaks."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ...errors import ModelError
from .generation_config import decode
from .hook_points import HookPoints, hook_output, hooks


@torch.inference_mode()
def check_blocks(hook_points: HookPoints, device: torch.device, hidden: int) -> None:
    """Compare the captured streams with transformers' own hidden states on a few tokens.

    Parameters
    ----------
    hook_points
        Hook points of the model.
    device
        Device of the inputs.
    hidden
        Width of the residual stream.

    Raises
    ------
    ModelError
        If shapes or values differ, so that the architecture would be captured wrongly.
    """
    name, n_layers = type(hook_points.decoder).__name__, len(hook_points.blocks)
    streams, steps, output = _run(hook_points, torch.arange(1, 5, device=device)[None])
    shape = (1, 4, hidden)
    if len(streams) != n_layers + 1 or any(tensor.shape != shape for tensor in streams):
        shapes = sorted({tuple(tensor.shape) for tensor in streams})
        raise ModelError(
            f"{name}: {len(streams) - 1} blocks returned shapes {shapes}, not {n_layers} × {shape}"
        )
    expected = getattr(output, "hidden_states", None)
    if expected is None or len(expected) != n_layers + 1:
        raise ModelError(f"{name}: transformers returns no hidden states of each block to compare with")
    # the first hidden state is the input of the first block, or its output in state space models
    first = 0 if _same(streams[0], expected[0]) else 1
    for layer, theirs in enumerate(expected[:-1]):
        if not _same(streams[layer + first], theirs):
            block = max(layer + first - 1, 0)
            raise ModelError(
                f"{name}: the output of block {block} differs from hidden_states[{layer}] of transformers"
            )
    # the last hidden state comes after the final norm and any other modules that follow the blocks
    reached = [streams[-1]]
    for before, after in steps:
        if any(_same(before, tensor) for tensor in reached):
            reached.append(after)
    if not any(_same(tensor, output.last_hidden_state) for tensor in reached):
        last = n_layers - 1
        raise ModelError(
            f"{name}: the output of block {last} does not lead to last_hidden_state of transformers"
        )


def _run(hook_points: HookPoints, ids: torch.Tensor) -> tuple[list[torch.Tensor], list[tuple[Any, Any]], Any]:
    """Return the streams before and after each block, inputs and outputs of other modules, and the output."""
    streams: list[torch.Tensor] = []
    steps: list[tuple[Any, Any]] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # cloned, because later modules may modify the stream in place
        streams.append((args[0] if args else kwargs["hidden_states"]).clone())

    def leave(_module: Any, _args: Any, output: Any) -> None:
        streams.append(hook_output(output).clone())

    def follow(_module: Any, args: tuple[Any, ...], output: Any) -> None:
        steps.append((args[0] if args else None, output))

    known = {hook_points.decoder, *(module for block in hook_points.blocks for module in block.modules())}
    handles = [hook_points.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in hook_points.blocks]
    handles += [m.register_forward_hook(follow) for m in hook_points.decoder.modules() if m not in known]
    try:
        with hooks(handles):
            output = hook_points.decoder(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True
            )
    except ModelError:
        raise
    except Exception as error:  # architectures that do not take plain tokens raise any exception
        name = type(hook_points.decoder).__name__
        raise ModelError(f"{name}: cannot be run on plain tokens: {error}") from error
    return streams, steps, output


def _same(ours: Any, theirs: Any) -> bool:
    """Return whether all values are identical; NaN equals NaN."""
    if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return False
    if ours.numel() != theirs.numel():
        return False
    ours, theirs = ours.flatten().to(theirs.device), theirs.flatten()
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


_TOKENS = 6  # of the short prompt, and of its padding
_STEPS = 4
_COMPANIONS = 4
_DRAWS = 3  # of ids: rounding may route a token to another expert, but not in every draw
# Limits for the median token and for the token that differs most. Differences are counted in roundings: the
# eps of the dtype, times the value or the median value, whichever is larger. In the mixtures of experts of
# tests/models, different groupings of tokens by expert cause up to 2.5 and 4.3 roundings.
_ROUNDINGS = ((torch.median, 4.0), (torch.max, 8.0))
_MARGIN = 1.5  # relative to the effect of other prompts, the largest of three pairs
_TOKEN_ID_KEYS = re.compile(r"_token_(?:ids?|index)$")
_SENSITIVITY = 10.0  # times the effect on the logits of one rounding of the embeddings; measured: up to 4


@torch.inference_mode()
def check_padding(
    hook_points: HookPoints, device: torch.device, side: Literal["right", "left"] = "right"
) -> None:
    """Check that padding does not affect other tokens.

    Run a batch twice with different ids at the masked positions, and compare the real positions in every
    block.

    Parameters
    ----------
    hook_points
        Hook points of the model.
    device
        Device of the inputs.
    side
        Side of the padding.

    Raises
    ------
    ModelError
        If masked positions affect real ones, because the architecture mixes all positions or carries them
        along in a state.
    """
    draws = (probe_ids(hook_points.decoder.config, seed).to(device) for seed in range(_DRAWS))
    if all(_blocks_leak(hook_points, ids, side) for ids in draws):
        raise _leak_error(hook_points.decoder, " during generation" if side == "left" else "")


@torch.inference_mode()
def check_generation(model: PreTrainedModel, device: torch.device) -> None:
    """Check that padding does not affect generated tokens.

    Continue a short prompt in a batch with a longer one, with two different paddings, and alone; compare all
    logits.

    Parameters
    ----------
    model
        The model, including its head.
    device
        Device of the inputs.

    Raises
    ------
    ModelError
        If the cache of the architecture does not mask padding, or its position ids count padding.

    Notes
    -----
    The same token is forced at every step, so that rounding cannot lead to different texts. Tensors have
    other shapes if the prompt is alone; the logits may then differ by ten times the effect of one rounding of
    the embeddings.
    """
    draws = (probe_ids(model.config, seed).to(device) for seed in range(_DRAWS))
    if all(_logits_leak(model, ids) for ids in draws):
        raise _leak_error(model, " during generation")


def probe_ids(config: Any, seed: int) -> torch.Tensor:
    """Draw token ids for a short prompt, two paddings that differ everywhere, and other prompts.

    Returns
    -------
    torch.Tensor
        Dims ``(row, token)``. The ids come from the middle of the vocabulary, since most tokenizers have
        special tokens at its ends, and exclude ids that the config names, such as image placeholders. If
        fewer than 8 remain, ids are drawn from the whole vocabulary.
    """
    size = int(config.get_text_config().vocab_size)
    named = set(_named_ids(config.to_dict()))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    unnamed = [token for token in order if token not in named]
    middle = [token for token in unnamed if size // 5 <= token < size * 4 // 5]
    pool = next(ids for ids in (middle, unnamed, order) if len(ids) >= min(8, size))
    n_rows = 3 + 2 * _COMPANIONS
    ids = torch.tensor([pool[place % len(pool)] for place in range(n_rows * _TOKENS)]).view(n_rows, _TOKENS)
    ids[2] = torch.tensor([pool[(place + 1) % len(pool)] for place in range(_TOKENS, 2 * _TOKENS)])
    return ids


def roundings(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the distance between vectors in roundings of their dtype; infinite if only one is finite.

    Parameters
    ----------
    reference, other
        Vectors of the same dtype, dims ``(token, hidden)``.

    Returns
    -------
    torch.Tensor
        Dims ``(token,)``: the root mean square over ``hidden`` of ``|reference - other| / (eps ·
        max(|reference|, median|reference|))``, so that the few huge values of trained models (several
        thousand) weigh no more than others.
    """
    eps = torch.finfo(reference.dtype).eps
    a, b = reference.double(), other.double()
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return torch.full(reference.shape[:-1], torch.inf, device=reference.device)
    if not finite.any():
        return torch.zeros(reference.shape[:-1], device=reference.device)
    scale = torch.maximum(a.abs(), a[finite].abs().median()).clamp_min(torch.finfo(torch.float64).tiny)
    units = torch.where(finite, (a - b).abs() / (eps * scale), 0.0)
    return units.square().mean(-1).sqrt()


def _blocks_leak(hook_points: HookPoints, ids: torch.Tensor, side: str) -> bool:
    short, fills, others = ids[0], ids[1:3], ids[3:].view(_COMPANIONS, 2 * _TOKENS)
    first, second = (_padded_streams(hook_points, others[0], short, fill, side) for fill in fills)
    if all(map(torch.equal, first, second)):
        return False
    controls = [_padded_streams(hook_points, other, short, fills[0], side) for other in others]
    return _differ(first, second, controls)


def _logits_leak(model: PreTrainedModel, ids: torch.Tensor) -> bool:
    short, fills, others = ids[0], ids[1:3], ids[3:].view(_COMPANIONS, 2 * _TOKENS)
    forced = int(ids[-1, -1])
    mask = torch.ones(2, 2 * _TOKENS, dtype=torch.long, device=ids.device)
    mask[1, :_TOKENS] = 0

    def padded(other: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
        return _logits(model, torch.stack([other, torch.cat([fill, short])]), mask, forced)[1]

    def nudged(seed: int) -> torch.Tensor:
        with hooks([model.get_input_embeddings().register_forward_hook(partial(_round_once, seed))]):
            return _logits(model, short[None], mask[:1, :_TOKENS], forced)[0]

    first, second = (padded(others[0], fill) for fill in fills)
    if not torch.equal(first, second):
        controls = [[padded(other, fills[0])] for other in others]
        if _differ([first], [second], controls):
            return True
    alone = _logits(model, short[None], mask[:1, :_TOKENS], forced)[0]
    nudges = [nudged(seed) for seed in range(_DRAWS)]
    # the minimum over draws, because a draw that routes a token to another expert does not measure rounding
    sensitivity = torch.stack([roundings(nudge, alone) for nudge in nudges]).amin(0)
    return not bool((roundings(first, alone) <= _SENSITIVITY * sensitivity.clamp_min(1)).all())


def _differ(
    first: list[torch.Tensor], second: list[torch.Tensor], controls: list[list[torch.Tensor]]
) -> bool:
    """Return whether arrays differ by more than controls, in which only another prompt changed."""
    pairs = list(pairwise(controls))
    if all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True)):
        return True
    for block, (a, b) in enumerate(zip(first, second, strict=True)):
        distance = roundings(a, b)
        baselines = [roundings(x[block], y[block]) for x, y in pairs]
        for summary, limit in _ROUNDINGS:
            baseline = max(float(summary(control)) for control in baselines)
            if not summary(distance) <= max(limit, _MARGIN * baseline):
                return True
    return False


def _padded_streams(
    hook_points: HookPoints, long: torch.Tensor, short: torch.Tensor, fill: torch.Tensor, side: str
) -> list[torch.Tensor]:
    """Return the output of each block at the real positions of a short prompt, in a batch with a long one."""
    row = torch.cat([short, fill] if side == "right" else [fill, short])
    real = slice(_TOKENS) if side == "right" else slice(_TOKENS, None)
    mask = torch.zeros(2, 2 * _TOKENS, dtype=torch.long, device=long.device)
    mask[0], mask[1, real] = 1, 1
    streams = _streams(hook_points, torch.stack([long, row]), mask)
    return [stream[1, real] for stream in streams]


def _streams(hook_points: HookPoints, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    streams: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        streams.append(hook_output(output).clone())

    with hooks([block.register_forward_hook(keep) for block in hook_points.blocks]):
        hook_points.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    return streams


def _logits(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, forced: int) -> torch.Tensor:
    """Return the logits of each step, with a forced token, dims ``(sample, step, vocabulary)``."""
    steps: tuple[torch.Tensor, ...] = decode(
        model,
        {"input_ids": ids, "attention_mask": mask},
        pad_id=0,
        ends=[],
        max_new_tokens=_STEPS,
        do_sample=False,
        sequence_bias=[[[forced], 1e4]],
        output_logits=True,
        return_dict_in_generate=True,
    ).logits
    return torch.stack(steps, dim=1)


def _round_once(seed: int, _module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
    """Perturb each value of an embedding by up to one rounding."""
    draw = torch.rand(output.shape, generator=torch.Generator().manual_seed(seed)).to(output.device)
    return (output.double() * (1 + (2 * draw - 1) * torch.finfo(output.dtype).eps)).to(output.dtype)


def _named_ids(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the ids of config entries such as ``eos_token_id`` and ``image_token_index``."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _named_ids(value)
        elif _TOKEN_ID_KEYS.search(str(name)):
            yield from (
                entry
                for entry in (value if isinstance(value, list | tuple) else [value])
                if entry is not None
            )


def _leak_error(model: PreTrainedModel, when: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__}: padding changes the activations of the shorter prompts in a batch{when}; "
        "use batch_size=1"
    )
