"""Zero-shot classification by prompts, and zero-shot stitching into a head trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sklearn.linear_model import RidgeClassifierCV


class Head(Protocol):
    """Anything that gives a class index for each vector."""

    def predict(self, X: np.ndarray) -> np.ndarray: ...


class LinearHead:
    """A pretrained classifier's last layer: logits = x @ weight.T + bias.

    Parameters
    ----------
    weight, bias : (classes, d) and (classes,).
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"a head needs weights (classes, d) and biases (classes,), got {weight.shape}, {bias.shape}"
            )
        self.weight = weight
        self.bias = bias

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The class index (n,) of each row of X (n, d)."""
        return np.argmax(X @ self.weight.T + self.bias, axis=1)


def train_head(X: np.ndarray, labels: Sequence[str] | np.ndarray) -> Head:
    """A ridge classifier on vectors X (n, d), its penalty chosen by leave-one-out on them (closed form).

    Penalties are tried relative to the mean eigenvalue of the scatter. Raises ValueError for fewer than two classes.
    """
    if len(set(labels)) < 2:
        raise ValueError("a head needs anchors of at least two classes")
    eigenvalue = float(np.var(X, axis=0, dtype=np.float64).mean()) * len(X)
    return RidgeClassifierCV(alphas=eigenvalue * np.logspace(-2, 3, 11)).fit(X, np.asarray(labels))


def majority_share(anchors: Sequence[str], held_out: Sequence[str]) -> float:
    """The accuracy on the held-out labels of always saying the anchors' most frequent class."""
    classes, counts = np.unique(np.asarray(anchors), return_counts=True)
    return float(np.mean(np.asarray(held_out) == classes[np.argmax(counts)]))


def permutation_null(
    predicted: np.ndarray, labels: np.ndarray, *, replicates: int = 1000, random_state: int = 0
) -> np.ndarray:
    """Accuracies (replicates,) if predictions and labels were linked at random."""
    rng = np.random.default_rng(random_state)
    # Small integers compare far faster than names do.
    codes = np.unique(np.concatenate([predicted, labels]), return_inverse=True)[1].astype(np.int32)
    first, second = codes[: len(predicted)], codes[len(predicted) :]
    return np.array([np.mean(first == rng.permutation(second)) for _ in range(replicates)])
