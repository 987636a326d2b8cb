"""Versions of a model: do queries of a new one find what the old ones indexed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.neighbors import nearest, unit_rows
from align.tasks.outcomes import Estimate, Outcome, check_labels


@dataclass(frozen=True, eq=False)
class Compatibility:
    """What queries of each version found in the gallery of each.

    Attributes
    ----------
    hits : (T, T, n), [i, j] being 1 for every query of version i (row) that finds its class in the gallery of version j,
        versions from old to new.
    """

    hits: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """The compatibility matrix C (T, T): the share of hits; old/old and new/new on the diagonal."""
        return np.asarray(self.hits.mean(2))

    def outcomes(self) -> dict[str, Outcome]:
        """One value a query: 'query i, gallery j' for each pair of versions (from 1), and average_accuracy.

        The latter is AM = 2 / (T (T + 1)) sum over i >= j of C_ij (Biondi et al. 2023; P055).
        """
        T = len(self.hits)
        out: dict[str, Outcome] = {
            f"query {i + 1}, gallery {j + 1}": (self.hits[i, j], "mean") for i in range(T) for j in range(T)
        }
        out["average_accuracy"] = (self.hits[np.tril_indices(T)].mean(0), "mean")
        return out

    def average_compatibility(self, *, level: float = 0.95, replicates: int = 1000, random_state: int = 0) -> Estimate:
        """AC = 2 / (T (T - 1)) sum over i > j of [C_ij > C_jj] (Biondi et al. 2023; P055), bootstrapped over queries.

        The share of updates after which new queries find more in an old gallery than its own version's did.
        """
        n = self.hits.shape[2]
        rng = np.random.default_rng(random_state)
        drawn = []
        step = max(1, 4_000_000 // n)
        for start in range(0, replicates, step):
            times = rng.multinomial(n, np.full(n, 1 / n), min(step, replicates - start))
            # Counts of hits are whole numbers: what is equal compares as equal.
            drawn.append(_compatible(np.moveaxis(np.rint(self.hits @ times.T), 2, 0)))
        return Estimate.of(_compatible(self.hits.sum(2)[None])[0], np.concatenate(drawn), n, level)


def _compatible(totals: np.ndarray) -> np.ndarray:
    """AC (r,) of matrices (r, T, T)."""
    new, old = np.tril_indices(totals.shape[1], -1)
    return np.asarray((totals[:, new, old] > totals[:, old, old]).mean(1))


def compatibility(
    queries: Sequence[np.ndarray],
    labels: Sequence[str] | np.ndarray | None,
    galleries: Sequence[np.ndarray] | None = None,
    gallery_labels: Sequence[str] | np.ndarray | None = None,
) -> Compatibility:
    """Search by every version's queries in every version's gallery: a hit is a nearest item, by cosine, of the class.

    Parameters
    ----------
    queries : for each version, from old to new, the same n items as vectors (n, d) in one space.
    labels : the class of each.
    galleries, gallery_labels : likewise what is searched, (m, d); by default the queries, each among all the others.

    Raises ValueError for fewer than two versions, versions of different dimensions, and missing labels or one class.
    """
    alone = galleries is None
    if galleries is None:
        galleries, gallery_labels = queries, labels
    if len(queries) < 2 or len(galleries) != len(queries):
        raise ValueError(
            f"compatibility compares at least two versions, got {len(queries)} of queries and {len(galleries)} of "
            "galleries"
        )
    shapes = [[X.shape for X in side] for side in (queries, galleries)]
    if len({*shapes[0]}) > 1 or len({*shapes[1]}) > 1 or shapes[0][0][1] != shapes[1][0][1]:
        raise ValueError(
            "versions are compared on the same items in one space, got the shapes "
            f"{', '.join(str(shape) for side in shapes for shape in side)}: lead them into the old space by a map, "
            "for example orthogonal_extension"
        )
    names = check_labels(labels, len(queries[0]), "compatibility")
    among = check_labels(gallery_labels, len(galleries[0]), "compatibility")
    units = [[unit_rows(X) for X in side] for side in (queries, galleries)]
    hits = [[among[nearest(X, Y, 1, exclude_self=alone)[1][:, 0]] == names for Y in units[1]] for X in units[0]]
    return Compatibility(np.array(hits, np.float64))
