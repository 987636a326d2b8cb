"""Zero-shot classification: classes known by their prompts alone, some of which the map saw items of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from align.score import Outcomes, bootstrap
from align.tasks.outcomes import Estimate, Outcome, check_labels


def zero_shot_outcomes(
    predicted: np.ndarray, labels: Sequence[str] | np.ndarray, seen: Collection[str] | None = None
) -> dict[str, Outcome]:
    """What came of predicted class names (n,) for items of these labels (n,), as one value an item.

    accuracy, and per_class_accuracy (every class counts alike, as is usual for zero-shot splits: Xian et al. 2019).
    With `seen`, the classes that the map was fitted on items of, accuracy_seen and accuracy_unseen of the items of
    each kind: of per-class means too. Predictions among all classes give the generalised zero-shot task, predictions
    among the item's own kind the classical one.

    Raises ValueError for missing labels, one class, or a kind of which there is no item.
    """
    labels = check_labels(labels, len(predicted), "zero-shot classification")
    hits = (predicted == labels).astype(np.float64)
    out: dict[str, Outcome] = {"accuracy": (hits, "mean"), "per_class_accuracy": (_per_class(hits, labels), "mean")}
    if seen is not None:
        known = np.isin(labels, list(seen))
        for kind, which in (("seen", known), ("unseen", ~known)):
            if not which.any():
                raise ValueError(
                    f"generalised zero-shot needs items of seen and of unseen classes, and none is of a class {kind}: "
                    "hold out whole classes (or groups) and some items of the others"
                )
            out[f"accuracy_{kind}"] = (_per_class(hits[which], labels[which]), "mean")
    return out


def _per_class(hits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Hits, weighted so that their mean is the mean over classes of the accuracy within each."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weighted: np.ndarray = hits * (len(hits) / (len(counts) * counts[codes]))
    return weighted


def harmonic_mean(
    seen: Outcomes, unseen: Outcomes, *, level: float = 0.95, replicates: int = 1000, random_state: int = 0
) -> Estimate:
    """2 s u / (s + u) of the accuracies on seen and unseen classes (Xian et al. 2019), with its bootstrap interval.

    The two kinds have no item in common and are drawn independently.
    """
    means = [np.array(part.value()) for part in (seen, unseen)]
    drawn = [
        bootstrap(
            part.values,
            np.unique(np.asarray(part.units), return_inverse=True)[1],
            replicates=replicates,
            random_state=random_state + i,
        )
        for i, part in enumerate((seen, unseen))
    ]
    n = len(set(seen.units)) + len(set(unseen.units))
    return Estimate.of(_harmonic(*means), _harmonic(*drawn), n, level)


def _harmonic(s: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.asarray(2 * s * u / np.where(s + u > 0, s + u, 1))
