"""TF-IDF features of the character n-grams of texts."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer


def ngram_counts(texts: Sequence[str]) -> csr_matrix:
    """Return the number of times that each n-gram of 1 to 5 characters occurs in each text.

    Parameters
    ----------
    texts
        Dims ``(sample,)``; at least one of them is not empty.
    """
    vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(1, 5))
    return vectorizer.fit_transform(np.array(texts, dtype=object))


def tfidf(train: csr_matrix, test: csr_matrix) -> tuple[csr_matrix, csr_matrix]:
    """Return TF-IDF features, as if only the training texts were known.

    Parameters
    ----------
    train, test
        Counts from :func:`ngram_counts`, dims ``(sample, n-gram)``.

    Returns
    -------
    tuple of csr_matrix
        Features of the n-grams that occur in training, with rows of length 1.
    """
    in_training = train.getnnz(axis=0) > 0
    weighting = TfidfTransformer(sublinear_tf=True)
    features = weighting.fit_transform(train[:, in_training])
    return features, weighting.transform(test[:, in_training])
