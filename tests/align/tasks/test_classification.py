"""Heads against logits by hand and leave-one-out written out; the null of an accuracy."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from align.tasks.classification import LinearHead, majority_share, permutation_null, train_head


def test_linear_head_is_the_largest_logit() -> None:
    rng = np.random.default_rng(0)
    weight, bias, X = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=(20, 3))
    expected = [max(range(4), key=lambda c: sum(weight[c, j] * x[j] for j in range(3)) + bias[c]) for x in X]
    np.testing.assert_array_equal(LinearHead(weight, bias).predict(X), expected)
    with pytest.raises(ValueError, match=r"\(4, 3\), \(3,\)"):
        LinearHead(weight, bias[:3])


def test_trained_head_has_the_penalty_of_leave_one_out() -> None:
    rng = np.random.default_rng(1)
    labels = np.array(["a", "b", "c"])[np.arange(45) % 3]
    X = rng.normal(size=(45, 10)) + 2 + (labels == "a")[:, None] - (labels == "b")[:, None] * np.linspace(0, 2, 10)
    head = train_head(X, list(labels))
    x = X - X.mean(0)
    eigenvalue = np.linalg.eigvalsh(x.T @ x).mean()
    codes = np.where(labels[:, None] == np.unique(labels), 1.0, -1.0)
    errors = []
    alphas = eigenvalue * np.logspace(-2, 3, 11)
    for alpha in alphas:
        error = 0.0
        for i in range(45):
            keep = np.arange(45) != i
            mean = X[keep].mean(0)
            z = X[keep] - mean
            W = np.linalg.solve(z.T @ z + alpha * np.eye(10), z.T @ (codes[keep] - codes[keep].mean(0)))
            error += (((X[i] - mean) @ W + codes[keep].mean(0) - codes[i]) ** 2).sum()
        errors.append(error)
    expected = RidgeClassifier(alpha=alphas[np.argmin(errors)]).fit(X, labels)
    new = rng.normal(size=(50, 10)) + 2
    np.testing.assert_array_equal(head.predict(new), expected.predict(new))
    with pytest.raises(ValueError, match="at least two classes"):
        train_head(X, ["a"] * 45)


def test_majority_share() -> None:
    assert majority_share(["a", "b", "b"], ["b", "a", "c", "b"]) == 0.5
    assert majority_share(["a"], ["b"]) == 0


def test_null_is_that_of_shuffled_labels() -> None:
    rng = np.random.default_rng(2)
    predicted, labels = np.array(["x", "yy", "z"])[rng.integers(0, 3, (2, 60)) * rng.integers(0, 2, (2, 60))]
    null = permutation_null(predicted, labels, replicates=3000)
    # The number of hits of a random link has this mean and variance (Hoeffding 1951).
    hits = (predicted[:, None] == labels[None]).astype(float)
    centred = hits - hits.mean(0) - hits.mean(1, keepdims=True) + hits.mean()
    mean, variance = hits.mean(), (centred**2).sum() / 59 / 60**2
    assert null.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / 3000))
    assert null.std() == pytest.approx(np.sqrt(variance), rel=0.08)
    np.testing.assert_array_equal(null, permutation_null(predicted, labels, replicates=3000))
