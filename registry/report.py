"""Turns the plain record of one run into pictures and one self-contained HTML page."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from align.evaluation import HEAD
from align.files import write_atomically
from align.measures import MEASURES

Row = dict[str, Any]
PairName = tuple[str, str]

TASKS = {
    "retrieval": "Retrieval",
    "retrieval_back": "Retrieval backwards, sources by targets",
    "zero_shot": "Zero-shot classes by prompt",
    "stitching": "Zero-shot stitching",
    "pretrained_head": "Pretrained head",
}
METRICS = {"mrr": "mean reciprocal rank", "median_rank": "median rank, lower is better"}
BASELINES = ("identity", "shuffled", "native", "chance")
LOWER_IS_BETTER = {"median_rank"}

# Wong's colour-blind-safe palette, its yellow and black replaced by colours that carry thin marks on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#7A7A7A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
INK, QUIET, CONTROL, MISSING = "#1F2328", "#656D76", "#9A3B00", "#E3E5E8"
HEAT = colormaps["YlGnBu"]
DPI = 150
WIDTH = 10.0
"""Inches; so that 1000 pixels show 100 an inch."""
SLANT = 45.0


@dataclass(frozen=True)
class Section:
    """The scores that may be read together: one task and metric between two modalities."""

    task: str
    metric: str
    route: str
    pairs: tuple[PairName, ...]

    @property
    def title(self) -> str:
        return f"{_task(self.task)}, {self.route}"


class Record:
    """One run, indexed the way that the pictures and the page ask for it."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.run = run
        self.spaces: dict[str, Row] = {space["name"]: space for space in run.get("spaces") or []}
        self.all_scores: list[Row] = run.get("scores") or []
        # Pictures and tables are of the cosine (or a head); what other rules do is in the ranking.
        self.scores = [s for s in self.all_scores if s["rule"] in ("cosine", HEAD)]
        self.splits = sorted(dict.fromkeys(s["split"] for s in self.scores), key=lambda split: split != "item")
        self.maps = list(dict.fromkeys(s["map"] for s in self.scores))
        known = dict.fromkeys((p["source"], p["target"]) for p in [*(run.get("pairs") or []), *self.scores])
        routes = list(dict.fromkeys(map(self.route, known)))
        self.pairs = sorted(known, key=lambda pair: (routes.index(self.route(pair)), self.is_control(pair)))
        self._by_name = {
            (s["source"], s["target"], s["map"], s["rule"], s["split"], s["task"], s["metric"]): s
            for s in self.all_scores
            if math.isfinite(_number(s["value"]))
        }

    def control(self, space: str) -> bool:
        return bool(self.spaces.get(space, {}).get("control"))

    def is_control(self, pair: PairName) -> bool:
        return any(map(self.control, pair))

    def route(self, pair: PairName) -> str:
        return " → ".join(self.spaces.get(name, {}).get("modality") or "unknown" for name in pair)

    def headline(self, pair: PairName) -> str:
        """The retrieval metric that tells most: across modalities nothing is found first often enough."""
        source, target = self.route(pair).split(" → ")
        return "recall_at_1" if source == target else "recall_at_10"

    def sections(self) -> list[Section]:
        """All tasks with their pairs, by the headline metric, in the order of `TASKS`."""
        found: dict[tuple[str, str, str], set[PairName]] = {}
        for s in self.scores:
            pair = (s["source"], s["target"])
            if s["task"] == "retrieval_back":
                continue
            if s["task"] != "retrieval" or s["metric"] == self.headline(pair):
                found.setdefault((s["task"], s["metric"], self.route(pair)), set()).add(pair)
        order = list(TASKS)
        return [
            Section(*key, tuple(p for p in self.pairs if p in found[key]))
            for key in sorted(found, key=lambda key: order.index(key[0]) if key[0] in order else len(order))
        ]

    def score(
        self, pair: PairName, map_: str, split: str, task: str, metric: str, rule: str | None = None
    ) -> Row | None:
        """The score by this rule; by the cosine, or by the head that the task is about, where none is named."""
        rules = ("cosine", HEAD) if rule is None else (rule,)
        found = (self._by_name.get((*pair, map_, one, split, task, metric)) for one in rules)
        return next(filter(None, found), None)

    def of(self, section: Section, pair: PairName, split: str) -> list[Row]:
        """The pair's scores in this section, one a map."""
        rows = (self.score(pair, map_, split, section.task, section.metric) for map_ in self.maps)
        return [row for row in rows if row]

    def highest(self, section: Section, pairs: Iterable[PairName]) -> Row | None:
        """The best held-out score of these pairs, on the first split that has one."""
        pairs = list(pairs)
        for split in self.splits:
            if rows := [row for pair in pairs for row in self.of(section, pair, split)]:
                return (min if section.metric in LOWER_IS_BETTER else max)(rows, key=lambda row: row["value"])
        return None

    def label(self, pair: PairName) -> str:
        """The pair's name in pictures."""
        return " → ".join(_drawn(name, 24) for name in pair) + (" (control)" if self.is_control(pair) else "")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _task(task: str) -> str:
    return TASKS.get(task, task.replace("_", " ").capitalize())


def _metric(metric: str) -> str:
    return METRICS.get(metric, metric.replace("_", " "))


def _above(row: Row, baseline: Any) -> bool:
    """Does the whole interval lie on the better side of the baseline?"""
    if row["metric"] in LOWER_IS_BETTER:
        return _number(row["high"]) < _number(baseline)
    return _number(row["low"]) > _number(baseline)


# --- pictures -------------------------------------------------------------------------------------------


def pictures(run: dict[str, Any], folder: Path) -> list[Path]:
    """Draws what the run has numbers for; returns the PNGs written, of the names below."""
    record = Record(run)
    drawings: dict[str, Callable[[Record], Figure | None]] = {
        "pairs_by_maps.png": _pairs_by_maps,
        "similarity.png": _similarity,
        "projection.png": _projection,
        "scores.png": _scores,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in drawings.items():
        if figure := draw(record):
            FigureCanvasAgg(figure)
            figure.savefig(folder / name, dpi=DPI, facecolor="white")
            written.append(folder / name)
    return written


def _drawn(text: str, length: int) -> str:
    """The text as Matplotlib draws it without mishap: no mathematics, no glyph that its font lacks, not too long."""
    font = get_font(findfont("DejaVu Sans"))
    text = "".join(c if font.get_char_index(ord(c)) else "?" for c in text)
    text = f" {text}" if text.startswith("_") else text  # a legend leaves out what starts with an underscore
    if len(text) > length:
        text = f"{text[: length // 2]}…{text[-(length // 2 - 1) :]}"
    return text.replace("$", r"\$")


def _room(labels: Iterable[str], size: float) -> float:
    """The inches that the longest of these labels needs."""
    return 0.2 + max((len(label) for label in labels), default=0) * size * 0.0086


def _columns(names: Iterable[str]) -> int:
    """How many of these names a legend has room for in a row."""
    return max(1, min(6, int(WIDTH / (_room(names, 8.5) + 0.4))))


def _page(height: float, title: str, subtitle: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    figure.text(0.15 / WIDTH, 1 - 0.14 / height, title, size=13, weight="bold", color=INK, va="top")
    figure.text(0.15 / WIDTH, 1 - 0.44 / height, subtitle, size=8.5, color=QUIET, va="top", linespacing=1.4)
    return figure


def _panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in inches from the top left corner, without frame and ticks."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5, colors=INK)
    return axes


def _name_ticks(axis: Any, at: Iterable[float], labels: Sequence[str], controls: Sequence[bool], size: float) -> None:
    axis.set_ticks(list(at), labels, fontsize=size)
    for tick, control in zip(axis.get_ticklabels(), controls, strict=True):
        if control:
            tick.set(color=CONTROL, style="italic")


def _slant(panel: Axes) -> None:
    """Column names above the cells, leaning to the right."""
    for tick in panel.get_xticklabels():
        tick.set(rotation=SLANT, ha="left", rotation_mode="anchor")


def _cells(
    axes: Axes, values: np.ndarray, x: float, y: float, top: float, size: float, bold: np.ndarray | None = None
) -> None:
    """Coloured unit cells with their numbers, the upper left corner at (x, y); what is missing is grey."""
    shown = np.where(np.isfinite(values), values, np.nan)
    rows, columns = shown.shape
    image = HEAT(np.clip(np.nan_to_num(shown) / top, 0, 1) * 0.92)
    image[np.isnan(shown)] = (*(int(MISSING[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1)
    corners = [np.arange(n + 1) + start for n, start in ((columns, x), (rows, y))]
    axes.pcolormesh(*corners, image, edgecolor="white", linewidth=1)
    for (i, j), value in np.ndenumerate(shown):
        if np.isfinite(value):
            axes.text(
                x + j + 0.5,
                y + i + 0.52,
                f"{value:.2f}".replace("0.", ".", 1),
                size=size,
                ha="center",
                va="center",
                weight="bold" if bold is not None and bold[i, j] else "normal",
                color="white" if value / top > 0.6 else INK,
            )


def _colour_bar(figure: Figure, left: float, top: float, width: float, highest: float) -> None:
    bar = _panel(figure, left, top, width, 0.09)
    figure.colorbar(
        ScalarMappable(Normalize(0, highest), HEAT),
        cax=bar,
        orientation="horizontal",
        ticks=[0, highest / 2, highest],
    )
    bar.set_xticklabels([f"{tick:.2g}" for tick in (0, highest / 2, highest)], fontsize=7.5)
    bar.tick_params(length=0)
    bar.spines[:].set_visible(False)


def _pairs_by_maps(record: Record) -> Figure | None:
    sections = [section for section in record.sections() if section.task == "retrieval"]
    if not sections:
        return None
    labels = {
        pair: f"{record.label(pair)} · R@{section.metric.rsplit('_', 1)[-1]}"
        for section in sections
        for pair in section.pairs
    }
    head, row, gap = 1.0, 0.27, 0.36
    left = _room(labels.values(), 8.5)
    maps = [_drawn(map_, 30) for map_ in record.maps]
    names = _room(maps, 8.5) * 0.68 + 0.25
    width = (WIDTH - left - names + 0.6) / len(record.splits) - 0.25
    cell = min(width / len(record.maps), 0.8)
    body = len(labels) * row + len(sections) * gap
    figure = _page(
        head + names + body + 0.55,
        "Retrieval: pairs by maps",
        "Share of held-out items whose true partner is found first (R@1) or, between modalities, among the first ten "
        "(R@10).\nBold: the row's highest. Grey: not run. Italic: control.",
    )
    for k, split in enumerate(record.splits):
        panel = _panel(figure, left + k * (cell * len(record.maps) + 0.25), head + names, cell * len(record.maps), body)
        panel.set(xlim=(0, len(record.maps)), ylim=(body / row, 0))
        panel.xaxis.tick_top()
        _name_ticks(panel.xaxis, np.arange(len(record.maps)) + 0.5, maps, [False] * len(record.maps), 8.5)
        _slant(panel)
        panel.text(0, -(names - 0.02) / row, _drawn(f"{split} split", 30), size=10, weight="bold", color=INK)
        y, at = 0.0, []
        for section in sections:
            y += gap / row
            values = np.array(
                [
                    [_value(record.score(pair, map_, split, "retrieval", section.metric)) for map_ in record.maps]
                    for pair in section.pairs
                ]
            )
            best = values == np.max(values, axis=1, keepdims=True, where=np.isfinite(values), initial=-1)
            _cells(panel, values, 0, y, 1, 8 if cell > 0.35 else 7, best)
            if k == 0:
                panel.text(
                    0,
                    y - 0.22,
                    _drawn(section.route, 44),
                    size=8,
                    color=QUIET,
                    weight="bold",
                    ha="left",
                    va="bottom",
                )
            at += [y + i + 0.5 for i in range(len(section.pairs))]
            y += len(section.pairs)
        controls = [record.is_control(pair) for pair in labels]
        _name_ticks(panel.yaxis, at, list(labels.values()) if k == 0 else [""] * len(at), controls, 8.5)
    _colour_bar(figure, left, head + names + body + 0.18, 2.2, 1)
    return figure


def _value(row: Row | None) -> float:
    return row["value"] if row else math.nan


def _similarity(record: Record) -> Figure | None:
    """A panel a measure, the spaces in the order of the tree below, which joins the most alike first."""
    found = record.run.get("similarity") or {}
    matrices = {name: np.array(values, dtype=float) for name, values in (found.get("matrices") or {}).items()}
    if not matrices or not found.get("spaces"):
        return None
    tree = _tree(matrices)
    order = np.arange(len(found["spaces"])) if tree is None else np.array(tree[1]["leaves"])
    spaces = [found["spaces"][i] for i in order]
    n = len(spaces)
    matrices = {name: values[np.ix_(order, order)] for name, values in matrices.items()}
    panels: list[tuple[np.ndarray, float, str, str]] = []
    if "cka" in matrices and "cka_debiased" in matrices:
        both = np.where(np.triu(np.ones((n, n), dtype=bool)), matrices.pop("cka_debiased"), matrices.pop("cka"))
        panels.append((both, 1.0, "Linear CKA", "above the diagonal debiased, below biased"))
    for name, values in matrices.items():
        shown = values[np.isfinite(values) & ~np.eye(n, dtype=bool)]
        highest = max(0.1, math.ceil(10 * shown.max(initial=0)) / 10)
        words = "larger is closer" if name not in MEASURES or MEASURES[name].larger_is_closer else "smaller is closer"
        if name == "mutual_knn" and found.get("mutual_knn_chance") is not None:
            words = f"share of neighbours in common; chance {found['mutual_knn_chance']:.3f}"
        panels.append((values, highest, name.replace("_", " "), words))
    controls = [record.control(name) for name in spaces]
    labels = [
        f"{_drawn(name, 26)}{' (control)' if control else ''}" for name, control in zip(spaces, controls, strict=True)
    ]
    size = 8.0 if n > 8 else 9.0
    left = _room(labels, size)
    names = left * 0.68
    side = min((WIDTH - left - names) / 2, 0.75 * n)
    head, below, strip = 0.9, 0.55, names + 0.4
    rows = -(-len(panels) // 2)
    trunk = 0.0 if tree is None else 2.2 + left * 0.7
    figure = _page(
        head + rows * (strip + side + below) + trunk,
        "How alike the spaces are",
        "Measured without a map. CKA does not fall to 0 between unrelated spaces, least of all the biased one: hold it "
        "against\nthe controls. The diagonal is known by definition and left out.",
    )
    for k, (values, top, title, subtitle) in enumerate(panels):
        values = np.where(np.eye(n, dtype=bool), np.nan, values)
        x, y = left + (k % 2) * (side + 0.3), head + (k // 2) * (strip + side + below) + strip
        panel = _panel(figure, x, y, side, side)
        panel.set(xlim=(0, n), ylim=(n, 0))
        _cells(panel, values, 0, 0, top, 7 if n > 8 else 7.4)
        panel.plot([0, n], [0, n], color="white", linewidth=2)
        panel.xaxis.tick_top()
        for axis, shown in ((panel.xaxis, labels), (panel.yaxis, labels if k % 2 == 0 else [""] * n)):
            _name_ticks(axis, np.arange(n) + 0.5, shown, controls, size)
        _slant(panel)
        panel.text(0, -(names + 0.2) * n / side, title, size=10, weight="bold", color=INK)
        panel.text(0, -(names + 0.02) * n / side, subtitle, size=8, color=QUIET)
        _colour_bar(figure, x, y + side + 0.15, 1.8, top)
    if tree is not None:
        name, drawn = tree
        panel = _panel(figure, left, head + rows * (strip + side + below) + 0.35, WIDTH - left - 0.4, 1.4)
        for across, up in zip(drawn["icoord"], drawn["dcoord"], strict=True):
            panel.plot(across, up, color=INK, linewidth=1)
        panel.set(xlim=(0, 10 * n), ylim=(0, None))
        _name_ticks(panel.xaxis, 10 * np.arange(n) + 5, labels, controls, size)
        for tick in panel.get_xticklabels():
            tick.set(rotation=-SLANT, ha="left", rotation_mode="anchor")
        panel.set_title(f"The same as a tree: average linkage of {name}", size=10, weight="bold", color=INK, loc="left")
    return figure


def _tree(matrices: dict[str, np.ndarray]) -> tuple[str, dict[str, Any]] | None:
    """A dendrogram of the spaces by debiased CKA, or else by the first complete matrix of two sides alike."""
    for name in ("cka_debiased", *matrices):
        values = matrices.get(name)
        if values is None or len(values) < 3 or not np.isfinite(values).all() or not np.allclose(values, values.T):
            continue
        closer = name not in MEASURES or MEASURES[name].larger_is_closer
        gaps = values.max() - values if closer else values.copy()
        np.fill_diagonal(gaps, 0)
        drawn = dendrogram(linkage(squareform(gaps, checks=False), "average"), no_plot=True)
        return ("1 − " if closer else "") + name.replace("_", " "), drawn
    return None


def _projection(record: Record) -> Figure | None:
    found = record.run.get("projection")
    if not found or not found.get("labels"):
        return None
    labels = np.array(found["labels"], dtype=object)
    classes, counts = np.unique(labels, return_counts=True)
    frequent = list(classes[np.argsort(-counts, kind="stable")])
    named = frequent if len(frequent) <= len(COLOURS) else frequent[: len(COLOURS) - 1]
    colours = dict(zip(named, COLOURS, strict=False))
    if len(named) < len(frequent):
        colours["other classes"] = COLOURS[-1]
    colour = [colours.get(label, COLOURS[-1]) for label in labels]
    joined = np.unique(np.linspace(0, len(labels) - 1, min(40, len(labels))).astype(int))
    side, gap, head = 4.75, 0.2, 1.2
    columns = _columns(_drawn(str(name), 30) for name in colours)
    legend_rows = -(-len(colours) // columns) + 1
    figure = _page(
        head + side + 0.15 + 0.22 * legend_rows,
        _drawn(f"Before and after: {found['source']} → {found['target']}, {found['map']}", 80),
        f"{len(labels)} items, flattened from many dimensions to two: a picture, not a proof. "
        f"Lines join the two points of {len(joined)} of the items.",
    )
    for k, stage in enumerate(("before", "after")):
        panel = _panel(figure, 0.15 + k * (side + gap), head, side, side)
        panel.set_title(f"{stage} the map", size=10, weight="bold", color=INK, loc="left", pad=5)
        panel.set_facecolor("#F6F8FA")
        source, target = (np.array(found[stage][end], dtype=float) for end in ("source", "target"))
        panel.add_collection(
            LineCollection(
                list(np.stack([source[joined], target[joined]], axis=1)),
                colors=INK,
                linewidths=0.6,
                alpha=0.45,
                zorder=1,
            )
        )
        panel.scatter(
            target[:, 0], target[:, 1], s=20, marker="^", facecolors="none", edgecolors=colour, linewidths=0.8, zorder=2
        )
        panel.scatter(source[:, 0], source[:, 1], s=13, marker="o", c=colour, linewidths=0, alpha=0.8, zorder=3)
        panel.margins(0.06)
        panel.set_aspect("equal", adjustable="datalim")
        panel.set(xticks=[], yticks=[])
    ends = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            color=INK,
            label=_drawn(_space(record, found["source"]) + ", source", 44),
        ),
        Line2D(
            [],
            [],
            linestyle="",
            marker="^",
            color=INK,
            markerfacecolor="none",
            label=_drawn(_space(record, found["target"]) + ", target", 44),
        ),
    ]
    marks = [
        Line2D([], [], linestyle="", marker="o", color=colour, label=_drawn(str(name), 30))
        for name, colour in colours.items()
    ]
    bottom = figure.get_size_inches()[1]
    for handles, inches, ncols in ((ends, 0.67, 2), (marks, head + side + 0.1, columns)):
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0.05 / WIDTH, 1 - inches / bottom),
            ncols=ncols,
            fontsize=8.5,
            frameon=False,
            handletextpad=0.2,
            columnspacing=1.4,
            labelcolor=INK,
        )
    return figure


def _space(record: Record, name: str) -> str:
    return f"{name} (control)" if record.control(name) else name


BASELINE_MARKS: dict[str, dict[str, Any]] = {
    "identity": {"marker": "x", "s": 20, "color": INK, "linewidths": 1.1},
    "shuffled": {"marker": "|", "s": 90, "color": "#B3001B", "linewidths": 1.6},
    "native": {"marker": "D", "s": 24, "facecolors": "white", "edgecolors": INK, "linewidths": 1.0},
    "chance": {"marker": "|", "s": 90, "color": "#8C959F", "linewidths": 1.6},
}


def _scores(record: Record) -> Figure | None:
    sections = record.sections()
    if not sections:
        return None
    used = {
        section: [
            m
            for m in record.maps
            if any(
                record.score(pair, m, split, section.task, section.metric)
                for pair in section.pairs
                for split in record.splits
            )
        ]
        for section in sections
    }
    style: dict[str, dict[str, Any]] = {
        map_: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]}
        for i, map_ in enumerate(record.maps)
    }
    rows = {section: 0.1 + 0.06 * max(len(used[section]), 3) for section in sections}
    labels = [record.label(pair) for section in sections for pair in section.pairs]
    left = _room(labels, 8.5) + 0.1
    columns = _columns(_drawn(map_, 30) for map_ in record.maps)
    legend = -(-len(record.maps) // columns) + 1
    head, above, below = 0.95 + 0.2 * legend, 0.52, 0.26
    height = head + sum(above + below + rows[s] * len(s.pairs) for s in sections) + 0.1
    width = (WIDTH - left - 0.2) / len(record.splits) - 0.5
    figure = _page(
        height,
        "Scores on held-out items, with 95 % intervals",
        "Bar and number: the pair's highest map on the first split, the same map on the other. Baselines are "
        "that map's.\nShaded rows, italic: controls.",
    )
    marks = [
        Line2D([], [], linestyle="-", linewidth=1, markersize=5, label=_drawn(m, 30), **style[m]) for m in record.maps
    ]
    figure.legend(
        handles=marks,
        loc="upper left",
        bbox_to_anchor=(0.05 / WIDTH, 1 - 0.78 / height),
        ncols=columns,
        fontsize=8.5,
        frameon=False,
        handletextpad=0.5,
        columnspacing=1.6,
        labelcolor=INK,
    )
    key = _panel(figure, 0.2, 0.82 + 0.2 * (legend - 1), 6.5, 0.18)
    key.set(xlim=(0, 6.5), ylim=(-0.5, 0.5), xticks=[], yticks=[])
    for i, (name, mark) in enumerate(BASELINE_MARKS.items()):
        key.scatter(0.15 + 1.5 * i, 0, **mark)
        key.text(0.32 + 1.5 * i, 0, name, size=8.5, va="center_baseline", color=INK)

    top = head
    for section in sections:
        where = (0.15 / WIDTH, 1 - (top + 0.26) / height)
        title = f"{section.title}: {_metric(section.metric)}"
        figure.text(*where, _drawn(title, 100), size=9.5, weight="bold", color=INK)
        top += above
        tall = rows[section] * len(section.pairs)
        for k, split in enumerate(record.splits):
            if not any(record.of(section, pair, split) for pair in section.pairs):
                continue
            panel = _panel(figure, left + k * (width + 0.5), top, width, tall)
            _score_panel(panel, record, section, split, used[section], style)
            controls = [record.is_control(pair) for pair in section.pairs]
            names = [record.label(pair) if k == 0 else "" for pair in section.pairs]
            _name_ticks(panel.yaxis, range(len(names)), names, controls, 8.5)
            heading = _drawn(f"{split} split", 30)
            panel.text(0, 1 + 0.07 / tall, heading, size=8, color=QUIET, transform=panel.transAxes)
        top += tall + below
    return figure


def _score_panel(
    panel: Axes,
    record: Record,
    section: Section,
    split: str,
    maps: list[str],
    style: dict[str, dict[str, Any]],
) -> None:
    n = len(section.pairs)
    panel.set(xlim=(0, 1), ylim=(n - 0.5, -0.5), xticks=[0, 0.25, 0.5, 0.75, 1])
    panel.set_xticklabels(["0", ".25", ".5", ".75", "1"], fontsize=7.5, color=QUIET)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", pad=8)
    panel.grid(axis="x", color="#D8DCE0", linewidth=0.6)
    panel.spines["left"].set(visible=True, color="#AFB8C1")
    offsets = dict(zip(maps, np.linspace(-0.33, 0.33, len(maps)) if len(maps) > 1 else [0.0], strict=True))
    for i, pair in enumerate(section.pairs):
        if record.is_control(pair):
            panel.axhspan(i - 0.5, i + 0.5, color="#F1F2F4", zorder=0, linewidth=0)
        best = record.highest(section, [pair])
        row = best and record.score(pair, best["map"], split, section.task, section.metric)
        if not row:
            continue
        panel.barh(i, row["value"], 0.88, color=style[row["map"]]["color"], alpha=0.2, zorder=1, linewidth=0)
        panel.text(
            1.015,
            i,
            f"{row['value']:.3f}",
            transform=panel.get_yaxis_transform(),
            size=8,
            weight="bold",
            color=INK,
            va="center_baseline",
        )
        for name, mark in BASELINE_MARKS.items():
            if name in row["baselines"]:
                panel.scatter(_number(row["baselines"][name]), i, **mark, zorder=4, clip_on=False)
    for map_ in maps:
        rows = [
            (i, row)
            for i, pair in enumerate(section.pairs)
            if (row := record.score(pair, map_, split, section.task, section.metric))
        ]
        if rows:
            x = np.array([row["value"] for _, row in rows])
            spread = [[abs(_number(row[end]) - row["value"]) for _, row in rows] for end in ("low", "high")]
            panel.errorbar(
                x,
                [i + offsets[map_] for i, _ in rows],
                xerr=spread,
                linestyle="",
                elinewidth=1.0,
                markersize=3.6,
                markeredgewidth=0,
                zorder=3,
                clip_on=False,
                **style[map_],
            )


# --- page -----------------------------------------------------------------------------------------------

CAPTIONS = {
    "pairs_by_maps.png": "Retrieval of every pair by every map.",
    "similarity.png": "Similarity of all spaces, before any map.",
    "projection.png": "Source and target points before and after the map.",
    "scores.png": "Every task with intervals and baselines.",
}


def html(run: dict[str, Any], folder: Path) -> Path:
    """Writes `folder/report.html`, which needs no other file and no network, and the pictures beside it."""
    record = Record(run)
    images = [
        {
            "name": path.name,
            "caption": CAPTIONS[path.name],
            "base64": base64.b64encode(path.read_bytes()).decode(),
        }
        for path in pictures(run, folder)
    ]
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(fixed=_fixed, p=_p, metric=_metric, task=_task, when=_when)
    page = environment.get_template("report.html.jinja").render(
        run=run,
        record=record,
        images=images,
        summary=[(section.title, _sentences(record, section)) for section in record.sections()],
        headlines=_headlines(record),
        tables=_tables(record),
        candidates=_candidates(record),
        ranking=_ranking(record),
        health=_health(record),
        skipped=[(s["name"], *item) for s in record.spaces.values() for item in s.get("skipped") or []],
        config=yaml.safe_dump(run.get("config") or {}, sort_keys=False, allow_unicode=True),
        baselines=BASELINES,
        above=_above,
    )
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _fixed(value: Any, metric: str = "") -> str:
    value = _number(value)
    if not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if metric in LOWER_IS_BETTER else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _when(started: Any) -> str:
    try:
        moment = datetime.fromisoformat(str(started))
    except ValueError:
        return str(started)
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()


def _interval(row: Row) -> str:
    value, low, high = (_fixed(row[end], row["metric"]) for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _pair(row: Row) -> PairName:
    return row["source"], row["target"]


def _sentences(record: Record, section: Section) -> list[str]:
    """What the section's numbers say, in plain words."""
    best = record.highest(section, (pair for pair in section.pairs if not record.is_control(pair)))
    control = record.highest(section, filter(record.is_control, section.pairs))
    if not best:
        return [f"Only controls were scored: {_interval(control)}." if control else "Nothing was scored."]
    split, first = best["split"], f"{best['source']} → {best['target']} with {best['map']}"
    said = [f"{first} is highest: {_metric(section.metric)} of {_interval(best)} on the {split} split."]

    beside = {name: best["baselines"][name] for name in BASELINES if best["baselines"].get(name) is not None}
    if "shuffled" in beside:
        word = "clears" if _above(best, beside["shuffled"]) else "does not clear"
        said.append(f"Its interval {word} the same map fitted on shuffled pairs ({_fixed(beside.pop('shuffled'))}).")
    words = {"identity": "the padded identity", "native": "the target's own embeddings", "chance": "chance"}
    if beside:
        said.append(f"Beside it: {', '.join(f'{words[name]} {_fixed(value)}' for name, value in beside.items())}.")

    if control and control["split"] == split:
        verdict = (
            "below it, and the intervals do not overlap"
            if _above(best, control["high"])
            else "so the intervals overlap, and the control explains much of the score"
            if control["value"] < best["value"]
            else "which is at least as much: the score is no evidence for the encoders"
        )
        said.append(
            f"The highest control, {control['source']} → {control['target']} with {control['map']}, "
            f"reaches {_interval(control)}, {verdict}."
        )
    else:
        said.append("No control was scored here.")

    for other in record.splits:
        row = record.score(_pair(best), best["map"], other, section.task, section.metric)
        if other != split and row:
            gap = row["value"] - best["value"]
            verb = "falls" if gap < 0 else "rises" if gap > 0 else "stays"
            said.append(
                f"On the {other} split it {verb} {'at' if gap == 0 else 'to'} {_interval(row)} ({_signed(gap)})."
            )

    judged = [
        row
        for pair in section.pairs
        if not record.is_control(pair)
        for row in record.of(section, pair, split)
        if row["baselines"].get("shuffled") is not None
    ]
    below = [row for row in judged if not _above(row, row["baselines"]["shuffled"])]
    if judged:
        missed = [f"{row['source']} → {row['target']} with {row['map']}" for row in below[:4]]
        more = f" and {len(below) - 4} more" if len(below) > 4 else ""
        said.append(
            f"{len(judged) - len(below)} of the {len(judged)} scores of real encoders on this split "
            "clear their shuffled pairs" + (f"; not {', '.join(missed)}{more}." if below else ".")
        )
    return said


def _headlines(record: Record) -> list[tuple[Section, list[tuple[Row, list[Row | None]]]]]:
    """For each section and pair: its highest score, and that map's score on every split."""
    found = []
    for section in record.sections():
        rows = []
        for pair in section.pairs:
            if best := record.highest(section, [pair]):
                on = [record.score(pair, best["map"], s, section.task, section.metric) for s in record.splits]
                rows.append((best, on))
        found.append((section, rows))
    return found


def _tables(record: Record) -> dict[str, dict[str, list[tuple[PairName, list[Row]]]]]:
    """Every score: by task, then metric, then pair; a pair's by map and split."""
    tables: dict[str, dict[str, dict[PairName, list[Row]]]] = {}
    for row in record.scores:
        tables.setdefault(row["task"], {}).setdefault(row["metric"], {}).setdefault(_pair(row), []).append(row)

    def order(row: Row) -> tuple[int, int]:
        return record.maps.index(row["map"]), record.splits.index(row["split"])

    return {
        task: {
            metric: [(pair, sorted(by_pair[pair], key=order)) for pair in record.pairs if pair in by_pair]
            for metric, by_pair in metrics.items()
        }
        for task, metrics in tables.items()
    }


def _candidates(record: Record) -> list[tuple[Row, list[Row | None]]]:
    """The champion's candidates, best first, each with its held-out scores beside."""
    champion = record.run.get("champion")
    if not champion:
        return []
    rows = sorted(champion.get("candidates") or [champion], key=lambda row: -_number(row["value"]))
    return [
        (
            row,
            [record.score(_pair(row), row["map"], s, champion["task"], champion["metric"]) for s in record.splits],
        )
        for row in rows
    ]


def _ranking(record: Record) -> list[tuple[str, str, list[tuple[Row, list[Row | None]]]]]:
    """By task and modalities: pair, map and rule as the anchors order them, with what the held-out items then said."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in record.run.get("ranking") or []:
        pair = _pair(row)
        if row["metric"] == (record.headline(pair) if row["task"].startswith("retrieval") else row["metric"]):
            found.setdefault((row["task"], record.route(pair), row["metric"]), []).append(row)
    order = list(TASKS)
    return [
        (
            f"{_task(task)}, {route}",
            metric,
            [
                (row, [record.score(_pair(row), row["map"], s, task, metric, row["rule"]) for s in record.splits])
                for row in sorted(rows, key=lambda row: -_number(row["value"]))
            ],
        )
        for (task, route, metric), rows in sorted(found.items(), key=lambda item: order.index(item[0][0]))
    ]


def _health(record: Record) -> tuple[list[str], list[tuple[str, list[Row | None]]]]:
    """The measures' names, and each space's readings."""
    readings = (record.run.get("similarity") or {}).get("health") or {}
    names = list(dict.fromkeys(name for of_space in readings.values() for name in of_space))
    return names, [(space, [of_space.get(name) for name in names]) for space, of_space in readings.items() if of_space]
