"""The model matrix: a verdict on every architecture.

``python -m tests.models.matrix`` prints it with its errors, and writes ``docs/models.md``.
"""

import re
import sys
import tempfile
from pathlib import Path

import transformers as tf

from .architectures import ARCHITECTURES
from .record import LAYERS
from .verdicts import TOLERANCE, Verdict, verdict

# differs from machine to machine
_FIGURE = re.compile(r"\d\.\de[+-]\d\d")
PAGE = Path(__file__).parents[2] / "docs" / "models.md"

_ABOUT = f"""# Which models can be captured

Small random models of each architecture, {LAYERS} blocks of width 32, are run through `actkit.extract`: eager
and sdpa attention (where transformers has both), a tokenizer that pads left and one that pads right, batches
of 1 and of 5 prompts of very different lengths, in English and Arabic. Every stored value is compared with
what transformers itself gives for that prompt alone, without padding, with the same attention implementation.

- **SUPPORTED**: no value differs by more than {TOLERANCE:.0e} of the largest value of its layer.
- **ERROR**: actkit refuses, with the message that is shown.
- **SILENTLY_WRONG**: a cube was written, and a value differs.
- `residual` is compared with `output_hidden_states=True`, the last block with what enters the final norm. Its
  column holds `embedding` too, which is compared with the first hidden state.
- `attention` and `mlp` are compared with what a block adds while the weights that its feed-forward part ends
  with are zero, and with what is missing then. No table of modules is needed for that.
- The sum rule is `residual[l] = residual[l-1] + attention[l] + mlp[l]`, computed from the stored numbers.
- Where attention and mlp cannot be had, the message is what a user sees who asks for them.

Made by `make matrix`, which prints the errors themselves; `tests/models/test_matrix.py` holds every row.
"""

_EXCEPTIONS = """
## What `attention` and `mlp` hold where the sum rule does not apply

They are always what a sublayer gives to the addition, after norms and multipliers that only it goes through.

- **Post-norm** encoders (BERT and its kin, BART) and OPT-350m normalise the stream after each addition. With
  the two norms of the block, `residual[l] = norm(norm(residual[l-1] + attention[l]) + mlp[l])`; that is what
  the column shows for them.
- **BLOOM with `apply_residual_connection_post_layernorm`** adds to the normalised stream:
  `residual[l] = norm(norm(residual[l-1]) + attention[l]) + mlp[l]`.
- Other models without the two columns have blocks of other parts: state spaces, recurrent layers, two mixers
  side by side, or weighted sums. Their `residual` is exact.

Falcon with ALiBi: transformers' eager and sdpa attention differ from each other (eager adds the bias twice);
each is compared with itself. ConvBERT and FNet let padding into the prompts; one at a time they are exact.
"""


def page(verdicts: list[Verdict], *, exact: bool = False) -> str:
    """Return the matrix as a Markdown table.

    Parameters
    ----------
    verdicts
        Its rows.
    exact
        Show errors as they were measured; else bounds, which are the same on every machine.
    """
    rows = [
        "| model | class | verdict | attention by | residual | attention | mlp | sum rule | message |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in verdicts:
        architecture = ARCHITECTURES[row.name]
        errors = [_number(row.errors.get(name), exact) for name in ("residual", "attention", "mlp")]
        sums = _number(row.sum_rule, exact)
        if architecture.sum_rule and row.sum_rule is not None:
            sums = f"{architecture.sum_rule}: {sums}"
        given = ", ".join(architecture.implementations)
        message = _cell(row.message if exact else _FIGURE.sub("…", row.message))
        cells = [row.name, f"`{architecture.model}`", row.status, given, *errors, sums, message]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def document(verdicts: list[Verdict]) -> str:
    """Return the whole page of the documentation."""
    counts = {status: sum(v.status == status for v in verdicts) for status in ("SUPPORTED", "ERROR")}
    wrong = len(verdicts) - sum(counts.values())
    total = f"{counts['SUPPORTED']} SUPPORTED, {counts['ERROR']} ERROR, {wrong} SILENTLY_WRONG"
    total = f"With transformers {tf.__version__}: {total}."
    return f"{_ABOUT}\n{total}\n\n{page(verdicts)}{_EXCEPTIONS}"


def _number(error: float | None, exact: bool) -> str:
    if error is None:
        return "–"
    if exact or error >= TOLERANCE:
        return f"{error:.1e}"
    return "< 1e-5" if error < 1e-5 else f"< {TOLERANCE:.0e}"


def _cell(message: str) -> str:
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(lines).replace("|", "\\|")


def main() -> None:
    """Print the matrix and, where it is whole, write the page."""
    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    names = sys.argv[1:] or list(ARCHITECTURES)
    verdicts = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="actkit-models-") as folder:
            verdicts.append(verdict(name, Path(folder)))
    print(page(verdicts, exact=True))
    if names == list(ARCHITECTURES):
        PAGE.write_text(document(verdicts), encoding="utf-8")
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
