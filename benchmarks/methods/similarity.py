"""P229: do better picture encoders have more neighbours in common with text?"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from align.measures.similarity import CKNNA, DebiasedLinearCKA, MutualKNN
from align.pair import split as split_items
from benchmarks.methods.claims import FAR, Check, Claim, beyond
from benchmarks.methods.data import Data, embedded, emoji_pairs
from benchmarks.methods.figures import Figures, mean_precision
from benchmarks.methods.planted import planted, seen
from registry import encoders
from registry.encoders.precomputed import Precomputed

PICTURES = ("lite0", "lite1", "lite2", "resnet50-thin", "pixels", "untrained")
CONTROLS = ("pixels", "untrained")
TEXTS = ("minilm-l6", "e5-small", "e5-small-de", "e5-small-fr", "glove")
TOP1 = {
    "mobilenet_v1_0.25_128_quant": 0.459,
    "mobilenet_v1_0.5_160_quant": 0.655,
    "mobilenet_v1_0.75_192_quant": 0.758,
    "mobilenet_v1_1.0_224_quant_embedding_extractor": 0.863,
    "mobilenet_v2_1.0_224_quant": 0.873,
    "tf2_mobilenet_v2_1.0_224_ptq": 0.866,
}
"""ImageNet classifiers, with their accuracy on the sample of photographs."""


@dataclass(frozen=True, eq=False)
class Family(Data):
    """A text space, as X and Y, and the picture spaces of the same items; their qualities, where these are known."""

    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    qualities: Mapping[str, float] = field(default_factory=dict)


def families() -> list[Data]:
    """The emoji with each text encoder, and photographs with their class names where SUTURE_BENCH_DATA has them."""
    found: list[Data] = []
    for text in TEXTS:
        # Joined on the items of the text encoder, which may lack some; picture encoders have all.
        (data,) = emoji_pairs((PICTURES[0], text))
        rows = np.array([embedded(PICTURES[0]).position[key] for key in data.keys])
        pictures = {name: embedded(name).take(rows) for name in PICTURES}
        found.append(Family(f"emoji, {text}", data.Y, data.Y, data.keys, data.labels, data.groups, pictures=pictures))
    if os.environ.get("SUTURE_BENCH_DATA"):
        folder = Path(os.environ["SUTURE_BENCH_DATA"]) / "imagenet_sample"
        features = np.load(folder / "tflite_penultimate_features.npz")
        with (folder / "index.csv").open() as file:
            photographs = list(csv.DictReader(file))
        encoder = encoders.create("minilm-l6")
        assert not isinstance(encoder, Precomputed)
        names = encoder.embed([row["name_in_file"].replace("_", " ") for row in photographs])
        pictures = {name: features[name].astype(np.float32) for name in TOP1}
        keys = [row["wnid"] for row in photographs]
        found.append(Family("photographs, minilm-l6", names, names, keys, pictures=pictures, qualities=TOP1))
    return found


def platonic(data: Data, seed: int) -> Figures:
    """Similarities on the anchors; an encoder's quality on the held-out items."""
    assert isinstance(data, Family)
    split = split_items(data.keys, random_state=seed)
    order = np.random.default_rng(seed).permutation(len(split.anchors))
    values: dict[str, list[float]] = {}
    quality = []
    trained = [name not in CONTROLS for name in data.pictures]
    measures = (MutualKNN(), CKNNA(), DebiasedLinearCKA())
    texts: list[Any] = [measure.prepare(data.Y[split.anchors]) for measure in measures]
    for name, X in data.pictures.items():
        for measure, text in zip(measures, texts, strict=True):
            prepared = measure.prepare(X[split.anchors])
            values.setdefault(measure.name, []).append(measure.compare(prepared, text))
            if isinstance(measure, MutualKNN):
                values.setdefault("shuffled", []).append(measure.compare(prepared, text, order))
        held = X[split.held_out]
        quality.append(
            data.qualities[name]
            if data.qualities
            else mean_precision(held - held.mean(0), held - held.mean(0), data.groups[split.held_out])
        )
    out = {
        "mutual kNN": float(np.mean(np.array(values["mutual_knn"])[trained])),
        "shuffled": float(np.mean(np.array(values["shuffled"])[trained])),
    }
    for name, label in (("mutual_knn", "mutual kNN"), ("cknna", "CKNNA"), ("cka_debiased", "CKA")):
        out[f"ρ {label}"] = float(spearmanr(values[name], quality)[0])
    out["ρ trained"] = float(spearmanr(np.array(values["mutual_knn"])[trained], np.array(quality)[trained])[0])
    return out


def related(seed: int) -> list[Data]:
    """Six picture spaces that see the same latent vectors as the text does, with ever less noise."""
    data, rng = planted(seed)
    text = seen(data.X, 48, rng, 0.5)
    pictures = {str(noise): seen(data.X, 64, rng, noise) for noise in (3.0, 2.0, 1.4, 1.0, 0.6, 0.2)}
    return [Family("planted", text, text, data.keys, data.labels, data.groups, pictures=pictures)]


CHECKS: tuple[Check, ...] = (
    Check(
        "P229",
        MutualKNN,
        "A pair is a text space with several picture encoders of the same items: the emoji with four trained encoders "
        "and two controls (pixels, an untrained net), and photographs with MiniLM's class names and six ImageNet "
        "classifiers. Ten neighbours among the anchors. An encoder's quality is its mean average precision in finding "
        "the held-out items of an emoji's subcategory among pictures, or its accuracy on the photographs; ρ is "
        "Spearman's correlation over encoders. The sizes of language models, of the paper's main claim, are not varied.",
        platonic,
        families,
        related,
        (
            Claim(
                "Trained picture encoders have far more neighbours in common with text than shuffled items do.",
                beyond("mutual kNN", "shuffled", margin=-FAR),
                ("mutual kNN", "shuffled"),
            ),
            Claim(
                "They have more than twice as many, with each text (asked after the line above was measured).",
                lambda f: [f["mutual kNN"] - 2 * f["shuffled"]],
                ("mutual kNN", "shuffled"),
                every=True,
            ),
            Claim(
                "Mutual kNN with text ranks picture encoders as their quality does (ρ above 0).",
                lambda f: [f["ρ mutual kNN"]],
                ("ρ mutual kNN", "ρ CKNNA", "ρ CKA"),
            ),
            Claim(
                "So it does among trained encoders alone.",
                lambda f: [f["ρ trained"]],
                ("ρ trained",),
            ),
        ),
    ),
)
