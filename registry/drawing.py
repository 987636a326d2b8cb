"""What all pictures share: paper, colours, names of ticks, and cells with numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from registry.indexed import PairName, Record

# Wong's colour-blind-safe palette, its yellow and black replaced by colours that carry thin marks on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#7A7A7A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
INK, QUIET, CONTROL, MISSING = "#1F2328", "#656D76", "#9A3B00", "#E3E5E8"
HEAT = colormaps["YlGnBu"]
DPI = 150
WIDTH = 10.0
"""Inches; so that 1000 pixels show 100 an inch."""
SLANT = 45.0


def label(record: Record, pair: PairName) -> str:
    return " → ".join(drawn(name, 24) for name in pair) + (" (control)" if record.is_control(pair) else "")


def drawn(text: str, length: int) -> str:
    """The text as Matplotlib draws it without mishap: no mathematics, no glyph that its font lacks, not too long."""
    font = get_font(findfont("DejaVu Sans"))
    text = "".join(c if font.get_char_index(ord(c)) else "?" for c in text)
    text = f" {text}" if text.startswith("_") else text  # a legend leaves out what starts with an underscore
    if len(text) > length:
        text = f"{text[: length // 2]}…{text[-(length // 2 - 1) :]}"
    return text.replace("$", r"\$")


def room(labels: Iterable[str], size: float) -> float:
    """The inches that the longest of these labels needs."""
    return 0.2 + max((len(label) for label in labels), default=0) * size * 0.0086


def columns(names: Iterable[str]) -> int:
    """How many of these names a legend has room for in a row."""
    return max(1, min(6, int(WIDTH / (room(names, 8.5) + 0.4))))


def page(height: float, title: str, subtitle: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    figure.text(0.15 / WIDTH, 1 - 0.14 / height, title, size=13, weight="bold", color=INK, va="top")
    figure.text(0.15 / WIDTH, 1 - 0.44 / height, subtitle, size=8.5, color=QUIET, va="top", linespacing=1.4)
    return figure


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in inches from the top left corner, without frame and ticks."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5, colors=INK)
    return axes


def name_ticks(axis: Any, at: Iterable[float], labels: Sequence[str], controls: Sequence[bool], size: float) -> None:
    axis.set_ticks(list(at), labels, fontsize=size)
    for tick, control in zip(axis.get_ticklabels(), controls, strict=True):
        if control:
            tick.set(color=CONTROL, style="italic")


def slant(panel: Axes) -> None:
    """Column names above the cells, leaning to the right."""
    for tick in panel.get_xticklabels():
        tick.set(rotation=SLANT, ha="left", rotation_mode="anchor")


def cells(
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


def colour_bar(figure: Figure, left: float, top: float, width: float, highest: float) -> None:
    bar = panel(figure, left, top, width, 0.09)
    figure.colorbar(
        ScalarMappable(Normalize(0, highest), HEAT), cax=bar, orientation="horizontal", ticks=[0, highest / 2, highest]
    )
    bar.set_xticklabels([f"{tick:.2g}" for tick in (0, highest / 2, highest)], fontsize=7.5)
    bar.tick_params(length=0)
    bar.spines[:].set_visible(False)
