"""Accuracies by hand and by scikit-learn; the harmonic mean and its interval."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from align.score import Outcomes
from align.tasks.zero_shot import harmonic_mean, zero_shot_outcomes


def some(seed: int = 0, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(list("abcdef"), n, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    return np.where(rng.random(n) < 0.6, labels, rng.permutation(labels)), labels


def test_accuracies_are_those_of_scikit_learn() -> None:
    predicted, labels = some()
    found = {name: values.mean() for name, (values, _) in zero_shot_outcomes(predicted, labels, "abc").items()}
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["per_class_accuracy"] == pytest.approx(recall_score(labels, predicted, average="macro"))
    for kind, classes in (("seen", "abc"), ("unseen", "def")):
        expected = recall_score(labels, predicted, labels=list(classes), average="macro")
        assert found[f"accuracy_{kind}"] == pytest.approx(expected)
    assert set(zero_shot_outcomes(predicted, labels)) == {"accuracy", "per_class_accuracy"}


def test_harmonic_mean_and_its_interval() -> None:
    rng = np.random.default_rng(1)
    s, u = 0.8, 0.3
    values, covered = [], 0
    for trial in range(60):
        parts = [Outcomes((rng.random(200) < p).astype(float), [str(i) for i in range(200)]) for p in (s, u)]
        found = harmonic_mean(*parts, replicates=400, random_state=trial)
        a, b = (part.values.mean() for part in parts)
        assert found.value == pytest.approx(2 / (1 / a + 1 / b))
        assert found.n == 400
        covered += found.low <= 2 * s * u / (s + u) <= found.high
        values.append((found.value, found.high - found.low))
    assert covered >= 51
    # The interval is as wide as the values are spread: 2 x 1.96 standard deviations.
    assert np.mean([width for _, width in values]) == pytest.approx(3.92 * np.std([v for v, _ in values]), rel=0.3)


def test_harmonic_mean_of_nothing_found_is_zero() -> None:
    none, all_of = (Outcomes(np.full(5, value), list("abcde")) for value in (0.0, 1.0))
    assert (harmonic_mean(none, all_of).value, harmonic_mean(none, none).value) == (0, 0)
    assert harmonic_mean(all_of, all_of).value == 1


def test_refusals() -> None:
    predicted, labels = some()
    for nothing in (None, []):
        with pytest.raises(ValueError, match="needs the class of each item, and there are no labels"):
            zero_shot_outcomes(predicted, nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs items of at least two classes, and all are of 'a'"):
        zero_shot_outcomes(predicted, ["a"] * 300)
    with pytest.raises(ValueError, match="got 299 labels for 300 items"):
        zero_shot_outcomes(predicted, labels[1:])
    for classes, kind in (("abcdef", "unseen"), ("xyz", "seen")):
        with pytest.raises(ValueError, match=f"none is of a class {kind}: hold out whole classes"):
            zero_shot_outcomes(predicted, labels, classes)
