"""Commands about sparse autoencoders (SAEs) of a run: ``actkit saes``."""

import os
from typing import Any

from .cli_cubes import Subparsers, add_command, terminable
from .cli_output import print_cube, print_measures, print_pairs
from .errors import Fault, InputError
from .features.quality_result import COLUMNS


def add_saes(commands: Subparsers) -> None:
    """Add the command `saes`, whose subcommands train and apply sparse autoencoders."""
    purpose = "train and apply sparse autoencoders of the layers of a run"
    parser = commands.add_parser("saes", help=purpose, description=purpose)
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_train, _add_encode, _add_quality):
        add(subcommands)


def _add_train(commands: Subparsers) -> None:
    purpose = "train a sparse autoencoder on each layer of a run; the same command continues after a stop"
    parser = add_command(commands, "train", _train, purpose)
    parser.add_argument("run", help="run folder")
    parser.add_argument("--out", required=True, help="folder of the autoencoders, one folder for each layer")
    parser.add_argument("--layers", default="all", help="layers to train on (default: %(default)s)")
    parser.add_argument(
        "--component",
        default="residual",
        choices=["residual", "attention", "mlp"],
        help="part of each layer (default: %(default)s)",
    )
    parser.add_argument("--width", type=int, help="number of features (default: 8 times the hidden size)")
    parser.add_argument(
        "--k", type=int, default=32, help="mean number of active features of a token (default: %(default)s)"
    )
    parser.add_argument(
        "--architecture",
        default="batchtopk",
        choices=["batchtopk", "topk"],
        help="batchtopk keeps the k largest features of a token on average over a batch, topk of every token "
        "(default: %(default)s)",
    )
    parser.add_argument("--tokens", default="content", help="kind of token (default: %(default)s)")
    parser.add_argument(
        "--where",
        metavar="LABEL=VALUE",
        action="append",
        default=[],
        help="train only on samples with this value of a label, or of language; can be repeated",
    )
    parser.add_argument(
        "--holdout",
        metavar="LABEL",
        default="auto",
        help="label whose values are held out as a whole; none: single samples (default: detected)",
    )
    parser.add_argument("--steps", type=int, help="number of training steps (default: from the tokens)")
    parser.add_argument("--epochs", type=int, help="number of passes over the tokens, instead of --steps")
    parser.add_argument("--batch", type=int, default=4096, help="tokens per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, help="learning rate (default: from the width)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the order (default: 0)")
    parser.add_argument("--device", default="auto", help="device to train on (default: %(default)s)")
    parser.add_argument(
        "--memory", default="auto", help="memory for tokens, such as 4GB (default: a quarter of what is free)"
    )
    parser.add_argument(
        "--wandb",
        metavar="W",
        help="log to Weights & Biases: project=NAME, and further pairs separated by commas",
    )
    parser.add_argument(
        "--no-resume", dest="resume", action="store_false", help="start anew instead of continuing"
    )


def _train(run: str, out: str, holdout: str, where: list[str], **options: Any) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, as for an extraction
    from .features.training import train_saes
    from .features.training_log import training_log

    if unclear := [text for text in where if "=" not in text]:
        raise InputError([Fault("--where", f"cannot read {unclear[0]!r}", "write LABEL=VALUE")])
    labels = dict(text.split("=", 1) for text in where)
    held_out = None if holdout == "none" else holdout
    with terminable():
        train_saes(run, out=out, where=labels or None, holdout=held_out, **options)
    last = training_log(out).isel(step=-1)
    settings = last.attrs
    size = f"{settings['width']:,} features of {settings['component']}, {settings['n_tokens']:,} tokens"
    print_pairs([("saes", out), ("size", size), ("held out", settings["holdout_cluster"] or "samples")])
    print(f"\n{'layer':>5}  {'FVU':>7}  {'L0':>7}  {'dead':>7}   of held-out tokens")
    for layer, fvu, l0, dead in zip(
        last.layer.values, last.fvu.values, last.l0.values, last.n_dead.values, strict=True
    ):
        print(f"{layer:>5}  {fvu:>7.3f}  {l0:>7.1f}  {int(dead):>7,}")
    print(f"\nopen them in Python:  actkit.load_saes({out!r})")
    return 0


def _add_encode(commands: Subparsers) -> None:
    purpose = "store the features of the tokens of a run; the same command continues after a stop"
    parser = add_command(commands, "encode", _encode, purpose)
    parser.add_argument("run", help="run folder, its cube.zarr, or the URL of either")
    parser.add_argument("saes", help="folder of the autoencoders")
    parser.add_argument("--out", required=True, help="run folder of the features, to create or continue")
    parser.add_argument("--top", type=int, help="most features to keep of a token (default: all active ones)")
    parser.add_argument("--tokens", default="content", help="kind of token (default: %(default)s)")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "float16"], help="dtype of the values"
    )
    parser.add_argument("--device", default="auto", help="device to compute on (default: %(default)s)")
    parser.add_argument(
        "--no-resume", dest="resume", action="store_false", help="refuse a folder that holds features"
    )


def _encode(run: str, saes: str, **options: object) -> int:
    from .features.feature_encoder import encode
    from .features.sparse_values import cut_share

    with terminable():
        features = encode(run, saes, **options)  # type: ignore[arg-type]
    pairs = []
    if options["top"] is not None:  # the share takes a pass over all features
        share = cut_share(features)
        layers = zip(share.layer.values.tolist(), share.values.tolist(), strict=True)
        pairs.append(("cut off", ", ".join(f"{part:.1%} at layer {layer}" for layer, part in layers)))
    print_cube(features, pairs)
    return 0


def _add_quality(commands: Subparsers) -> None:
    purpose = "measure autoencoders on held-out samples, beside baselines; `actkit report` shows the result"
    parser = add_command(commands, "quality", _quality, purpose)
    parser.add_argument("run", help="run folder")
    parser.add_argument(
        "saes",
        help="folder of the autoencoders, into which the result is written, or Hugging Face name",
    )
    parser.add_argument(
        "--other", metavar="FOLDER", help="autoencoders of another seed: how many features are found again"
    )
    parser.add_argument(
        "--model", help="model of the run, to measure its next-token loss with the reconstructions"
    )
    parser.add_argument(
        "--model-samples",
        type=int,
        default=200,
        help="most held-out samples that the model runs on (default: %(default)s)",
    )
    parser.add_argument("--tokens", default="content", help="kind of token (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="device to compute on (default: %(default)s)")


def _quality(run: str, saes: str, **options: object) -> int:
    from .features.quality import sae_quality

    out = saes if os.path.isdir(saes) else None  # else a repository, or a pattern
    quality = sae_quality(run, saes, out=out, **options)  # type: ignore[arg-type]
    print_measures(quality, COLUMNS)
    return 0
