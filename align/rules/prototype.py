"""Nearest class prototype by cosine: what turns a text space into a zero-shot classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.neighbors import unit_rows


class NearestPrototype:
    """A class is the mean of its prompts' unit vectors; an item gets the class of largest cosine (CLIP, 2021).

    Parameters
    ----------
    prompts : (p, d) prompt embeddings, in the space that items are compared in.
    labels : the class of each prompt.

    Attributes
    ----------
    classes : the class names, in the order of first occurrence.
    prototypes : (classes, d) unit rows.
    """

    def __init__(self, prompts: np.ndarray, labels: Sequence[str]) -> None:
        if len(prompts) != len(labels):
            raise ValueError(f"{len(prompts)} prompts for {len(labels)} labels: give one label a prompt")
        self.classes = list(dict.fromkeys(labels))
        units, names = unit_rows(prompts), np.asarray(labels)
        self.prototypes = unit_rows(np.stack([units[names == name].mean(0) for name in self.classes]))

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Cosines (n, classes) of rows X (n, d)."""
        return unit_rows(X) @ self.prototypes.T

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The class name (n,) of each row of X (n, d)."""
        return np.asarray(self.classes)[np.argmax(self.scores(X), axis=1)]
