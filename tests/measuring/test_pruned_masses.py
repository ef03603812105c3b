"""Attention before and after pruning, measured, and what theory says of it."""

import numpy as np
import pytest

from vdp_utils.errors import VDPError
from vdp_utils.findings import concentration
from vdp_utils.measuring import pruned
from vdp_utils.measuring.measure import condition, measure
from vdp_utils.measuring.store import ResultStore, condition_hash
from vdp_utils.sources.samples import one_question, presence_samples

RATES = (0.25, 0.75)


@pytest.fixture(scope="module")
def lvlm(uneven):
    return uneven


@pytest.fixture(scope="module")
def rows(lvlm, tmp_path_factory):
    samples = one_question(presence_samples("evaluation", 3))
    conditions = [pruned.pruned_condition(lvlm, "other_images", n, RATES, layer=1)
                  for n in (40, 120)]
    return measure(lvlm, samples, conditions, ResultStore(tmp_path_factory.mktemp("rows")),
                   concentration.MASSES, each=pruned.masses_sample)


@pytest.fixture(scope="module")
def layers(rows):
    return concentration.by_layer(rows, RATES)


def test_the_layer_after_the_drop_does_what_the_theorem_says(layers):
    """Its queries and keys have not changed; those of later layers have."""
    first = layers[layers["layer"] == 2]
    np.testing.assert_allclose(first["after"], first["predicted"], atol=1e-5)
    np.testing.assert_allclose(first["entropy_after"], first["entropy_frozen"], atol=1e-4)
    assert (first["gain"] > 0).all() and (first["falls_measured"] == 0).all()
    later = layers[layers["layer"] == 3]
    assert np.abs(later["after"] - later["predicted"]).max() > 1e-4


def test_layers_up_to_the_scoring_one_are_as_without_pruning(layers):
    early = layers[layers["layer"] <= 1]
    np.testing.assert_allclose(early["after"], early["before"], atol=1e-6)
    np.testing.assert_allclose(early["entropy_after"], early["entropy_before"], atol=1e-5)
    assert not early["later"].any() and layers[layers["layer"] > 1]["later"].all()


def test_theorems_have_no_exception_and_their_premise_is_counted(layers):
    assert (layers["exceptions"] == 0).all() and (layers["mass_falls"] == 0).all()
    table = concentration.theorems(layers)
    assert len(table) == 4 and (table["rows"] == 12).all() and (table["exceptions"] == 0).all()
    assert layers["premise"].between(0, 1).all()


def test_rows_have_every_documented_column(rows):
    known = {"key", "image_id", "question_id", "context_kind", "context_length", "layer", "before",
             *concentration.LISTS}
    assert set(rows.columns) == known
    assert all(name in pruned.masses_sample.__doc__ for name in known - {"key"})
    assert len(rows) == 6
    for row in rows.itertuples():
        assert len(row.before) == 4 and len(row.after) == 4 * len(RATES)


def test_a_condition_says_how_it_prunes(lvlm):
    plain = condition(lvlm, "other_images", 64)
    one, other = (pruned.pruned_condition(lvlm, "other_images", 64, rates)
                  for rates in ((0.5,), (0.6,)))
    assert len({condition_hash(c) for c in (plain, one, other)}) == 3
    with pytest.raises(VDPError, match="rate 1.5"):
        pruned.pruned_condition(lvlm, "other_images", 64, (0.5, 1.5))
    with pytest.raises(VDPError, match="unknown strategy"):
        pruned.pruned_condition(lvlm, "other_images", 64, (0.5,), strategy="guess")
