"""The theorems of F8 on random and adversarial attention, and where their premises end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdp_utils.attention import theory
from vdp_utils.attention.kept import keep, kept_count
from vdp_utils.attention.strategies import STRATEGIES, Evidence
from vdp_utils.errors import VDPError

examples = settings(derandomize=True, deadline=None, max_examples=300)


def gini(weights: torch.Tensor) -> torch.Tensor:
    """Gini index, 0 where all weights are equal, near 1 where one has all."""
    n = weights.shape[-1]
    ranks = torch.arange(1, n + 1, dtype=weights.dtype)
    ascending = weights.sort(-1).values
    return (2 * (ranks * ascending).sum(-1) / ascending.sum(-1) - (n + 1)) / n


CONCENTRATION = {  # name -> (measure, its sign under concentration)
    "entropy": (theory.entropy, -1),
    "largest weight": (lambda weights: weights.amax(-1), 1),
    "Gini index": (gini, 1),
    "inverse participation ratio": (lambda weights: (weights**2).sum(-1), 1),
}


@st.composite
def attention(draw):
    """Weights of one query (n,): logits random, tied, or with a few giants; and three kinds."""
    n = draw(st.integers(3, 40))
    logits = draw(st.lists(st.sampled_from([-30.0, -2.0, -1.0, 0.0, 0.0, 0.5, 3.0, 12.0]),
                           min_size=n, max_size=n))
    noise = draw(st.sampled_from([0.0, 1.0])) * np.random.default_rng(n).normal(size=n)
    weights = torch.tensor(np.array(logits) + noise, dtype=torch.float64).softmax(-1)
    image = draw(st.integers(1, n - 2))
    context = draw(st.integers(1, n - 1 - image))
    return weights, image, context  # first the image's tokens, then the context's, then the rest


@examples
@given(attention(), st.data())
def test_a_the_image_s_mass_never_falls_whatever_context_goes(found, data):
    weights, image, context = found
    kept = torch.ones(len(weights), dtype=torch.bool)
    gone = data.draw(st.lists(st.integers(image, image + context - 1), unique=True))
    kept[gone] = False
    before = weights[:image].sum()
    after = theory.renormalised(weights, kept)
    assert after.sum().item() == pytest.approx(1) and (after[~kept] == 0).all()
    assert after[:image].sum() >= before - 1e-12
    predicted = theory.predicted_mass(before, weights[~kept].sum())
    torch.testing.assert_close(after[:image].sum(), predicted, atol=1e-9, rtol=1e-9)
    low, high = theory.mass_bounds(before, weights[image:image + context], len(gone))
    assert low - 1e-12 <= predicted <= high + 1e-12


@examples
@given(attention(), st.floats(0, 0.99))
def test_c_the_lowest_share_of_the_context_gains_at_most_its_share(found, rate):
    weights, image, context = found
    mass, part = weights[:image].sum(), weights[image:image + context]
    count = int(rate * context)
    lowest = part.sort().values[:count].sum()
    bound = theory.predicted_mass(mass, count / context * part.sum())
    assert theory.predicted_mass(mass, lowest) <= bound + 1e-12


@examples
@given(attention(), st.integers(0, 39))
def test_b_dropping_the_smallest_weights_concentrates(found, count):
    weights, *_ = found
    order = weights.argsort()
    kept = torch.ones(len(weights), dtype=torch.bool)
    kept[order[:min(count, len(weights) - 1)]] = False
    after = theory.renormalised(weights, kept)
    assert theory.lowest_go(weights, kept) and theory.majorises(after, weights, 1e-12)
    for measure, sign in CONCENTRATION.values():
        assert sign * (measure(after) - measure(weights)) >= -1e-9


@examples
@given(attention(), st.data())
def test_what_majorises_is_more_concentrated_by_every_measure(found, data):
    """Also where the premise of (b) does not hold but the conclusion does."""
    weights, *_ = found
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(weights),
                                           max_size=len(weights))))
    kept[int(weights.argmax())] = True
    after = theory.renormalised(weights, kept)
    if theory.majorises(after, weights, 0):
        for measure, sign in CONCENTRATION.values():
            assert sign * (measure(after) - measure(weights)) >= -1e-9


def test_dropping_the_largest_spreads_attention():
    weights = torch.tensor([0.9, *[0.1 / 9] * 9], dtype=torch.float64)
    kept = torch.arange(10) > 0
    after = theory.renormalised(weights, kept)
    assert not theory.lowest_go(weights, kept) and not theory.majorises(after, weights)
    for measure, sign in CONCENTRATION.values():
        assert sign * (measure(after) - measure(weights)) < 0


def test_the_head_maximum_rule_spreads_attention_in_some_head():
    maps = theory.counter_example()
    rows = torch.arange(6)
    assert (maps.triu(1) == 0).all() and maps.sum(-1) == pytest.approx(np.ones((2, 6)))
    evidence = Evidence(torch.tensor([2, 2, 2, 2, 2, 3]), torch.ones(6, dtype=torch.bool), rows[:5],
                        accumulated={"all": maps.sum(1)})
    kept = torch.ones(6, dtype=torch.bool)
    kept[:5] = False
    kept[keep(STRATEGIES["accumulated"].score(evidence), kept_count(5, 0.2))] = True
    assert kept.tolist() == [True, True, True, True, False, True]
    last = maps[:, -1]
    after = theory.renormalised(last, kept)
    assert (theory.entropy(after) - theory.entropy(last) > 0).tolist() == [False, True]
    assert theory.lowest_go(last, kept).tolist() == [True, False]


@pytest.mark.parametrize("weights, entropy, spread, participation", [
    ([0.25] * 4, np.log(4), 0, 0.25), ([1, 0, 0, 0], 0, 0.75, 1),
    ([0.5, 0.5, 0, 0], np.log(2), 0.5, 0.5)])
def test_measures_of_concentration_are_what_they_are_by_hand(weights, entropy, spread,
                                                             participation):
    weights = torch.tensor(weights, dtype=torch.float64)
    assert theory.entropy(weights).item() == pytest.approx(entropy)
    assert gini(weights).item() == pytest.approx(spread)
    assert (CONCENTRATION["inverse participation ratio"][0](weights).item()
            == pytest.approx(participation))


def test_a_query_that_keeps_nothing_is_refused():
    with pytest.raises(VDPError, match="keep at least one token"):
        theory.renormalised(torch.tensor([1.0, 0.0]), torch.tensor([False, True]))
