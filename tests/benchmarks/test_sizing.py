"""The plan on paper follows from its rates."""

from __future__ import annotations

import pytest

from benchmarks.sizing import WIDTH, plan

RATES = {
    "embed image": 100.0, "embed text": 300.0, "sums pair x item": 1e4, "pair": 2.0, "translate item": 1e5,
    "disk byte": 1e9, "record pair": 20.0, "record bytes a pair": 5e4,
}  # fmt: skip


def test_phases_are_products_of_rates():
    phases = {phase.name: phase for phase in plan(RATES, 10, 1e6, 1e4)}
    # Half of the encoders at 100 a second, half at 300: the harmonic mean.
    assert phases["embed all items, every encoder"].hours == pytest.approx((5e6 / 100 + 5e6 / 300) / 3600)
    assert phases["embed all items, every encoder"].bytes == 10 * 1e6 * WIDTH * 2
    assert phases["fit and judge all pairs"].hours == pytest.approx(90 / 2 / 3600)
    assert phases["sums of all pairs"].hours == pytest.approx(45 * 1e4 / 1e4 / 3600)
    assert phases["translate all items, one space"].hours == pytest.approx(1e6 / 1e5 / 3600)


def test_machines_are_whole_and_enough():
    for phase in plan(RATES, 1000, 1e8, 1e5):
        machines = phase.machines(7)
        assert machines >= 1
        assert phase.hours / machines <= 7 * 24
        assert machines == 1 or phase.hours / (machines - 1) > 7 * 24
