"""How alike two spaces are, without any map between them."""

from __future__ import annotations

from typing import Any

from align.measures.base import Measure, Similarity
from align.measures.predictivity import LinearPredictivity
from align.measures.rsa import CorrelationRSA, CosineRSA, EuclideanRSA
from align.measures.similarity import (
    CKNNA,
    RBFCKA,
    CycleKNN,
    DebiasedLinearCKA,
    DebiasedRBFCKA,
    LinearCKA,
    MutualKNN,
)
from align.measures.subspace import PWCCA, SVCCA, ShapeDistance

MEASURES: dict[str, type[Measure]] = {
    measure.name: measure
    for measure in (
        LinearCKA, DebiasedLinearCKA, RBFCKA, DebiasedRBFCKA, MutualKNN, CycleKNN, CKNNA, SVCCA, PWCCA, ShapeDistance,
        EuclideanRSA, CosineRSA, CorrelationRSA, LinearPredictivity,
    )
}  # fmt: skip
"""Every measure of similarity by its name."""


def make_measure(name: str, **parameters: Any) -> Measure:
    """The measure of this name; ValueError, with the names that there are, for any other."""
    if name not in MEASURES:
        raise ValueError(f"there is no measure {name!r}; there are {', '.join(MEASURES)}")
    return MEASURES[name](**parameters)


__all__ = ["MEASURES", "Measure", "Similarity", "make_measure"]
