"""Every check: its method, its pairs, its planted data and its claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from align.induction.self_learning import SelfLearning
from align.maps.extension import BasisTransformation, OrthogonalExtension
from align.maps.linear import TranslationMatrix, VarianceMatched
from align.maps.relative import Relative, RelativeProduct
from align.maps.subspace import CCAAffine
from benchmarks.methods import figures, planted
from benchmarks.methods.data import ACROSS, UPGRADES, VISION, WITHIN, Data, emoji_pairs, word_pairs
from benchmarks.methods.figures import METRICS, Figures

FAR = 0.1
"""What 'far' asks for: ten points."""


@dataclass(frozen=True)
class Claim:
    """A statement about figures.

    Attributes
    ----------
    text : in one sentence.
    effect : of the figures of one pair and seed; several numbers where the claim compares with several. The smallest of
        their means counts.
    figures : those to show beside it.
    every : whether it is about each pair, so that the worst one counts, and not about their mean.
    """

    text: str
    effect: Callable[[Figures], list[float]]
    figures: tuple[str, ...]
    every: bool = False


@dataclass(frozen=True)
class Check:
    """The claims of one method, with the pairs and the planted data (of a seed) on which `run` measures the figures."""

    id: str
    method: Callable[..., Any]
    setting: str
    run: Callable[[Data, int], Figures]
    pairs: Callable[[], list[Data]]
    control: Callable[[int], list[Data]]
    claims: tuple[Claim, ...]


def beyond(name: str, *others: str, margin: float = 0.0) -> Callable[[Figures], list[float]]:
    """How far a figure lies above each of the others, plus a margin."""
    return lambda f: [f[name] - f[other] + margin for other in others]


CHECKS = (
    Check(
        "P017",
        VarianceMatched,
        "No encoder with both a picture and a text tower is installed, so the target is made one: canonical directions "
        "of the target and `minilm-l6`, fitted on one half of the anchors. The map is fitted on the pictures of the "
        "other half, without text. Classes are the 8 categories, by three prompts each.",
        figures.text_to_concept,
        lambda: emoji_pairs(*VISION, text="minilm-l6"),
        planted.with_text,
        (
            Claim(
                "Mapped features are classified by text prompts far above chance.",
                beyond("mapped", "chance", margin=-FAR),
                ("mapped", "chance"),
            ),
            Claim(
                "That accuracy comes within 5 points of the target's own picture tower.",
                beyond("mapped", "tower", margin=0.05),
                ("mapped", "tower"),
            ),
            Claim(
                "R² between any two encoders is positive on held-out items, for every ordered pair.",
                lambda f: [f["R² held out"]],
                ("R² held out",),
                every=True,
            ),
        ),
    ),
    Check(
        "P037",
        TranslationMatrix,
        "Names in English are translated into German or French or into another English space. "
        "The vocabulary is all items, the queries are the held-out ones, P@1 without a fraction is with all anchors.",
        figures.translation,
        lambda: (
            emoji_pairs(
                ("glove", "minilm-l6"),
                ("glove", "e5-small-de"),
                ("minilm-l6", "e5-small-de"),
                ("minilm-l6", "e5-small-fr"),
            )
            + word_pairs()
        ),
        planted.dictionary,
        (
            Claim(
                "P@1 and P@5 rise with the number of anchors (all of them against a quarter).",
                lambda f: [f["P@1 all"] - f["P@1 1/4"], f["P@5 all"] - f["P@5 1/4"]],
                ("P@1 1/4", "P@1 all", "P@5 1/4", "P@5 all"),
            ),
            Claim(
                "The linear map finds far more than the padded identity or a map of shuffled pairs.",
                beyond("P@1 all", "P@1 identity", "P@1 shuffled", margin=-FAR),
                ("P@1 all", "P@1 identity", "P@1 shuffled"),
            ),
            Claim(
                "Precision rises with the threshold on the cosine, from all to the surer half to the surest fifth.",
                lambda f: [f["P@1 surer half"] - f["P@1 all"], f["P@1 surest fifth"] - f["P@1 surer half"]],
                ("P@1 all", "P@1 surer half", "P@1 surest fifth"),
            ),
        ),
    ),
    Check(
        "P163",
        OrthogonalExtension,
        "Pairs are new → old. Figures are mean average precision: a held-out query looks for the other held-out items "
        "of its subcategory; new/old means new queries in an old gallery. 'Affine' is `Ridge`.",
        figures.orthogonal_extension,
        lambda: emoji_pairs(*UPGRADES),
        planted.older,
        (
            Claim(
                "New queries find more in the old gallery than old queries do.",
                beyond("rotated new/old", "old/old"),
                ("rotated new/old", "old/old"),
            ),
            Claim(
                "Among new vectors nothing changes: all cosines stay to within 1e-6.",
                lambda f: [1e-6 - f["change of cosines"]],
                ("change of cosines", "rotated new/new", "new/new"),
                every=True,
            ),
            Claim(
                "An affine map does better in the old gallery.",
                beyond("affine new/old", "rotated new/old"),
                ("affine new/old", "rotated new/old"),
            ),
            Claim(
                "But it damages the search among new vectors.",
                beyond("new/new", "affine new/new"),
                ("new/new", "affine new/new"),
            ),
        ),
    ),
    Check(
        "P245",
        BasisTransformation,
        "Pairs and figures as of P163, with k extra dimensions. 'Without Q' the 32 extra coordinates are the ridge "
        "prediction of the old space's first 32 principal coordinates, put beside a rotation towards the others.",
        figures.basis_transformation,
        lambda: emoji_pairs(*UPGRADES),
        planted.older,
        (
            Claim(
                "New queries find as much in the old gallery as old queries do, to within a point, with k = 32.",
                beyond("new/old k=32", "old/old", margin=0.01),
                ("new/old k=32", "old/old"),
            ),
            Claim(
                "Among new vectors the search stays as good as the untransformed one's, to within a point.",
                lambda f: [0.01 - abs(f["new/new k=32"] - f["new/new"])],
                ("new/new k=32", "new/new"),
            ),
            Claim(
                "Naive concatenation, without Q, finds less in the old gallery with the same k.",
                beyond("new/old k=32", "new/old without Q"),
                ("new/old k=32", "new/old without Q"),
            ),
            Claim(
                "Extra dimensions pay: 32 of them find more in the old gallery than none.",
                beyond("new/old k=32", "new/old k=0"),
                ("new/old k=0", "new/old k=32", "new/old k=all"),
            ),
        ),
    ),
    Check(
        "P062",
        Relative,
        "A → B: a head for the 8 categories is trained on A's similarities to 300 anchors (or on A's vectors: "
        "'absolute', B's padded or cut to A's dimension) and used on B's. Native is a head trained on B's own vectors, "
        "and on B's own similarities. Pairs are of independently trained encoders of one modality.",
        figures.relative,
        lambda: emoji_pairs(*WITHIN),
        planted.rotated,
        (
            Claim(
                "The stitched head keeps at least 90 % of B's native accuracy.",
                lambda f: [f["stitched"] - 0.9 * f["native"]],
                ("stitched", "native", "native, relative"),
            ),
            Claim(
                "Absolute vectors are no better than chance (at most 5 points above the most frequent class).",
                beyond("chance", "absolute", margin=0.05),
                ("absolute", "chance"),
            ),
            Claim(
                "Items find themselves in the other space: the mean reciprocal rank is far above that of absolute "
                "vectors.",
                beyond("MRR", "MRR absolute", margin=-FAR),
                ("MRR", "MRR absolute"),
            ),
        ),
    ),
    Check(
        "P104",
        RelativeProduct,
        "Heads as of P062, on the normalised similarities to 200 anchors under each metric, side by side ('product') "
        "or added ('sum'). 'Chosen' is the metric that does best on one half of a pair's held-out items, judged on the "
        "other. R@1 is retrieval in the same representations, for which nothing is trained.",
        figures.invariances,
        lambda: emoji_pairs(*WITHIN),
        planted.invariant,
        (
            Claim(
                "Over pairs, a head on the product is at least as good as on any single metric, to within a point.",
                beyond("product", *METRICS, margin=0.01),
                ("product", *METRICS),
            ),
            Claim(
                "It is never the worst: in every pair it beats the least of them.",
                lambda f: [f["product"] - min(f[m] for m in METRICS)],
                ("product", *METRICS),
                every=True,
            ),
            Claim(
                "No single metric is best for all pairs: choosing one a pair beats each fixed one.",
                beyond("chosen", *METRICS),
                ("chosen", *METRICS),
            ),
        ),
    ),
    Check(
        "P122",
        CCAAffine,
        "Pictures to text. Recall at 5 among the held-out items; k and the ridge are chosen on the anchors. 'k=all' is "
        "min(256, dimensions). Local CKA matching is the share of queries whose own partner has the largest CKA.",
        figures.canonical,
        lambda: emoji_pairs(*ACROSS),
        planted.weak,
        (
            Claim(
                "An affine map between k canonical directions retrieves better than one between the full spaces, be it "
                "least squares or ridge.",
                beyond("CCA-k + affine", "least squares", "ridge"),
                ("CCA-k + affine", "least squares", "ridge"),
            ),
            Claim(
                "Local CKA matches better in the canonical subspace than in the full spaces.",
                beyond("local CKA in CCA-k", "local CKA"),
                ("local CKA in CCA-k", "local CKA"),
            ),
            Claim(
                "Few directions and all of them are both worse than the k in between that the anchors choose.",
                beyond("CCA-k + affine", "k=2", "k=all"),
                ("k=2", "k=8", "k=32", "k=all", "CCA-k + affine", "k"),
            ),
        ),
    ),
    Check(
        "P219",
        SelfLearning,
        "A stand-in for vectors that are extracted from a contextual model: the same multilingual encoder's vectors of "
        "400 names in two languages, drawn by each seed, in an unknown order; two restarts. P@1 is of the items outside "
        "the seed dictionary, by CSLS; 'raw' is by cosine in the model's own space. The next step, more pretraining of the model, "
        "is not part of this.",
        figures.self_learning,
        lambda: emoji_pairs(("e5-small", "e5-small-de"), ("e5-small", "e5-small-fr"), ("e5-small-de", "e5-small-fr")),
        planted.languages,
        (
            Claim(
                "Self-learning from no pairs translates far more than the nearest neighbours in the raw space do.",
                beyond("from no pairs", "raw", margin=-FAR),
                ("from no pairs", "raw", "raw, CSLS"),
            ),
            Claim(
                "So does self-learning that starts from the mutual nearest neighbours (CSLS) in the raw space.",
                beyond("from raw neighbours", "raw", margin=-FAR),
                ("from raw neighbours", "raw", "raw, CSLS"),
            ),
            Claim(
                "Iterations raise P@1 from a small seed, of 25 pairs.",
                beyond("from 25 pairs", "25 pairs"),
                ("from 25 pairs", "25 pairs"),
            ),
        ),
    ),
)
