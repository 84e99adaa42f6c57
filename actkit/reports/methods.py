"""Methods paragraphs for a paper, filled in with the settings of each result."""

from typing import Any

TEXTS = {
    "layer_norms": (
        "L2 norms over the hidden dimension of the output of each block, before the model's final norm; "
        "computed over {tokens} tokens. "
        "Every token has equal weight in the mean. "
        "Interval: {interval} ({resamples} resamples of whole clusters, seed {seed})."
    ),
    "layer_updates": (
        "The norm of the difference between a token's vectors at adjacent layers, divided by the norm at "
        "the lower layer, and the cosine between the two vectors; means over {tokens} tokens. "
        "Interval: {interval} ({resamples} resamples of whole clusters, seed {seed})."
    ),
    "massive_activations": (
        "The largest absolute value among {tokens} tokens, divided by the median absolute value (the "
        "median over samples of each sample's median). Massive activations are those above 100 and above "
        "1,000 times their sample's median (Sun et al. 2024)."
    ),
    "adjacent_cka": (
        "Linear CKA with the unbiased HSIC of Song et al. (2012), normalised as by Kornblith et al. "
        "(2019) and Nguyen et al. "
        "(2021), of {vectors} vectors, within each language, averaged over all draws of one sample per "
        "cluster. Interval: {interval}. Variants: without the 3 "
        "dimensions of largest variance, "
        "with each dimension z-scored, and with each vector scaled to unit RMS."
    ),
    "transitions": (
        "The distance d between adjacent layers is 1 - CKA. A step is a change point if log d exceeds a "
        "least-squares line through up to 4 steps on either side with 95% confidence over all layers of a "
        "language. The standard error combines the unevenness of the other steps, at least 10%, with a "
        "jackknife error; outlying steps are left out of the trend. Not tested: {untested}."
    ),
    "cka": "CKA as for adjacent layers, between all pairs of layers; {vectors} vectors.",
    "language_cka": "CKA as for adjacent layers, between the same samples in two languages, matched by "
    "sample_id. Interval: {interval}.",
    "similarity": (
        "Similarity of {vectors} vectors of a few layers by debiased CKA; mutual k-nearest neighbours by "
        "cosine (k = {k}; Huh et al. 2024); RSA, Spearman's correlation of cosine distances (Kriegeskorte et "
        "al. 2008); and orthogonal Procrustes of the {n_components} leading principal components. "
        "Calibrated: (similarity - m) / (1 - m), with the mean m over {permutations} permutations of the "
        "samples (seed {seed}). Of each language, at most {max_samples} samples; {independence}."
    ),
    "token_correlation": (
        "Correlation over {tokens} tokens of their norms at two of a few layers: Pearson's, and Spearman's. "
        "Interval: {interval}, on the scale of Fisher's z."
    ),
    "cluster_samples": (
        "k-means (scikit-learn, best of 5 starts) of the {n_components} leading principal components of "
        "{vectors} vectors, within each language; of the candidates, the one with the largest {criterion}. "
        "Stability: adjusted Rand index of fits to two disjoint halves ({resamples} divisions). Agreement "
        "with a label: adjusted Rand index and adjusted mutual information; p from {permutations} "
        "permutations of the label that respect dependent samples (seed {seed}). k-means divides any data; "
        "only gaps, as in a projection, show groups. In what follows, clusters are dependent samples."
    ),
    "erasure_probe": (
        "AUROC of a ridge-regression probe of {by} ({between}) in {vectors} vectors before and after erasure "
        "by LEACE (Belrose et al. 2023). The eraser is fitted on half of the clusters; the probe is trained "
        "and tested on the other half, in {folds} folds; then the halves change places. Interval: "
        "{interval}, with the erasers fixed."
    ),
    "intrinsic_dimension": (
        "Intrinsic dimension of {vectors} vectors: TwoNN (Facco et al. 2017), fitted to the samples with the "
        "{fraction:.0%} smallest ratios of distances; {independence}. Interval: {interval}, from {splits} "
        "splits into quarters (seed {seed})."
    ),
    "anisotropy": (
        "Mean cosine of {vectors} vectors over all pairs of different clusters, over all pairs within a "
        "cluster, and their difference (Ethayarajh 2019); clusters weigh equally. Interval: {interval}."
    ),
    "group_differential": (
        "A linear probe ({estimator}, L2 penalty) of {vectors} vectors, standardised in each training part, "
        "cross-validated in {folds} folds that are stratified by label and do not split clusters, with "
        "{seeds} seeds: mean AUROC, with a 95% interval by cluster. p: max-T permutation test of the same "
        "AUROC, corrected over layers, with {permutations} permutations that respect the clusters (seed "
        "{seed}). Differences to the baselines are paired by fold and cluster; their p-values are two-sided "
        "and corrected over layers by Holm's method. All p-values are corrected over languages too (p_holm). "
        "Differences between layers: simultaneous 95% intervals and p-values by max-T over all pairs, with "
        "a multivariate t distribution. Control tasks (Hewitt and Liang 2019): the same probe for a random "
        "label of each type ({control}), mean over 20 draws. Squared "
        "standardized mean difference: the squared distance between the group means, corrected for bias, "
        "divided by the total within-group variance. "
        "Compared: {between}."
    ),
    "classification_probe": (
        "One-vs-rest ridge regressions of {vectors} vectors, standardised in each training part, "
        "cross-validated in {folds} folds that are stratified by class and do not split clusters, with "
        "{seeds} seeds: mean AUROC of each class and its macro average, with 95% intervals by cluster. p: "
        "max-T permutation tests, corrected over layers and, for single classes, over classes too, with "
        "{permutations} permutations that respect the clusters (seed {seed}). Baselines use the same folds."
    ),
    "regression_probe": (
        "A ridge regression of {vectors} vectors, standardised in each training part, cross-validated in "
        "{folds} random folds that do not split clusters, with {seeds} seeds: R² relative to the mean of the "
        "training samples, and the mean Spearman correlation over folds, with 95% intervals by cluster. p: "
        "max-T permutation tests, corrected over layers, with {permutations} permutations that respect the "
        "clusters (seed {seed}). Baselines use the same folds."
    ),
    "sae_quality": (
        "Sparse autoencoders of {component}, on {tokens} tokens of held-out samples ({holdout_share:.0%} of "
        "the clusters, chosen by {holdout_origin}): FVU is the squared error divided by the variance. "
        "Baselines with as many active coefficients are fitted to the other samples: the first principal "
        "components (interpolated); the largest coefficients of all components in each batch; and features "
        "in random directions, scaled by one factor. Found again: active features whose decoder direction "
        "and that of a feature of another seed are mutual nearest neighbours with a cosine of at least 0.7. "
        "Cross-entropy (CE) of the tokens that follow the selected ones, at which the output is replaced; "
        "recovered is the share of the loss added by zero or mean ablation that the reconstruction avoids."
    ),
    "feature_differential": (
        "The value of a feature in a sample is its {summary} over {tokens} tokens. Studentised differences "
        "between {between} are tested by {permutations} permutations that respect the clusters (sign flips "
        "within pairs where there are pairs; seed {seed}), for every live feature of every layer: "
        "Benjamini-Hochberg over all of them (q), and max-T (p_max). AUROCs are of the half of the clusters "
        "that did not choose the feature ({splits} divisions)."
    ),
    "transfer": (
        "The same probe, trained in one {across} and tested in each, on clusters held out from training "
        "({folds} folds, 95% intervals by cluster)."
    ),
    "direction_cosines": (
        "The direction is the difference of the group means, {between}. The two directions of a cosine come "
        "from disjoint halves of the clusters ({splits} splits), so they share no sampling noise. The "
        "ceiling is the geometric mean of the directions' reliabilities (cosines between halves); the "
        "disattenuated cosine is the cosine divided by the ceiling, omitted where the 95% interval of a "
        "reliability contains 0 or its own interval contains every value from -1 to 1. Interval: {interval}."
    ),
}


class _Known(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "–"


def describe(attrs: dict[str, Any]) -> str:
    """Describe how a result was computed.

    Parameters
    ----------
    attrs
        Attributes of the result.
    """
    text = TEXTS[str(attrs["statistic"])]
    if "tokens" in attrs and "{tokens}" not in text:
        text += " Only these tokens are used: {tokens}."
    text = text.format_map(_Known(attrs))
    if attrs.get("matched_on"):
        text += f" Samples are matched on {attrs['matched_on']}."
    if attrs.get("residualized_on"):
        text += f" A regression on {attrs['residualized_on']} in each training part was subtracted."
    if "cluster" not in attrs:
        return text
    if not attrs["cluster"]:
        return f"{text} Samples are treated as independent."
    return f"{text} Samples that share a value of {attrs['cluster']} are treated as one cluster."
