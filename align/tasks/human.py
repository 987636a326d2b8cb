"""Agreement with people: cosines of pairs of sentences or words against how alike they were judged to be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.neighbors import unit_rows
from align.tasks.outcomes import Estimate


def sts(X: np.ndarray, Y: np.ndarray, scores: np.ndarray, *, random_state: int = 0) -> Estimate:
    """Semantic textual similarity: Spearman's correlation of cosines with human scores (Cer et al. 2017).

    Parameters
    ----------
    X, Y : (n, d) first and second sentence of each pair, by one encoder, or by two in their shared space.
    scores : (n,) how alike people found them.

    Raises ValueError for sides that do not match, fewer than 3 pairs, or scores that are all the same.
    """
    if X.shape != Y.shape or len(scores) != len(X):
        raise ValueError(f"STS needs pairs with a score each, got {X.shape}, {Y.shape} and {len(scores)} scores")
    cosines = np.sum(unit_rows(X).astype(np.float64) * unit_rows(Y), axis=1)
    return spearman(cosines, np.asarray(scores, np.float64), random_state=random_state)


def word_similarity(
    words: Sequence[str],
    vectors: np.ndarray,
    pairs: Sequence[tuple[str, str]],
    scores: Sequence[float] | np.ndarray,
    *,
    random_state: int = 0,
) -> tuple[Estimate, float]:
    """Spearman's correlation of the cosines of word pairs with human scores, and the share of pairs that were found.

    Pairs with a word that the vocabulary lacks are left out, which the coverage tells.

    Parameters
    ----------
    words, vectors : the vocabulary and its vectors (n, d).
    pairs, scores : words, and how alike people found them.
    """
    if len(pairs) != len(scores):
        raise ValueError(f"{len(pairs)} word pairs for {len(scores)} scores: give one score a pair")
    place = {word: row for row, word in enumerate(words)}
    kept = [i for i, (a, b) in enumerate(pairs) if a in place and b in place]
    if len(kept) < 3:
        raise ValueError(f"the vocabulary has both words of {len(kept)} of {len(pairs)} pairs; at least 3 are needed")
    X, Y = (vectors[[place[pairs[i][side]] for i in kept]] for side in (0, 1))
    return sts(X, Y, np.asarray(scores, np.float64)[kept], random_state=random_state), len(kept) / len(pairs)


def spearman(
    first: np.ndarray, second: np.ndarray, *, level: float = 0.95, replicates: int = 1000, random_state: int = 0
) -> Estimate:
    """Spearman's correlation of n values, with the percentile interval of a bootstrap over them; ties share ranks."""
    from scipy.stats import rankdata

    n = len(first)
    if n < 3:
        raise ValueError(f"a rank correlation needs at least 3 pairs, got {n}")
    for values in (first, second):
        if not np.isfinite(values).all() or (values == values[0]).all():
            raise ValueError("a rank correlation needs finite values that are not all the same")

    def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (rankdata(values, axis=1) - (n + 1) / 2 for values in (a, b))
        both = np.sqrt(np.sum(a * a, axis=1) * np.sum(b * b, axis=1))
        return np.asarray(np.sum(a * b, axis=1) / np.where(both > 0, both, 1))

    rng = np.random.default_rng(random_state)
    drawn = []
    step = max(1, 1_000_000 // n)
    for start in range(0, replicates, step):
        rows = rng.integers(0, n, (min(step, replicates - start), n))
        drawn.append(correlation(first[rows], second[rows]))
    return Estimate.of(correlation(first[None], second[None])[0], np.concatenate(drawn), n, level)
