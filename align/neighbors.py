"""Exact nearest neighbours and ranks by blocks: never an n x m matrix."""

from __future__ import annotations

import numpy as np

BLOCK = 4096


def unit_rows(X: np.ndarray) -> np.ndarray:
    """Rows (n, d) scaled to length one, float32 or float64; zero rows stay zero."""
    X = X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1)


def nearest(queries: np.ndarray, keys: np.ndarray, k: int, *, exclude_self: bool = False) -> tuple[np.ndarray, np.ndarray]:
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
            columns = np.broadcast_to(np.arange(first, first + block.shape[1]), block.shape)
            if block.shape[1] > k:
                top = np.argpartition(-block, k - 1, axis=1)[:, :k]
                block, columns = np.take_along_axis(block, top, 1), np.take_along_axis(columns, top, 1)
            best, where = np.concatenate([best, block], 1), np.concatenate([where, columns], 1)
            if best.shape[1] > k:
                top = np.argpartition(-best, k - 1, axis=1)[:, :k]
                best, where = np.take_along_axis(best, top, 1), np.take_along_axis(where, top, 1)
        order = np.lexsort((where, -best), axis=1)
        scores[rows] = np.take_along_axis(best, order, 1)
        indices[rows] = np.take_along_axis(where, order, 1)
    return scores, indices


def ranks(queries: np.ndarray, keys: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The rank (n,), from 1, of each query's true key by inner product; a tie counts against it.

    Parameters
    ----------
    queries, keys : (n, d) and (m, d).
    truth : (n,) the row of `keys` that is right for each query.
    """
    out = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        block = queries[rows]
        true = truth[rows]
        right = np.empty(len(block), np.result_type(queries, keys))
        products = []
        # The true key's score is read from the same products that it is compared with: rounding is then the same.
        for first in range(0, len(keys), BLOCK):
            scores = block @ keys[first : first + BLOCK].T
            inside = (true >= first) & (true < first + BLOCK)
            right[inside] = scores[np.flatnonzero(inside), true[inside] - first]
            products.append(scores if len(keys) <= 8 * BLOCK else None)
        better = np.zeros(len(block), np.int64)
        for number, first in enumerate(range(0, len(keys), BLOCK)):
            scores = products[number]
            if scores is None:
                scores = block @ keys[first : first + BLOCK].T
            better += (scores >= right[:, None]).sum(1)
        out[rows] = np.maximum(better, 1)
    return out
