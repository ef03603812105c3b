"""Answers, times and examples under pruning, measured as `ContextPruner` prunes."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from vdp_utils import figures
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.findings import recovery
from vdp_utils.lvlm import prompts
from vdp_utils.measuring.measure import measure
from vdp_utils.measuring.pruned import (answer_condition, answers_sample, example_sample,
                                        times_sample)
from vdp_utils.measuring.pruned.answers import _answer
from vdp_utils.measuring.pruned.conditions import parsed
from vdp_utils.measuring.pruned.unpruned import Unpruned, bears_on
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources.samples import one_pair, presence_samples

STRATEGIES = ("accumulated", "accumulated mean question", "random 3", "snapkv", "key_norm",
              "contrastive_perplexity", "perplexity", "bm25", "oracle", "fastv_visual",
              "text_first", "expected_attention", "inverse")


@pytest.fixture(scope="module")
def lvlm(uneven):
    """Its options are cut to their first token: its small vocabulary spells them."""
    with pytest.MonkeyPatch.context() as patch:
        whole = prompts.option_ids
        patch.setattr(prompts, "option_ids", lambda lvlm, option: whole(lvlm, option)[:1])
        yield uneven


@pytest.fixture(scope="module")
def pairs():
    return one_pair(presence_samples("evaluation", 3))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_going_on_from_one_pass_is_pruning_during_prefill(lvlm, pairs, strategy, layer):
    sample, question = pairs[0], pairs[0].questions[0]
    prefix = prompts.shared_prefix(lvlm, sample, "misleading", 90)
    asking = prompts.asking(lvlm, question)
    first = Unpruned(lvlm, prompts.join(prefix, asking), layer, question)
    one = answer_condition(lvlm, "misleading", 90, (0.6,), (strategy,), layer=layer)
    if strategy != "oracle":  # which needs its marks handed in
        scores, mass, kept = _answer(lvlm, prefix, asking, question, first.kinds, one, strategy,
                                     0.6)
        stays = first.staying(strategy, 0.6)[None]
        ((mine, attention),) = first.go_on(stays)
        assert mine == pytest.approx(scores, abs=1e-4)
        torch.testing.assert_close(attention, mass, atol=1e-5, rtol=0)
        assert int((stays[0] & (first.kinds == Kind.CONTEXT)).sum()) == kept
    else:
        stays = first.staying(strategy, 0.6)
        assert int(stays.sum()) == len(stays) - 54


def test_sets_of_one_batch_do_not_mix(lvlm, pairs):
    question = pairs[1].questions[1]
    whole = prompts.join(prompts.shared_prefix(lvlm, pairs[1], "other_images", 80),
                         prompts.asking(lvlm, question))
    first = Unpruned(lvlm, whole, 0, question)
    stays = torch.stack([first.staying(f"random {seed}", 0.5) for seed in range(4)])
    assert len({tuple(row.tolist()) for row in stays}) == 4
    together, alone = first.go_on(stays), [first.go_on(row[None])[0] for row in stays]
    for (scores, mass), (own, own_mass) in zip(together, alone):
        assert scores == pytest.approx(own, abs=1e-5)
        torch.testing.assert_close(mass, own_mass, atol=1e-6, rtol=0)
    scores, mass = first.go_on(torch.ones_like(stays[:1]))[0]  # all kept: nothing changes
    assert scores == pytest.approx(first.answer[0], abs=1e-5)
    torch.testing.assert_close(mass, first.answer[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(mass.sum(1), torch.ones(len(mass)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode, positions", [("prefill", "kept"), ("compress", "compact"),
                                            ("evict", "kept")])
def test_rows_have_every_documented_column(lvlm, pairs, tmp_path, mode, positions):
    one = answer_condition(lvlm, "other_images", 40, (0.25, 0.5), ("accumulated", "random 1"),
                           mode=mode, positions=positions)
    rows = measure(lvlm, pairs, [one], ResultStore(tmp_path), recovery.PRUNED,
                   each=answers_sample)
    assert len(rows) == 3 * 2 * (1 + 2 * 2)
    assert all(name in answers_sample.__doc__ for name in set(rows.columns) - {"key"})
    kept = rows.groupby(["strategy", "rate"])["kept_tokens"].unique()
    assert {key: list(value) for key, value in kept.items()} == {
        ("none", 0.0): [40], ("accumulated", 0.25): [30], ("accumulated", 0.5): [20],
        ("random 1", 0.25): [30], ("random 1", 0.5): [20]}
    if mode == "evict":  # its first token comes from the whole prompt
        for _, part in rows.groupby(["image_id", "question_id"]):
            logs = np.stack(part["log_likelihoods"])
            np.testing.assert_allclose(logs, np.tile(logs[:1], (5, 1)), atol=1e-4)
    again = measure(lvlm, pairs, [one], ResultStore(tmp_path), recovery.PRUNED,
                    each=lambda *_: pytest.fail("measured twice"))
    pd.testing.assert_frame_equal(rows, again)


def test_times_are_of_the_prompt_asked_for(lvlm, pairs, tmp_path):
    one = answer_condition(lvlm, "other_images", 60, (0.5, 0.75), ("accumulated", "bm25"))
    rows = measure(lvlm, pairs[:2], [one], ResultStore(tmp_path), "F9_times", each=times_sample)
    assert len(rows) == 2 * 2 * (1 + 2 * 2)
    assert all(name in times_sample.__doc__ for name in set(rows.columns) - {"key"})
    assert (rows[["ttft_s", "tpot_s"]] > 0).all().all()
    size = rows.groupby(["image_id", "question_id", "rate"])["cache_bytes"].first().unstack()
    token = (size[0.0] - size[0.5]) / 30
    np.testing.assert_allclose(size[0.0] - size[0.75], 45 * token)


def test_words_in_the_image_s_place_may_be_pruned(lvlm, pairs):
    one = answer_condition(lvlm, "other_images", 40, (0.5,), image="text_middle")
    rows = pd.DataFrame(answers_sample(lvlm, pairs[0], one))
    described = len(prompts.text_description(lvlm.tokenizer, pairs[0]))
    assert set(rows.loc[rows["rate"] == 0, "kept_tokens"]) == {40 + described}
    assert set(rows.loc[rows["rate"] == 0.5, "kept_tokens"]) == {(41 + described) // 2}


def test_examples_show_what_goes_and_where_the_answer_looks(lvlm, pairs, tmp_path):
    one = answer_condition(lvlm, "misleading", 60, (0.5,))
    rows = measure(lvlm, pairs[:2], [one], ResultStore(tmp_path), recovery.EXAMPLES,
                   each=example_sample)
    assert len(rows) == 2 * 2 * 2
    assert all(name in example_sample.__doc__ for name in set(rows.columns) - {"key"})
    for row in rows.itertuples():
        assert len(row.texts) == len(row.stays) == 60 and len(row.map_image) == 4 * 100
        assert sum(row.stays) == (30 if row.rate else 60)
        prefix = prompts.shared_prefix(lvlm, pairs[0], "misleading", 60)
        if row.image_id == pairs[0].image_id:
            assert "".join(row.texts) == lvlm.tokenizer.decode(prefix.input_ids[-60:])
    figure = figures.pruned_examples(rows, pairs[:2], "S")
    drawn = [text for text in figure.axes[2].texts if text.get_text().strip()]
    assert len({text.get_color() for text in drawn}) == 2
    whole = "".join(rows["texts"].iloc[0]).split()
    assert "".join(text.get_text() for text in figure.axes[2].texts).split() != [] and whole
    assert figure.axes[0].get_title().startswith("before") and "rate 0.5" in (
        figure.axes[1].get_title())
    plt.close(figure)


def test_sentences_that_name_a_noun_bear_on_it():
    texts = ["There", " is", " a", " cat", ".", " I", " see", " it", "!", "\n", "A", " dog", "?"]
    assert bears_on(texts, ["cat"]).tolist() == [True] * 5 + [False] * 8
    assert bears_on(texts, ["dog"]).tolist() == [False] * 10 + [True] * 3
    assert not bears_on(texts, ["cow"]).any()


def test_what_cannot_be_asked_for_is_refused(lvlm, pairs):
    assert parsed("accumulated mean question") == ("accumulated", dict(heads="mean",
                                                                 query_set="question"))
    assert parsed("random 12") == ("random", dict(seed=12))
    for wrong, message in (("accumulated loudly", "'loudly' is neither"),
                           ("guess", "unknown strategy 'guess'")):
        with pytest.raises(VDPError, match=message):
            answer_condition(lvlm, "other_images", 40, (0.5,), (wrong,))
    with pytest.raises(VDPError, match="rate 1"):
        answer_condition(lvlm, "other_images", 40, (1.0,))


def test_options_of_several_tokens_are_refused(lvlm, pairs, monkeypatch):
    question = pairs[0].questions[0]
    whole = prompts.join(prompts.shared_prefix(lvlm, pairs[0], "other_images", 40),
                         prompts.asking(lvlm, question))
    monkeypatch.setattr(prompts, "option_ids", lambda lvlm, option: [1, 2])
    with pytest.raises(VDPError, match="not one token each"):
        Unpruned(lvlm, whole, 0, question)
