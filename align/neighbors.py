"""Exact nearest neighbours and ranks by blocks: never an n x m matrix."""

from __future__ import annotations

import numpy as np

BLOCK = 4096


def unit_rows(X: np.ndarray) -> np.ndarray:
    """Rows (n, d) scaled to length one, float32 or float64; zero rows stay zero."""
    X = X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1)


def nearest(
    queries: np.ndarray, keys: np.ndarray, k: int, *, exclude_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The k keys of largest inner product with each query.

    Parameters
    ----------
    queries, keys : (n, d) and (m, d); give unit rows for cosine.
    k : 1 <= k <= m (m - 1 with `exclude_self`).
    exclude_self : query i is key i, and is not its own neighbour.

    Returns
    -------
    scores, indices : (n, k), best first; ties go to the lower index.
    """
    n, m = len(queries), len(keys)
    if not 1 <= k <= m - exclude_self:
        raise ValueError(f"k must be between 1 and {m - exclude_self}, got {k}")
    scores = np.empty((n, k), np.result_type(queries, keys))
    indices = np.empty((n, k), np.int64)
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        width = rows.stop - start
        best = np.full((width, 0), 0.0, scores.dtype)
        where = np.empty((width, 0), np.int64)
        for first in range(0, m, BLOCK):
            block = queries[rows] @ keys[first : first + BLOCK].T
            if exclude_self:
                own = np.arange(start, rows.stop) - first
                inside = (own >= 0) & (own < block.shape[1])
                block[np.flatnonzero(inside), own[inside]] = -np.inf
            top = _top(block, min(k, block.shape[1]))
            best = np.concatenate([best, np.take_along_axis(block, top, 1)], 1)
            where = np.concatenate([where, top + first], 1)
            order = np.lexsort((where, -best), axis=1)[:, :k]
            best, where = np.take_along_axis(best, order, 1), np.take_along_axis(where, order, 1)
        scores[rows], indices[rows] = best, where
    return scores, indices


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """The columns (n, k) of the k largest scores in each row, in no order; of equal ones the first columns."""
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    worst = np.take_along_axis(scores, top, 1).min(1, keepdims=True)
    # A partition picks any of several equal scores at the border: only such rows are looked at again.
    tied = np.flatnonzero((scores >= worst).sum(1) > k)
    top[tied] = np.argsort(-scores[tied], axis=1, kind="stable")[:, :k]
    return top


def ranks(queries: np.ndarray, keys: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The rank (n,), from 1, of each query's true key by inner product; a tie counts against it.

    Scores that differ by rounding alone are a tie: equal keys may be rounded differently at different places of a
    matrix product. NaN counts against the query too.

    Parameters
    ----------
    queries, keys : (n, d) and (m, d).
    truth : (n,) the row of `keys` that is right for each query.
    """
    n, m = len(queries), len(keys)
    out = np.empty(n, np.int64)
    rounding = 8 * np.finfo(np.result_type(queries, keys)).eps
    step = min(BLOCK, max(1, BLOCK * BLOCK // m))
    for start in range(0, n, step):
        block, true = queries[start : start + step], truth[start : start + step]
        scores = block @ keys.T
        slack = rounding * np.linalg.norm(block, axis=1) * np.linalg.norm(keys[true], axis=1)
        bound = scores[np.arange(len(block)), true] - slack
        out[start : start + step] = m - np.count_nonzero(scores < bound[:, None], axis=1)
    return out
