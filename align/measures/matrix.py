"""All spaces against all: CKA and mutual nearest neighbours from one pass over the items."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from align.measures.similarity import neighbour_overlap, neighbours

BLOCK_BYTES = 2**27


def similarity_matrices(spaces: Mapping[str, np.ndarray], *, k: int = 10) -> dict[str, np.ndarray]:
    """Linear CKA (biased and debiased) and mutual kNN between all spaces of the same n items.

    Parameters
    ----------
    spaces : name to rows (n, d), row i being the same item in all.
    k : neighbours of mutual kNN.

    Returns
    -------
    'cka', 'cka_debiased' and 'mutual_knn': symmetric matrices in the order of `spaces`. Kernels are taken in blocks
    of rows, so that memory does not grow with n squared.
    """
    names = list(spaces)
    n = len(next(iter(spaces.values())))
    if any(len(X) != n for X in spaces.values()):
        raise ValueError("similarity needs the same items in every space")
    if n < 4:
        raise ValueError(f"similarity needs at least 4 items, got {n}")
    centred = [X.astype(np.float32) - X.mean(0, dtype=np.float64).astype(np.float32) for X in spaces.values()]
    # A common factor of a space cancels in CKA; without it float32 products of large features lose digits.
    centred = [x / np.sqrt(np.mean(np.sum(x.astype(np.float64) ** 2, axis=1))).astype(np.float32) for x in centred]
    biased, debiased = np.zeros((2, len(names), len(names)))
    rows = max(1, BLOCK_BYTES // (4 * n * len(names)))
    squares = np.stack([np.sum(x.astype(np.float64) ** 2, axis=1) for x in centred])
    for start in range(0, n, rows):
        kernels = np.stack([(x[start : start + rows] @ x.T).ravel() for x in centred])
        biased += kernels @ kernels.T
    # The unbiased HSIC (Song et al. 2012): diagonals are left out; centred rows then sum to minus their own square.
    totals = squares.sum(1)
    traces = squares @ squares.T
    debiased = biased - traces + np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 * traces / (n - 2)
    lists = [neighbours(X, min(k, n - 1)) for X in spaces.values()]
    overlap = np.array([[neighbour_overlap(a, b) for b in lists] for a in lists])
    return {"cka": _normalise(biased), "cka_debiased": _normalise(debiased), "mutual_knn": overlap}


def _normalise(hsic: np.ndarray) -> np.ndarray:
    roots = np.sqrt(np.maximum(np.diag(hsic), np.finfo(float).tiny))
    return hsic / np.outer(roots, roots)
