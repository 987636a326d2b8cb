"""Label transfer against scikit-learn, and the fraction closer than the true match item by item."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import KNeighborsClassifier

from align.measures.matching import foscttm
from align.rules.hubness import CSLS, Euclidean
from align.tasks.transfer import foscttm_outcomes, label_transfer_outcomes, transfer_labels


@pytest.mark.parametrize(("rule", "metric"), [(None, "cosine"), (Euclidean(), "euclidean")])
@pytest.mark.parametrize("k", [1, 5])
def test_is_the_vote_of_the_nearest(rule: Euclidean | None, metric: str, k: int) -> None:
    rng = np.random.default_rng(0)
    keys, queries = rng.normal(size=(80, 5)), rng.normal(size=(60, 5))
    # Two classes and an odd number of votes: no ties.
    labels, truth = rng.choice(["x", "y"], 80), rng.choice(["x", "y"], 60)
    expected = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(keys, labels).predict(queries)
    np.testing.assert_array_equal(transfer_labels(queries, keys, labels, k=k, rule=rule), expected)
    hits, statistic = label_transfer_outcomes(queries, truth, keys, labels, k=k, rule=rule)["accuracy"]
    np.testing.assert_array_equal(hits, expected == truth)
    assert statistic == "mean"


def test_ties_go_to_the_nearest() -> None:
    keys = np.array([[np.cos(t), np.sin(t)] for t in (0.1, -0.2, 0.3, -0.4)])
    query = np.array([[1.0, 0]])
    assert transfer_labels(query, keys, ["b", "a", "b", "a"], k=4) == ["b"]
    assert transfer_labels(query, keys, ["b", "a", "a", "b"], k=4) == ["b"]
    assert transfer_labels(query, keys, ["b", "a", "a", "c"], k=4) == ["a"]


@given(st.integers(0, 10**6))
def test_foscttm_item_by_item(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 3, (12, 2)).astype(float)
    Y = X + rng.integers(0, 2, (12, 2))
    values, statistic = foscttm_outcomes(X, Y)["foscttm"]
    D = cdist(X, Y, "sqeuclidean")
    for i in range(12):
        others = np.arange(12) != i
        shares = [np.mean((row[others] < D[i, i]) + (row[others] == D[i, i]) / 2) for row in (D[i], D[:, i])]
        assert values[i] == pytest.approx(np.mean(shares))
    assert values.mean() == pytest.approx(foscttm(X, Y))
    assert statistic == "mean"


def test_refusals() -> None:
    X = np.random.default_rng(0).normal(size=(6, 3))
    with pytest.raises(ValueError, match="label transfer needs the class of each item"):
        transfer_labels(X, X, None)
    with pytest.raises(ValueError, match="at least two classes"):
        transfer_labels(X, X, ["a"] * 6)
    with pytest.raises(ValueError, match="k must be between 1 and 6"):
        transfer_labels(X, X, list("aabbcc"), k=7)
    with pytest.raises(ValueError, match="give references"):
        transfer_labels(X, X, list("aabbcc"), rule=CSLS())
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(5, 3\)"):
        foscttm_outcomes(X, X[1:])
