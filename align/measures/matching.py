"""How well two spaces of the same items are matched, point by point."""

from __future__ import annotations

import numpy as np

BLOCK_BYTES = 1 << 26
"""Memory of one block of distances."""


def foscttm(X: np.ndarray, Y: np.ndarray) -> float:
    """The fraction of samples closer than the true match, the mean over both directions (Liu et al. 2019).

    For each row of X the share of the other rows of Y that are nearer to it, by Euclidean distance, than its own; and
    the same for each row of Y. 0 is perfect, .5 is chance. A tie counts for half. Rows X (n, d), Y (n, d) are paired
    and lie in one space; distances are computed by blocks.

    Raises ValueError for unpaired rows, different dimensions, or fewer than two rows.
    """
    return float(foscttm_of_items(X, Y).mean())


def foscttm_of_items(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """`foscttm` of each item (n,), the mean of both directions."""
    X, Y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
    if X.ndim != 2 or X.shape != Y.shape:
        raise ValueError(f"FOSCTTM needs paired rows in one space, got the shapes {X.shape} and {Y.shape}")
    n = len(X)
    if n < 2:
        raise ValueError(f"FOSCTTM needs at least 2 items, got {n}")
    from scipy.spatial.distance import cdist

    # cdist on the pairs alone: the same arithmetic as in the blocks, so that equal distances are equal.
    own = np.array([cdist(x[None], y[None], "sqeuclidean")[0, 0] for x, y in zip(X, Y, strict=True)])
    nearer = np.zeros(n)
    rows = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        D = cdist(X[block], Y, "sqeuclidean")
        nearer[block] += (own[block, None] > D).sum(1) + (own[block, None] == D).sum(1) / 2
        nearer += (own > D).sum(0) + (own == D).sum(0) / 2
    # The true match itself is always a tie, once in each direction.
    return (nearer - 1) / (2 * (n - 1))
