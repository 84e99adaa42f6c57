"""Train the demo's model on the demo's captions: `python tools/train_demo_model.py`.

The defaults made what lies in `actkit/demo/model`. Two cores take a few minutes.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from actkit.demo import CAPTIONS, MODEL, captions
from actkit.demo.captions import LANGUAGES, write_csv

N_SHIPPED = 500
PAD, EOS, BOS = range(3)
IGNORED = -100

# Letters take their combining marks with them: GPT-2's pattern would cut an Arabic word at its tanween.
WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that puts <bos> in front and needs no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(vocab_size: int) -> Gemma3ForCausalLM:
    """Build an untrained Gemma 3 text model of about 3 million parameters."""
    config = Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=160,
        intermediate_size=320,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=40,
        query_pre_attn_scalar=40,
        max_position_embeddings=512,
        # Captions have about 25 tokens, so that a window of 16 hides some from the later ones.
        sliding_window=16,
        sliding_window_pattern=5,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )
    return Gemma3ForCausalLM(config)


def padded(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad token ids on the right: ids, attention mask and labels, each (sample, token)."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in sequences])
    lengths = torch.tensor([len(ids) for ids in sequences])
    mask = torch.arange(longest) < lengths[:, None]
    return ids, mask.long(), ids.masked_fill(~mask, IGNORED)


def batches(sequences: Sequence[list[int]], size: int, seed: int) -> Iterator[list[list[int]]]:
    """Yield batches of similar length, in a new random order each epoch, without end."""
    rng = random.Random(seed)
    while True:
        by_length = sorted(sequences, key=lambda ids: (len(ids), rng.random()))
        epoch = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        rng.shuffle(epoch)
        yield from epoch


def train(
    model: Gemma3ForCausalLM,
    sequences: Sequence[list[int]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Fit next-token prediction with AdamW, linear warm-up and cosine decay."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    model.train()
    started = time.monotonic()
    for step, batch in zip(range(1, steps + 1), batches(sequences, batch_size, seed), strict=False):
        ids, mask, labels = padded(batch)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            elapsed = time.monotonic() - started
            print(f"step {step:5d}  loss {loss.item():.3f}  {elapsed:4.0f} s", flush=True)


@torch.no_grad()
def model_loss(model: PreTrainedModel, sequences: Sequence[list[int]]) -> float:
    """Mean loss in nats for every token after <bos>."""
    model.eval()
    total = 0.0
    for start in range(0, len(sequences), 50):
        ids, mask, labels = padded(sequences[start : start + 50])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="sum"
        ).item()
    return total / sum(len(ids) - 1 for ids in sequences)


def unigram_loss(seen: Sequence[list[int]], sequences: Sequence[list[int]], vocab_size: int) -> float:
    """Mean loss in nats of the token frequencies of `seen`, add-one smoothed, <bos> left out."""
    counts = Counter(token for ids in seen for token in ids[1:])
    total = counts.total() + vocab_size
    losses = [-math.log((counts[token] + 1) / total) for ids in sequences for token in ids[1:]]
    return math.fsum(losses) / len(losses)


def print_table(
    heldout: dict[str, Sequence[list[int]]],
    predictors: dict[str, Callable[[Sequence[list[int]]], float]],
) -> None:
    """Print the held-out loss and perplexity of every predictor, in all and per language."""
    print("\n| held-out nats/token (perplexity) |", " | ".join(heldout), "|")
    print("|---|" + "---|" * len(heldout))
    for name, predictor in predictors.items():
        losses = [predictor(sequences) for sequences in heldout.values()]
        print(f"| {name} |", " | ".join(f"{x:.3f} ({math.exp(x):,.1f})" for x in losses), "|")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="the CSV to write")
    parser.add_argument("--scenes", type=int, default=8000, help="scenes to make; 80%% train")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Write the captions, train, save, and measure what was saved on the held-out captions."""
    option = options()
    torch.manual_seed(option.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(option.threads)

    write_csv(captions(N_SHIPPED), option.captions)
    train_texts = [row["text"] for row in captions(option.scenes) if row["split"] == "train"]
    tokenizer = train_tokenizer(train_texts, option.vocab_size)
    tokenizer.save_pretrained(option.out)
    tokenizer = AutoTokenizer.from_pretrained(option.out)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [[*ids, EOS] for ids in tokenizer(list(texts))["input_ids"]]

    sequences = encode(train_texts)
    model = new_model(len(tokenizer))
    untrained = new_model(len(tokenizer))
    print(
        f"{model.num_parameters():,} parameters, {len(sequences):,} captions, "
        f"{sum(map(len, sequences)):,} tokens"
    )
    train(
        model,
        sequences,
        steps=option.steps,
        batch_size=option.batch_size,
        learning_rate=option.learning_rate,
        seed=option.seed,
    )
    model.to(torch.bfloat16).save_pretrained(option.out)

    heldout_rows = [row for row in captions(N_SHIPPED) if row["split"] == "heldout"]
    heldout = {"all": encode([row["text"] for row in heldout_rows])} | {
        language: encode([row["text"] for row in heldout_rows if row["language"] == language])
        for language in LANGUAGES
    }
    saved = {
        dtype: AutoModelForCausalLM.from_pretrained(option.out, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    print_table(
        heldout,
        {
            "trained (float32)": lambda s: model_loss(saved[torch.float32], s),
            "trained (bfloat16)": lambda s: model_loss(saved[torch.bfloat16], s),
            "untrained": lambda s: model_loss(untrained, s),
            "unigram": lambda s: unigram_loss(sequences, s, len(tokenizer)),
        },
    )


if __name__ == "__main__":
    main()
