"""A chain against its parts by hand."""

from pathlib import Path

import numpy as np
import pytest

from align.maps import Chain, load_map
from align.maps.linear import Ridge
from align.maps.orthogonal import Procrustes
from align.maps.relative import Relative
from align.maps.transport import OptimalTransport
from align.preprocess import Center, Standardize, Unit, Whiten


def test_is_steps_then_map_then_steps_undone(planted) -> None:
    X, Y = planted()
    chain = Chain([Standardize(), Unit()], Procrustes(), [Standardize(), Whiten(shrinkage=0.3)]).fit(X, Y)
    assert chain.into_target
    x = (X - X.mean(0)) / X.std(0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = (Y - Y.mean(0)) / Y.std(0)
    whiten = Whiten(shrinkage=0.3).fit(y)
    inner = Procrustes().fit(x, whiten.transform(y))
    expected = whiten.inverse_transform(inner.transform(x)) * Y.std(0) + Y.mean(0)
    np.testing.assert_allclose(chain.transform(X), expected, atol=1e-9)
    np.testing.assert_allclose(chain.source_to_shared(X), inner.source_to_shared(x), atol=1e-9)
    np.testing.assert_allclose(chain.target_to_shared(Y), inner.target_to_shared(whiten.transform(y)), atol=1e-9)
    assert not hasattr(chain, "inverse_transform")


def test_leads_to_the_processed_target_where_a_step_cannot_be_undone(planted) -> None:
    X, Y = planted()
    chain = Chain([], Ridge(1.0), [Unit()]).fit(X, Y)
    assert not chain.into_target
    units = Y / np.linalg.norm(Y, axis=1, keepdims=True)
    np.testing.assert_allclose(chain.transform(X), Ridge(1.0).fit(X, units).transform(X), atol=1e-9)
    back = chain.inverse_transform(Y)
    np.testing.assert_allclose(back, Ridge(1.0).fit(X, units).inverse_transform(units), atol=1e-9)


def test_is_what_its_map_is() -> None:
    assert Chain([], Procrustes()).paired
    assert not Chain([], OptimalTransport()).paired
    assert not Chain([], Relative()).into_target
    assert not hasattr(Chain([], OptimalTransport()), "inverse_transform")


def test_the_parts_stay_unfitted_and_choices_can_be_settled(planted) -> None:
    X, Y = planted()
    step, ridge = Center(), Ridge()
    chain = Chain([step], ridge).fit(X, Y)
    assert not hasattr(step, "mean_")
    assert not hasattr(ridge, "matrix_")
    assert chain.settled().map.alphas == chain.map_.alpha_


def test_without_a_map_it_says_so(planted) -> None:
    with pytest.raises(ValueError, match="map must be a map, got None"):
        Chain().fit(*planted())


def test_a_part_of_another_chain_is_refused(planted, tmp_path: Path) -> None:
    X, Y = planted()
    chain = Chain([Center()], Ridge(1.0), [Center()]).fit(X, Y)
    chain.save(tmp_path / "chain")
    Ridge(2.0).fit(X, Y).save(tmp_path / "chain" / "map")
    with pytest.raises(ValueError, match="is not the part that"):
        load_map(tmp_path / "chain")
    (tmp_path / "chain" / "source_0" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"source_0 is no saved map"):
        load_map(tmp_path / "chain")
