"""One pair on one split: maps are fitted on the anchors and judged on the held-out items by every task that applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from sklearn.base import clone

from align.choose import fit_anchors
from align.maps import AffineMap, Identity, Map
from align.moments import Moments, Points, Sums
from align.pair import Split
from align.rules import make_rule
from align.rules.prototype import NearestPrototype
from align.score import FEW, Outcomes, Score, Statistic, intervals, permutation_p
from align.tasks import classification, retrieval

Key = tuple[str, str, str, str]
"""Map label, rule, task, metric."""
Judged = dict[tuple[str, str, str], tuple[np.ndarray, Statistic]]
"""One value a held-out item, with the statistic that sums it up, by rule, task and metric."""
BY_OTHER_RULES = ("recall_at_1", "recall_at_10", "mrr")
"""What is kept of retrieval by a rule other than the cosine."""
HEAD = "head"
"""Stands for the rule where a trained head decides."""


@dataclass(eq=False)
class Anchors:
    """One space's anchors of one split, with what every pair of this space shares."""

    vectors: np.ndarray
    folds: np.ndarray
    sums: dict[bool, Sums] = field(default_factory=dict)
    """Sums about the mean (or about zero) that were taken elsewhere."""
    _points: dict[bool, Points] = field(default_factory=dict)
    _head: classification.Head | None = None

    def head(self, labels: np.ndarray) -> classification.Head:
        """The classifier trained on these vectors and their labels (n,), once."""
        if self._head is None:
            self._head = classification.train_head(self.vectors, labels)
        return self._head

    def points(self, center: bool) -> Points:
        """The sums about the mean (or about zero), taken once."""
        if center not in self._points:
            self._points[center] = Points.of(self.vectors, self.folds, center=center)
        return self._points[center]


@dataclass(frozen=True, eq=False)
class Tasks:
    """What else than retrieval a pair can be judged by; each part may be missing.

    Attributes
    ----------
    labels : the class of every joined item, for heads and zero-shot classes.
    prompts, prompt_labels : prompt embeddings (p, d_target) in the target space, and the class of each.
    rules : how answers are found, names in `align.rules.RULES`. They know of other queries what the anchors tell them.
    back : whether targets look for their sources, too.
    stitch : whether to train a head in the target space and feed it with mapped sources.
    pretrained_head : the target encoder's own classifier; scored is the agreement of its decision on mapped
        sources with its decision on the true target vectors.
    source_head : the source encoder's own classifier over the same classes, as that score's native baseline.
    """

    labels: Sequence[str] | None = None
    prompts: np.ndarray | None = None
    prompt_labels: Sequence[str] = ()
    rules: Sequence[str] = ("cosine",)
    back: bool = False
    stitch: bool = False
    pretrained_head: classification.LinearHead | None = None
    source_head: classification.LinearHead | None = None


@dataclass(eq=False)
class Evaluation:
    """A pair on one split.

    Parameters
    ----------
    source, target : the anchors of each space.
    held_out_source, held_out_target : (m, d_source), (m, d_target), row i being the same item in both.
    split : where anchors and held-out items stand among the joined items.
    tasks : what to judge by, besides retrieval.
    sums : the anchors' moments about the mean (or about zero), where they are taken elsewhere than from `source` and
        `target`; see `align.blocks`.
    """

    source: Anchors
    target: Anchors
    held_out_source: np.ndarray
    held_out_target: np.ndarray
    split: Split
    tasks: Tasks = field(default_factory=Tasks)
    sums: Callable[[bool], Moments] | None = None

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.asarray(self.tasks.labels)

    @cached_property
    def _head(self) -> classification.Head:
        return self.target.head(self._labels[self.split.anchors])

    @cached_property
    def _own_decisions(self) -> np.ndarray:
        assert self.tasks.pretrained_head is not None
        return self.tasks.pretrained_head.predict(self.held_out_target)

    def moments(self, center: bool = True) -> Moments:
        """The anchors' sums, with folds."""
        if self.sums is not None:
            return self.sums(center)
        return self.source.points(center).with_target(self.target.points(center))

    def fit(self, unfitted: Map) -> Map:
        """A fitted copy. A map without pairs gets the targets in an order that says nothing."""
        model = clone(unfitted)
        if isinstance(model, AffineMap) and model.from_sums:
            return model.fit_moments(self._moments(model.center))
        order = np.arange(len(self.split.anchors))
        if not model.paired and getattr(model, "init", "identity") == "identity":
            order = np.random.default_rng(0).permutation(order)
        return model.fit(self.source.vectors, self.target.vectors[order])

    def _moments(self, center: bool) -> Moments:
        if center not in self._pair_moments:
            self._pair_moments[center] = self.moments(center)
        return self._pair_moments[center]

    @cached_property
    def _pair_moments(self) -> dict[bool, Moments]:
        return {}

    def fit_shuffled(self, fitted: Map, *, random_state: int = 0) -> Map:
        """The same map, with the same hyperparameters, fitted on anchors whose pairs are shuffled: the control."""
        order = np.random.default_rng(random_state).permutation(len(self.split.anchors))
        model = fitted.settled()
        if isinstance(model, AffineMap) and model.from_sums:
            moments = self._moments(model.center)
            if self.sums is None:
                X, Y = (_rows(side.points(model.center)) for side in (self.source, self.target))
            else:
                by_fold = np.argsort(self.split.folds, kind="stable")
                X, Y = self.source.vectors[by_fold], self.target.vectors[by_fold]
                X, Y = X - moments.source.center.astype(X.dtype), Y - moments.target.center.astype(Y.dtype)
            # A permutation changes neither space's own sums, only those across.
            return model.fit_moments(Moments(moments.source, moments.target, (X.T @ Y[order]).astype(np.float64)))
        return model.fit(self.source.vectors, self.target.vectors[order])

    def judge(self, model: Map) -> Judged:
        """Every (rule, task, metric) that applies to a fitted map, as one outcome a held-out item."""
        held = self.held_out_source, self.held_out_target
        labels = None if self.tasks.labels is None else self._labels[self.split.held_out]
        out = self._answers(model, *held, labels, self.source.vectors, self.target.vectors)
        if self.tasks.stitch:
            if model.into_target:
                predicted = self._head.predict(model.transform(self.held_out_source))
            else:
                # A relative map has no way into the target space: its head lives in the shared one (P062).
                anchors = model.target_to_shared(self.target.vectors)
                head = classification.train_head(anchors, self._labels[self.split.anchors])
                predicted = head.predict(model.source_to_shared(self.held_out_source))
            out[HEAD, "stitching", "accuracy"] = self._hits(predicted)
        if self.tasks.pretrained_head is not None and model.into_target:
            same = self.tasks.pretrained_head.predict(model.transform(self.held_out_source)) == self._own_decisions
            out[HEAD, "pretrained_head", "agreement"] = (same.astype(np.float64), "mean")
        return out

    def _answers(
        self,
        model: Map,
        X: np.ndarray,
        Y: np.ndarray,
        labels: np.ndarray | None,
        X_known: np.ndarray,
        Y_known: np.ndarray,
    ) -> Judged:
        """What the rules make of paired new items X (n, d_source), Y (n, d_target), knowing others of each side."""
        out: Judged = {}
        queries, gallery = model.source_to_shared(X), model.target_to_shared(Y)
        stored = model.source_to_shared(X_known)
        ways = [("retrieval", queries, gallery, stored)]
        if self.tasks.back:
            ways.append(("retrieval_back", gallery, queries, model.target_to_shared(Y_known)))
        prompts = None if self.tasks.prompts is None else model.target_to_shared(self.tasks.prompts)
        for name in self.tasks.rules:
            for task, asked, among, known in ways:
                ranks = retrieval.retrieval_ranks(asked, among, make_rule(name), known)
                for metric, outcome in retrieval.retrieval_outcomes(ranks).items():
                    if name == "cosine" or metric in BY_OTHER_RULES:
                        out[name, task, metric] = outcome
            if prompts is not None and labels is not None:
                classes = NearestPrototype(prompts, self.tasks.prompt_labels, rule=make_rule(name), references=stored)
                hits = (classes.predict(queries) == labels).astype(np.float64)
                out[name, "zero_shot", "accuracy"] = (hits, "mean")
        return out

    def _hits(self, predicted: np.ndarray) -> tuple[np.ndarray, Statistic]:
        return (predicted == self._labels[self.split.held_out]).astype(np.float64), "mean"

    def references(self) -> dict[str, dict[tuple[str, str], float]]:
        """Baselines that no map is needed for: native (the target's own embeddings) and chance."""
        m = len(self.held_out_source)
        chance = {
            (task, metric): value
            for task in ("retrieval", "retrieval_back")
            for metric, value in retrieval.retrieval_chance(m).items()
        }
        native: dict[tuple[str, str], float] = {}
        if self.tasks.prompts is not None:
            identity = Identity().fit_moments(self._moments(True))
            rule = NearestPrototype(identity.target_to_shared(self.tasks.prompts), self.tasks.prompt_labels)
            hits, _ = self._hits(rule.predict(identity.target_to_shared(self.held_out_target)))
            native["zero_shot", "accuracy"] = float(hits.mean())
        if self.tasks.stitch:
            native["stitching", "accuracy"] = float(self._hits(self._head.predict(self.held_out_target))[0].mean())
        if self.tasks.labels is not None:
            held = self._labels[self.split.held_out]
            majority = classification.majority_share(self._labels[self.split.anchors], held)
            chance |= {("zero_shot", "accuracy"): majority, ("stitching", "accuracy"): majority}
        if self.tasks.pretrained_head is not None and self.tasks.source_head is not None:
            own = self.tasks.source_head.predict(self.held_out_source)
            native["pretrained_head", "agreement"] = float(np.mean(own == self._own_decisions))
        return {"native": native, "chance": chance}

    def cross_validate(self, fitted: Map) -> dict[tuple[str, str, str], float]:
        """What `judge` would say of the anchors alone, by (rule, task, metric), heads left out.

        Each fold is new to the map that is fitted on the other folds, with the hyperparameters chosen on all.
        """
        moments = self._moments(getattr(fitted, "center", True))
        X, Y, folds = self.source.vectors, self.target.vectors, self.split.folds
        labels = None if self.tasks.labels is None else self._labels[self.split.anchors]
        parts: dict[tuple[str, str, str], list[np.ndarray]] = {}
        statistics: dict[tuple[str, str, str], Statistic] = {}
        for fold in np.unique(folds):
            outside, inside = folds != fold, folds == fold
            model = fit_anchors(fitted.settled(), X[outside], Y[outside], moments.rest[fold])
            inner = None if labels is None else labels[inside]
            for key, (values, how) in self._answers(model, X[inside], Y[inside], inner, X[outside], Y[outside]).items():
                parts.setdefault(key, []).append(values)
                statistics[key] = how
        return {key: float(getattr(np, statistics[key])(np.concatenate(values))) for key, values in parts.items()}


def _rows(points: Points) -> np.ndarray:
    """All anchors about the common mean, fold after fold."""
    means = (fold.mean - points.sums.mean for fold in points.sums.folds)
    return np.concatenate([rows + mean for rows, mean in zip(points.parts, means, strict=True)])


def pool(
    names: Mapping[str, str],
    outcomes: Sequence[Mapping[Key, tuple[np.ndarray, Statistic]]],
    units: Sequence[Sequence[str]],
    baselines: Mapping[Key, Mapping[str, float]],
    *,
    unit: str,
    random_state: int = 0,
) -> list[Score]:
    """Scores over several split seeds, with intervals that know an item when it comes again.

    Parameters
    ----------
    names : source, target and split, as in `Score`.
    outcomes : for each seed, one outcome a held-out item by (map, rule, task, metric).
    units : for each seed, the item key or the group of each held-out item.
    baselines : by (map, rule, task, metric), the baselines' values by name.
    unit : what `units` are: 'items' or 'groups'.
    """
    flat = [name for seed in units for name in seed]
    kept = {
        key: Outcomes(np.concatenate([seed[key][0] for seed in outcomes]), flat, statistic)
        for key, (_, statistic) in outcomes[0].items()
    }
    bounds = intervals(list(kept.values()), random_state=random_state)
    n = len(set(flat))
    nulls: dict[int, Mapping[str, np.ndarray]] = {}
    scores = []
    for (key, pooled), (low, high) in zip(kept.items(), bounds, strict=True):
        label, rule, task, metric = key
        p_value = None
        if task.startswith("retrieval") and metric.startswith("recall"):
            # The null knows of a retrieval nothing but the number of its items.
            m = len(outcomes[0][key][0])
            if m not in nulls:
                nulls[m] = retrieval.permutation_null(outcomes[0][key][0], random_state=random_state)
            p_value = permutation_p(float(outcomes[0][key][0].mean()), nulls[m][metric])
        scores.append(
            Score(
                names["source"],
                names["target"],
                map=label,
                rule=rule,
                split=names["split"],
                task=task,
                metric=metric,
                value=pooled.value(),
                low=low,
                high=high,
                n=n,
                unit=unit,
                baselines=dict(baselines.get(key, {})),
                p_value=p_value,
                warning=f"an interval from only {n} {unit} is rough, and may be too narrow" if n < FEW else None,
            )
        )
    return scores
