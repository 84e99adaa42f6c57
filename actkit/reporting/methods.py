"""How each number was made, in words that a paper can use, with the settings of the results."""

from typing import Any

TEXTS = {
    "layer_norms": (
        "L2 norms over the hidden dimension of the output of each block, before the model's final norm; "
        "{tokens} tokens count. "
        "The mean weighs every token alike; its {interval} ({resamples} resamples, seed {seed})."
    ),
    "layer_updates": (
        "The norm of the difference of a token's vectors at neighbouring layers over the norm at the "
        "lower one, and the "
        "cosine of the two; means over {tokens} tokens, {interval} ({resamples} resamples, seed {seed})."
    ),
    "massive_activations": (
        "The largest absolute value among {tokens} tokens, over the median absolute value (the median "
        "over samples of each "
        "sample's median)."
    ),
    "adjacent_cka": (
        "Linear CKA with the unbiased HSIC of Song et al. (2012), normalised as by Kornblith et al. "
        "(2019) and Nguyen et al. "
        "(2021), of {values} vectors, within each language; {interval}. Beside it: without the 3 "
        "dimensions of most variance, "
        "with dimensions scaled to one variance, and with vectors scaled to one length."
    ),
    "transitions": (
        "The distance of neighbouring layers is 1 - CKA. One stands out where its robust z, (d - median) "
        "/ (1.4826 MAD), reaches "
        "3.5 and the lower end of its 95% interval exceeds the median of the others. It is confirmed "
        "where kernel change-point "
        "detection on the layer × layer matrix cuts there in 90% of {halves} random half-samples (seed "
        "{seed})."
    ),
    "cka": "As for neighbouring layers, each layer with each; {values} vectors.",
    "language_cka": "As for neighbouring layers, of the same samples in two languages, matched by "
    "sample_id; {interval}.",
    "group_differential": (
        "A logistic regression with an L2 penalty on scaled {values} vectors, tested in {folds} folds "
        "that keep labels in "
        "proportion and groups together, with {seeds} seeds: mean AUROC and its standard deviation. p: "
        "{permutations} permutations of "
        "the labels within what the groups leave free (seed {seed}), of the AUROC of a least-squares "
        "probe, the largest over "
        "layers counted. Effect: the squared distance of the means without its bias, over the variance "
        "within groups. "
        "Compared: {labels}."
    ),
    "transfer": (
        "The same probe, trained in one {across} and tested in each, on groups that it was not trained on "
        "({folds} folds)."
    ),
    "direction_cosines": (
        "The direction is the difference of the means, {labels}. The ceiling is the root of the product "
        "of the two directions' "
        "reliabilities (cosine of {splits} random halves, stepped up by Spearman-Brown); disattenuated is "
        "the cosine over it."
    ),
}


class _Known(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "–"


def describe(attrs: dict[str, Any]) -> str:
    """Say how a result was made.

    Parameters
    ----------
    attrs
        Those of the result.
    """
    text = TEXTS[str(attrs["statistic"])].format_map(_Known(attrs))
    groups = attrs.get("pairs")
    grouped = f" Samples with the same {groups} are treated as one group." if groups else ""
    return text + grouped
