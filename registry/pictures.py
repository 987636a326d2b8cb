"""The pictures of one run: scores, similarities and a projection, drawn for a page and for a look by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from align.measures import MEASURES
from registry import drawing
from registry.drawing import COLOURS, DPI, INK, MARKERS, QUIET, SLANT, WIDTH
from registry.indexed import Record, Row, Section, metric_title, number


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


def _pairs_by_maps(record: Record) -> Figure | None:
    sections = [section for section in record.sections() if section.task == "retrieval"]
    if not sections:
        return None
    labels = {
        pair: f"{drawing.label(record, pair)} · R@{section.metric.rsplit('_', 1)[-1]}"
        for section in sections
        for pair in section.pairs
    }
    head, row, gap = 1.0, 0.27, 0.36
    left = drawing.room(labels.values(), 8.5)
    maps = [drawing.drawn(map_, 30) for map_ in record.maps]
    names = drawing.room(maps, 8.5) * 0.68 + 0.25
    width = (WIDTH - left - names + 0.6) / len(record.splits) - 0.25
    cell = min(width / len(record.maps), 0.8)
    body = len(labels) * row + len(sections) * gap
    figure = drawing.page(
        head + names + body + 0.55,
        "Retrieval: pairs by maps",
        "Share of held-out items whose true partner is found first (R@1) or, between modalities, among the first ten "
        "(R@10).\nBold: the row's highest. Grey: not run. Italic: control.",
    )
    for k, split in enumerate(record.splits):
        panel = drawing.panel(
            figure, left + k * (cell * len(record.maps) + 0.25), head + names, cell * len(record.maps), body
        )
        panel.set(xlim=(0, len(record.maps)), ylim=(body / row, 0))
        panel.xaxis.tick_top()
        drawing.name_ticks(panel.xaxis, np.arange(len(record.maps)) + 0.5, maps, [False] * len(record.maps), 8.5)
        drawing.slant(panel)
        panel.text(0, -(names - 0.02) / row, drawing.drawn(f"{split} split", 30), size=10, weight="bold", color=INK)
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
            drawing.cells(panel, values, 0, y, 1, 8 if cell > 0.35 else 7, best)
            if k == 0:
                panel.text(
                    0,
                    y - 0.22,
                    drawing.drawn(section.route, 44),
                    size=8,
                    color=QUIET,
                    weight="bold",
                    ha="left",
                    va="bottom",
                )
            at += [y + i + 0.5 for i in range(len(section.pairs))]
            y += len(section.pairs)
        controls = [record.is_control(pair) for pair in labels]
        drawing.name_ticks(panel.yaxis, at, list(labels.values()) if k == 0 else [""] * len(at), controls, 8.5)
    drawing.colour_bar(figure, left, head + names + body + 0.18, 2.2, 1)
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
        f"{drawing.drawn(name, 26)}{' (control)' if control else ''}"
        for name, control in zip(spaces, controls, strict=True)
    ]
    size = 8.0 if n > 8 else 9.0
    left = drawing.room(labels, size)
    names = left * 0.68
    side = min((WIDTH - left - names) / 2, 0.75 * n)
    head, below, strip = 0.9, 0.55, names + 0.4
    rows = -(-len(panels) // 2)
    trunk = 0.0 if tree is None else 2.2 + left * 0.7
    figure = drawing.page(
        head + rows * (strip + side + below) + trunk,
        "How alike the spaces are",
        "Measured without a map. CKA does not fall to 0 between unrelated spaces, least of all the biased one: hold it "
        "against\nthe controls. The diagonal is known by definition and left out.",
    )
    for k, (values, top, title, subtitle) in enumerate(panels):
        values = np.where(np.eye(n, dtype=bool), np.nan, values)
        x, y = left + (k % 2) * (side + 0.3), head + (k // 2) * (strip + side + below) + strip
        panel = drawing.panel(figure, x, y, side, side)
        panel.set(xlim=(0, n), ylim=(n, 0))
        drawing.cells(panel, values, 0, 0, top, 7 if n > 8 else 7.4)
        panel.plot([0, n], [0, n], color="white", linewidth=2)
        panel.xaxis.tick_top()
        for axis, shown in ((panel.xaxis, labels), (panel.yaxis, labels if k % 2 == 0 else [""] * n)):
            drawing.name_ticks(axis, np.arange(n) + 0.5, shown, controls, size)
        drawing.slant(panel)
        panel.text(0, -(names + 0.2) * n / side, title, size=10, weight="bold", color=INK)
        panel.text(0, -(names + 0.02) * n / side, subtitle, size=8, color=QUIET)
        drawing.colour_bar(figure, x, y + side + 0.15, 1.8, top)
    if tree is not None:
        name, drawn = tree
        panel = drawing.panel(figure, left, head + rows * (strip + side + below) + 0.35, WIDTH - left - 0.4, 1.4)
        for across, up in zip(drawn["icoord"], drawn["dcoord"], strict=True):
            panel.plot(across, up, color=INK, linewidth=1)
        panel.set(xlim=(0, 10 * n), ylim=(0, None))
        drawing.name_ticks(panel.xaxis, 10 * np.arange(n) + 5, labels, controls, size)
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
    columns = drawing.columns(drawing.drawn(str(name), 30) for name in colours)
    legend_rows = -(-len(colours) // columns) + 1
    figure = drawing.page(
        head + side + 0.15 + 0.22 * legend_rows,
        drawing.drawn(f"Before and after: {found['source']} → {found['target']}, {found['map']}", 80),
        f"{len(labels)} items, flattened from many dimensions to two: a picture, not a proof. "
        f"Lines join the two points of {len(joined)} of the items.",
    )
    for k, stage in enumerate(("before", "after")):
        panel = drawing.panel(figure, 0.15 + k * (side + gap), head, side, side)
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
            label=drawing.drawn(_space(record, found["source"]) + ", source", 44),
        ),
        Line2D(
            [],
            [],
            linestyle="",
            marker="^",
            color=INK,
            markerfacecolor="none",
            label=drawing.drawn(_space(record, found["target"]) + ", target", 44),
        ),
    ]
    marks = [
        Line2D([], [], linestyle="", marker="o", color=colour, label=drawing.drawn(str(name), 30))
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
    labels = [drawing.label(record, pair) for section in sections for pair in section.pairs]
    left = drawing.room(labels, 8.5) + 0.1
    columns = drawing.columns(drawing.drawn(map_, 30) for map_ in record.maps)
    legend = -(-len(record.maps) // columns) + 1
    head, above, below = 0.95 + 0.2 * legend, 0.52, 0.26
    height = head + sum(above + below + rows[s] * len(s.pairs) for s in sections) + 0.1
    width = (WIDTH - left - 0.2) / len(record.splits) - 0.5
    figure = drawing.page(
        height,
        "Scores on held-out items, with 95 % intervals",
        "Bar and number: the pair's highest map on the first split, the same map on the other. Baselines are "
        "that map's.\nShaded rows, italic: controls.",
    )
    marks = [
        Line2D([], [], linestyle="-", linewidth=1, markersize=5, label=drawing.drawn(m, 30), **style[m])
        for m in record.maps
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
    key = drawing.panel(figure, 0.2, 0.82 + 0.2 * (legend - 1), 6.5, 0.18)
    key.set(xlim=(0, 6.5), ylim=(-0.5, 0.5), xticks=[], yticks=[])
    for i, (name, mark) in enumerate(BASELINE_MARKS.items()):
        key.scatter(0.15 + 1.5 * i, 0, **mark)
        key.text(0.32 + 1.5 * i, 0, name, size=8.5, va="center_baseline", color=INK)

    top = head
    for section in sections:
        where = (0.15 / WIDTH, 1 - (top + 0.26) / height)
        title = f"{section.title}: {metric_title(section.metric)}"
        figure.text(*where, drawing.drawn(title, 100), size=9.5, weight="bold", color=INK)
        top += above
        tall = rows[section] * len(section.pairs)
        for k, split in enumerate(record.splits):
            if not any(record.of(section, pair, split) for pair in section.pairs):
                continue
            panel = drawing.panel(figure, left + k * (width + 0.5), top, width, tall)
            _score_panel(panel, record, section, split, used[section], style)
            controls = [record.is_control(pair) for pair in section.pairs]
            names = [drawing.label(record, pair) if k == 0 else "" for pair in section.pairs]
            drawing.name_ticks(panel.yaxis, range(len(names)), names, controls, 8.5)
            heading = drawing.drawn(f"{split} split", 30)
            panel.text(0, 1 + 0.07 / tall, heading, size=8, color=QUIET, transform=panel.transAxes)
        top += tall + below
    return figure


def _score_panel(
    panel: Axes, record: Record, section: Section, split: str, maps: list[str], style: dict[str, dict[str, Any]]
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
                panel.scatter(number(row["baselines"][name]), i, **mark, zorder=4, clip_on=False)
    for map_ in maps:
        rows = [
            (i, row)
            for i, pair in enumerate(section.pairs)
            if (row := record.score(pair, map_, split, section.task, section.metric))
        ]
        if rows:
            x = np.array([row["value"] for _, row in rows])
            spread = [[abs(number(row[end]) - row["value"]) for _, row in rows] for end in ("low", "high")]
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
