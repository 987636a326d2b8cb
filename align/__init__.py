"""The mathematics of stitching: spaces in, maps and scores out."""

from align.choose import fit
from align.maps import MAPS, Map, compose, inverse, load_map, make_map
from align.maps.hub import GeneralisedProcrustes, MultiviewCCA, PivotHub, load_hub
from align.moments import Moments, Sums
from align.pair import Pair, Split
from align.score import Score, paired_test
from align.space import Space

__all__ = [
    "MAPS",
    "GeneralisedProcrustes",
    "Map",
    "Moments",
    "MultiviewCCA",
    "Pair",
    "PivotHub",
    "Score",
    "Space",
    "Split",
    "Sums",
    "compose",
    "fit",
    "inverse",
    "load_hub",
    "load_map",
    "make_map",
    "paired_test",
]
