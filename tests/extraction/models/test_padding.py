"""Models in which the prompts of a batch affect each other are refused."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import actkit
from actkit.errors import ModelError
from actkit.extraction.models import validation
from actkit.extraction.models.architecture import Architecture, read_architecture
from actkit.extraction.models.checkpoint import find_checkpoint
from actkit.extraction.models.hook_points import HookPoints, find_hook_points, hook_output, hooks
from actkit.extraction.models.validation import check_generation, check_padding, probe_ids, roundings
from tests.models.architectures import ARCHITECTURES, build

SMALL = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {**SMALL, "num_attention_heads": 4}
EXPERTS = {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def model(name: str, **options: Any) -> Any:
    import torch
    import transformers as tf

    torch.manual_seed(0)
    config = getattr(tf, f"{name}Config")(**options)
    return getattr(tf, f"{name}Model")(config).eval()


def check(name: str, side: Any, dtype: str = "float32", **options: Any) -> None:
    import torch

    whole = model(name, **options).to(getattr(torch, dtype))
    check_padding(find_hook_points(whole, SMALL["num_hidden_layers"]), torch.device("cpu"), side)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("name", "options"), [("Llama", HEADS), ("Bert", HEADS), ("Qwen3Moe", EXPERTS)])
def test_attention_ignores_masked_tokens(name: str, options: Any, side: str, dtype: str) -> None:
    check(name, side, dtype, **options)


def test_mixing_all_positions_is_refused() -> None:
    with pytest.raises(ModelError, match=r"FNetModel: padding changes .* batch_size=1"):
        check("FNet", "right", **SMALL)


def test_left_padding_affects_recurrent_states() -> None:
    options = {**SMALL, "attention_hidden_size": 32}
    check("Rwkv", "right", **options)
    with pytest.raises(ModelError, match=r"RwkvModel: .* during generation; use batch_size=1"):
        check("Rwkv", "left", **options)


def check_head(name: str, folder: Path) -> None:
    import torch
    import transformers as tf

    whole = tf.AutoModelForCausalLM.from_pretrained(build(name, folder)).eval()
    check_generation(whole, torch.device("cpu"))


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Gemma 3", "Falcon (parallel, as 7b)", "Mamba", "Jamba"])
def test_a_cache_ignores_masked_tokens(name: str, tmp_path: Path) -> None:
    check_head(name, tmp_path)


DTYPES = ("float32", "bfloat16", "float16")
SUPPORTED = [name for name, architecture in ARCHITECTURES.items() if not architecture.error]
# architectures that leak during generation, in every dtype; here each with one
LEAKS = {"RecurrentGemma": "float32", "RWKV": "bfloat16", "MiniMax": "float16"}
# dense, experts, sandwich norms, encoder, state space, ALiBi
EVERY_DAY = [
    ("Llama", "float32"),
    ("Llama", "float16"),
    ("Llama", "bfloat16"),
    ("Mixtral", "bfloat16"),
    ("Gemma 3", "float16"),
    ("BERT", "bfloat16"),
    ("Jamba", "float32"),
    ("BLOOM", "float16"),
]


def architecture_of(folder: Path) -> Architecture:
    checkpoint, faults = find_checkpoint(str(folder), None, weights=False)
    assert checkpoint is not None, faults
    architecture, faults = read_architecture(checkpoint)
    assert architecture is not None, faults
    return architecture


def load(folder: Path, dtype: str) -> tuple[Any, HookPoints]:
    """Load a model, with its head if it generates, and find its hook points."""
    import torch
    import transformers as tf

    architecture = architecture_of(folder)
    auto: Any = tf.AutoModel
    if architecture.can_generate:
        images = type(architecture.full) in tf.AutoModelForImageTextToText._model_mapping
        auto = tf.AutoModelForImageTextToText if images else tf.AutoModelForCausalLM
    elif type(architecture.full) in tf.AutoModelForTextEncoding._model_mapping:
        auto = tf.AutoModelForTextEncoding
    whole = auto.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    base = whole.get_encoder() if architecture.full.is_encoder_decoder else whole.base_model
    return whole, find_hook_points(base, architecture.n_layers)


PLACES = {"every token": slice(None), "first token": slice(0, 1), "last token": slice(-1, None)}
SIDES_AND_PLACES = tuple(itertools.product(("right", "left"), PLACES))
# one token on each side, where a leak is harder to see
FEW = (("right", "first token"), ("left", "last token"))


def plant(
    hook_points: HookPoints, block: int, side: str, place: str = "every token", size: float = 10
) -> Any:
    """Make masked positions of the short prompt change real ones by a number of roundings."""
    import torch

    half = validation._TOKENS
    real, masked = slice(None, half), slice(half, None)
    if side == "left":
        real, masked = masked, real

    given: list[Any] = []
    eps = torch.finfo(hook_points.decoder.dtype).eps  # Mamba keeps its stream in float32

    def see(_module: Any, args: Any, kwargs: Any) -> None:
        given.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0])

    def leak(_module: Any, _args: Any, output: Any) -> Any:
        stream, ids = hook_output(output), given[-1]
        if ids is None or ids.shape != (2, 2 * half):
            return output
        changed = stream.double()
        step = size * eps * changed[1, real].abs().median()
        # depends on ids, since some architectures set masked positions to zero
        angles = ids[1, masked].double() @ torch.arange(1.0, half + 1, dtype=torch.float64)
        changed[1, real][PLACES[place]] += step * torch.sin(angles + torch.arange(stream.shape[-1])).sign()
        changed = changed.to(stream.dtype)
        return type(output)([changed, *output[1:]]) if isinstance(output, tuple | list) else changed

    return hooks(
        [
            hook_points.decoder.register_forward_pre_hook(see, with_kwargs=True),
            hook_points.blocks[block].register_forward_hook(leak),
        ]
    )


def is_exact(hook_points: HookPoints) -> bool:
    """Return whether a prompt's values are bitwise independent of the other prompt in the batch."""
    import torch

    ids = validation.probe_ids(hook_points.decoder.config, 7)
    mask = torch.ones(2, validation._TOKENS, dtype=torch.long)
    with torch.inference_mode():
        runs = [validation._streams(hook_points, torch.stack([other, ids[0]]), mask) for other in ids[1:]]
    return all(torch.equal(a[1], b[1]) for run in runs for a, b in zip(run, runs[0], strict=True))


def sweep(
    folder: Path,
    dtype: str,
    blocks: tuple[int, ...],
    planted: Sequence[tuple[str, str]] = SIDES_AND_PLACES,
    *,
    leaks: bool = False,
) -> None:
    """Check that a model is accepted, and that a leak planted in each of the blocks is found."""
    import torch

    whole, hook_points = load(folder, dtype)
    cpu = torch.device("cpu")
    generates = architecture_of(folder).can_generate and not leaks
    check_padding(hook_points, cpu)
    if generates:
        check_padding(hook_points, cpu, "left")
        check_generation(whole, cpu)
    elif leaks:
        with pytest.raises(ModelError, match="during generation"):
            check_generation(whole, cpu)
    exact = is_exact(hook_points)
    for block in blocks:
        for side, place in planted:
            # different groupings by expert change a token by up to ten roundings
            size = 10 if exact or place == "every token" else 100
            with (
                plant(hook_points, block, side, place, size),
                pytest.raises(ModelError, match="batch_size=1"),
            ):
                check_padding(hook_points, cpu, side)  # type: ignore[arg-type]
        if generates and exact and planted is not FEW:
            with plant(hook_points, block, "left"), pytest.raises(ModelError, match="during generation"):
                check_generation(whole, cpu)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), EVERY_DAY)
def test_rounding_is_distinguished_from_a_leak(name: str, dtype: str, tmp_path: Path) -> None:
    sweep(build(name, tmp_path), dtype, (3,))


@pytest.mark.nightly
@pytest.mark.parametrize("name", SUPPORTED)
def test_rounding_is_distinguished_from_a_leak_in_every_architecture(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path)
    for dtype in DTYPES:
        sweep(folder, dtype, (0, 1, 2, 3), leaks=name in LEAKS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), LEAKS.items())
def test_a_cache_that_includes_masked_tokens_is_refused(name: str, dtype: str, tmp_path: Path) -> None:
    import torch

    whole, _ = load(build(name, tmp_path), dtype)
    message = rf"{type(whole).__name__}: .* during generation; use batch_size=1"
    with pytest.raises(ModelError, match=message):
        check_generation(whole, torch.device("cpu"))


@pytest.mark.real
def test_massive_activations_are_not_mistaken_for_a_leak(smollm2: Path) -> None:
    sweep(smollm2, "bfloat16", (29,), FEW)


@pytest.mark.real
@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES)
def test_massive_activations_are_not_mistaken_for_a_leak_in_any_dtype(dtype: str, smollm2: Path) -> None:
    sweep(smollm2, dtype, (0, 29))


@pytest.mark.slow
def test_a_trained_encoder_ignores_masked_tokens(minilm: Path) -> None:
    sweep(minilm, "bfloat16", (5,), FEW)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_trained_encoder_ignores_masked_tokens_in_every_dtype(dtype: str, minilm: Path) -> None:
    sweep(minilm, dtype, (0, 5))


def test_positions_that_count_the_padding_are_refused(tmp_path: Path) -> None:
    import torch

    whole, _ = load(build("GPT-2", tmp_path), "float32")
    forward = type(whole).forward

    def shifted(self: Any, input_ids: Any, position_ids: Any = None, **options: Any) -> Any:
        return forward(
            self, input_ids, **options
        )  # positions start at 0 despite left padding, a common mistake

    whole.forward = shifted.__get__(whole)
    with pytest.raises(ModelError, match="during generation"):
        check_generation(whole, torch.device("cpu"))


@pytest.mark.real
def test_probe_ids_are_ordinary_tokens(smollm2: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = probe_ids(AutoConfig.from_pretrained(smollm2), 0).flatten().tolist()
    assert len(set(ids)) >= 60
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_roundings_count_in_units_of_a_typical_value() -> None:
    import torch

    reference = torch.full((5, 8), 3.0, dtype=torch.bfloat16)
    reference[:, 0] = 4096.0  # a massive activation
    other = reference.clone()
    other[2, 0] += 4096 * 2**-7
    assert roundings(reference, reference).tolist() == [0] * 5
    # one of eight values differs by one rounding
    assert roundings(reference, other).tolist() == pytest.approx([0, 0, 8**-0.5, 0, 0])
    other[1, 1] = float("nan")
    assert roundings(reference, other).tolist() == [float("inf")] * 5


@pytest.mark.parametrize("vocabulary", [2, 3, 5, 8, 10, 13])
def test_a_small_vocabulary_is_enough(vocabulary: int) -> None:
    import torch

    check("Llama", "right", **{**HEADS, "vocab_size": vocabulary, "pad_token_id": 0})
    with pytest.raises(ModelError, match="batch_size=1"):
        check("FNet", "right", **{**SMALL, "vocab_size": vocabulary, "pad_token_id": 0})
    config = model("FNet", **{**SMALL, "vocab_size": vocabulary, "pad_token_id": 0}).config
    for seed in range(20):
        ids = validation.probe_ids(config, seed)
        assert not torch.any(ids[1] == ids[2])


def test_two_exact_batches_of_experts_are_compared_with_others() -> None:
    """A limit on the median token alone would miss leaks into half of the tokens."""
    import torch

    clean = [torch.zeros(6, 8) + 1]
    for n_tokens in (1, 2, 3, 6):
        leaking = [clean[0].clone()]
        leaking[0][:n_tokens] += 100 * torch.finfo(torch.float32).eps
        beside = [[clean[0] * (1 + place * torch.finfo(torch.float32).eps)] for place in range(4)]
        assert validation._differ(clean, leaking, beside)
        assert not validation._differ(clean, [beside[1][0]], beside)


def test_one_prompt_at_a_time_needs_no_padding(tokenizer: Any, tmp_path: Path) -> None:
    import torch

    whole = model("FNet", **{**SMALL, "vocab_size": len(tokenizer)})
    whole.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = ["one two three four five", "one"]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    options = {"model": str(tmp_path / "model"), "data": str(tmp_path / "data.csv"), "listeners": []}
    with pytest.raises(ModelError, match="batch_size=1"):
        actkit.extract(out=str(tmp_path / "two"), batch_size=2, **options)
    cube = actkit.extract(out=str(tmp_path / "one"), batch_size=1, **options)
    for sample, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = whole(input_ids=ids, output_hidden_states=True).hidden_states
        ours = cube.residual.values[:, sample, : ids.shape[1]]
        for mine, theirs in zip(ours, states[1:], strict=True):
            assert abs(mine - theirs[0].numpy()).max() < 1e-5
