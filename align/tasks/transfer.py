"""Two spaces without common items to learn from: do classes carry over, and is the true match near?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.base import clone

from align.measures.matching import foscttm_of_items
from align.rules.base import InnerProductRule
from align.rules.hubness import Cosine
from align.tasks.outcomes import Outcome, check_labels
from align.tasks.zero_shot import zero_shot_outcomes


def transfer_labels(
    queries: np.ndarray,
    keys: np.ndarray,
    labels: Sequence[str] | np.ndarray | None,
    *,
    k: int = 5,
    rule: InnerProductRule | None = None,
    references: np.ndarray | None = None,
) -> np.ndarray:
    """The class (n,) that most of a query's k best keys have; a tie goes to the class of the best placed key.

    Parameters
    ----------
    queries : (n, d) items of one space, mapped.
    keys, labels : (m, d) items of the other space, whose classes are known.
    rule, references : an unfitted rule, instead of the cosine, and items of the queries' side that it may need.
    """
    names = check_labels(labels, len(keys), "label transfer")
    if not 1 <= k <= len(keys):
        raise ValueError(f"k must be between 1 and {len(keys)}, the number of labelled items; got {k}")
    classes, codes = np.unique(names, return_inverse=True)
    near = codes[clone(rule or Cosine()).fit(keys, references).search(queries, k)[1]]
    # Of k votes the i-th nearest is worth slightly more than the one after, which decides ties alone.
    votes = np.zeros((len(near), len(classes)))
    for place in range(k):
        votes[np.arange(len(near)), near[:, place]] += 1 + 0.5 ** (place + 1) / k
    return classes[votes.argmax(1)]


def label_transfer_outcomes(
    queries: np.ndarray,
    query_labels: Sequence[str] | np.ndarray | None,
    keys: np.ndarray,
    labels: Sequence[str] | np.ndarray | None,
    *,
    k: int = 5,
    rule: InnerProductRule | None = None,
    references: np.ndarray | None = None,
) -> dict[str, Outcome]:
    """accuracy and per_class_accuracy of the transferred labels, one value a query; k = 5 is that of SCOT (2022)."""
    predicted = transfer_labels(queries, keys, labels, k=k, rule=rule, references=references)
    truth = check_labels(query_labels, len(queries), "label transfer")
    return zero_shot_outcomes(predicted, truth)


def foscttm_outcomes(X: np.ndarray, Y: np.ndarray) -> dict[str, Outcome]:
    """The fraction of samples closer than the true match, one value an item (the mean of both directions).

    Their mean is `align.measures.matching.foscttm`; rows X (n, d) and Y (n, d) are paired and in one space.
    """
    return {"foscttm": (foscttm_of_items(X, Y), "mean")}
