"""Which rule to take: candidates compared on the anchors, by a map that was fitted without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from sklearn.base import clone

from align.choose import fit_anchors
from align.estimator import Array
from align.maps.base import Map
from align.maps.linear import Identity
from align.moments import Moments
from align.rules.base import Rule
from align.rules.hubness import CSLS, Cosine, InvertedSoftmax, LocalScaling, MutualProximity

CANDIDATES: Mapping[str, Rule] = {
    "cosine": Cosine(),
    "csls": CSLS(),
    "inverted_softmax, 4": InvertedSoftmax(temperature=4.0),
    "inverted_softmax, 8": InvertedSoftmax(temperature=8.0),
    "inverted_softmax, 16": InvertedSoftmax(temperature=16.0),
    "mutual_proximity": MutualProximity(),
    "local_scaling": LocalScaling(),
    "nicdm": LocalScaling(mean=True),
}
"""What is compared where nothing else is asked for."""
Direction = Literal["forward", "backward"]


def choose_rule(
    fitted: Map,
    X: Array,
    Y: Array,
    folds: np.ndarray,
    *,
    candidates: Mapping[str, Rule] = CANDIDATES,
    direction: Direction = "forward",
    moments: Moments | None = None,
) -> tuple[str, dict[str, float]]:
    """The label of the candidate by which the anchors retrieve each other best, and each one's mean log rank.

    The map is fitted again without each fold, its hyperparameters as they are. The fold's items are retrieved among
    each other; the other anchors, which the map was fitted on, are the references, as all anchors are for new items.
    The lowest mean logarithm of the rank wins. Nothing but anchors is seen.

    Parameters
    ----------
    fitted : a fitted map.
    X, Y, folds : paired anchors (n, d_source), (n, d_target), and their fold numbers (n,).
    candidates : unfitted rules by a label of yours.
    direction : 'forward' if sources look for targets, 'backward' if targets look for sources.
    moments : the sums of X and Y with these folds, where they are already there.
    """
    if not candidates:
        raise ValueError("there is no rule to choose from: give at least one candidate")
    X, Y = Identity()._check_fit(X, Y)
    if len(folds) != len(X) or len(np.unique(folds)) < 2:
        raise ValueError(f"{len(X)} anchors need a fold number each, of two folds or more")
    folds = np.unique(folds, return_inverse=True)[1] if moments is None else folds
    if moments is None:
        moments = Moments.of(X, Y, folds, center=getattr(fitted, "center", True))
    logs: dict[str, list[np.ndarray]] = {label: [] for label in candidates}
    for fold in np.unique(folds):
        out, inside = folds != fold, folds == fold
        model = fit_anchors(fitted.settled(), X[out], Y[out], moments.rest[fold])
        queries, stored = model.source_to_shared(X[inside]), model.source_to_shared(X[out])
        keys = model.target_to_shared(Y[inside])
        if direction == "backward":
            queries, stored, keys = keys, model.target_to_shared(Y[out]), queries
        for label, rule in candidates.items():
            found = clone(rule).fit(keys, stored).ranks(queries, np.arange(len(queries)))
            logs[label].append(np.log(found))
    compared = {label: float(np.concatenate(parts).mean()) for label, parts in logs.items()}
    return min(compared, key=lambda label: compared[label]), compared
