"""TF-IDF features of the character n-grams of texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize


@dataclass(frozen=True)
class NgramCounts:
    """Number of times that n-grams occur in texts; n-grams of equal counts in every text share a column.

    Most n-grams occur in one text, or in two that differ in a word. Features that are equal for every sample
    can be replaced by one that is longer by the root of their number, without an effect on inner products.

    Parameters
    ----------
    counts
        Dims ``(sample, column)``.
    copies
        Number of n-grams that share a column, dims ``(column,)``.
    """

    counts: csr_matrix
    copies: np.ndarray

    def __getitem__(self, samples: np.ndarray) -> "NgramCounts":
        return NgramCounts(self.counts[samples], self.copies)


def ngram_counts(texts: Sequence[str]) -> NgramCounts:
    """Return the number of times that each n-gram of 1 to 5 characters occurs in each text.

    N-grams do not extend over the ends of words, so those of each distinct word are found once.

    Parameters
    ----------
    texts
        Dims ``(sample,)``; at least one of them is not empty.
    """
    # as scikit-learn prepares a text before it cuts words into n-grams
    words = CountVectorizer(analyzer=lambda text: text.lower().split())
    in_texts = words.fit_transform(np.array(texts, dtype=object))
    of_words = CountVectorizer(analyzer="char_wb", ngram_range=(1, 5), lowercase=False)
    counts = (in_texts @ of_words.fit_transform(words.get_feature_names_out())).tocsr()
    rng = np.random.default_rng(0)
    keys = rng.integers(2**63, size=(2, counts.shape[0]), dtype=np.int64)
    hashes = np.stack([counts.T @ key for key in keys])  # modulo 2 to the power of 64
    _, first, copies = np.unique(hashes, axis=1, return_index=True, return_counts=True)
    order = np.argsort(first)
    return NgramCounts(counts[:, first[order]], copies[order])


def tfidf(train: NgramCounts, test: NgramCounts) -> tuple[csr_matrix, csr_matrix]:
    """Return TF-IDF features, as if only the training texts were known.

    Parameters
    ----------
    train, test
        Rows of :func:`ngram_counts`.

    Returns
    -------
    tuple of csr_matrix
        Features of the n-grams that occur in training, with rows of length 1; equal features are replaced by
        one whose inner products are those of all.
    """
    in_training = train.counts.getnnz(axis=0) > 0
    weighting = TfidfTransformer(sublinear_tf=True, norm=None)
    lengths = np.sqrt(train.copies[in_training])
    features = weighting.fit_transform(train.counts[:, in_training]).multiply(lengths)
    tested = weighting.transform(test.counts[:, in_training]).multiply(lengths)
    return normalize(features.tocsr(), copy=False), normalize(tested.tocsr(), copy=False)
