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
from vdp_utils.lvlm.load import load_lvlm
from vdp_utils.measuring.measure import measure
from vdp_utils.measuring.pruned import (Pruning, answer_condition, answers_sample,
                                        example_sample, times_sample)
from vdp_utils.measuring.pruned.answers import looking
from vdp_utils.measuring.pruned.conditions import parsed
from vdp_utils.measuring.pruned.unpruned import Unpruned, bears_on
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources.samples import one_pair, presence_samples

STRATEGIES = ("accumulated", "accumulated mean question", "random 3", "snapkv", "key_norm",
              "contrastive_perplexity", "perplexity", "bm25", "h2o", "fastv_visual",
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


def unpruned(lvlm, sample, question, kind="other_images", length=80, layers=(0,), image="own"):
    prefix = prompts.shared_prefix(lvlm, sample, kind, length, image=image)
    described = (prefix.kinds == Kind.IMAGE) & (image != "own")
    prefix.kinds[described] = Kind.CONTEXT
    asking = prompts.asking(lvlm, question, image)
    return prefix, asking, Unpruned(lvlm, prompts.join(prefix, asking), layers, question,
                                    np.pad(described, (0, len(asking))))


@pytest.mark.parametrize("mode, layer", [("prefill", 0), ("prefill", 1), ("compress", 1),
                                         ("compress compact", 0), ("compress compact", 3)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_going_on_from_one_pass_prunes_as_a_context_pruner_does(lvlm, pairs, strategy, mode, layer):
    sample, question = pairs[0], pairs[0].questions[0]
    pruning = Pruning(strategy, 0.6, mode, layer)
    prefix, asking, first = unpruned(lvlm, sample, question, "misleading", 90, (0, 1, 3))
    scores, looks, stays = looking(lvlm, prefix, asking, question, pruning)
    ((mine, attention, kept),) = first.answers([pruning])
    assert mine == pytest.approx(scores, abs=1e-4)
    by_kind = looks.new_zeros(len(looks), len(Kind)).index_add_(1, first.kinds, looks)
    torch.testing.assert_close(attention, by_kind, atol=1e-5, rtol=0)
    assert torch.equal(first.staying(pruning), stays)
    assert kept == int((stays & (first.kinds == Kind.CONTEXT)).sum()) == (
        90 if strategy in ("fastv_visual", "text_first") else 36)


def test_the_embedded_lvlm_is_pruned_so_too(pairs):
    whole, question = load_lvlm("embedded-s"), pairs[0].questions[1]
    prefix, asking, first = unpruned(whole, pairs[0], question, "misleading", 256, (1,))
    asked = [Pruning("accumulated", rate, "compress compact", 1) for rate in (0.5, 0.9)]
    for pruning, (mine, _, _) in zip(asked, first.answers(asked)):
        with torch.no_grad():
            scores, _, _ = looking(whole, prefix, asking, question, pruning)
        assert mine == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("mode", ["prefill", "compress", "compress compact"])
def test_sets_of_one_batch_do_not_mix(lvlm, pairs, mode):
    _, _, first = unpruned(lvlm, pairs[1], pairs[1].questions[1])
    prunings = [Pruning(f"random {seed}", 0.5, mode, 0) for seed in range(4)]
    stays = torch.stack([first.staying(pruning) for pruning in prunings])
    assert len({tuple(row.tolist()) for row in stays}) == 4
    together, alone = first.answers(prunings), [first.answers([one])[0] for one in prunings]
    for (scores, mass, _), (own, own_mass, _) in zip(together, alone):
        assert scores == pytest.approx(own, abs=1e-5)
        torch.testing.assert_close(mass, own_mass, atol=1e-6, rtol=0)
    scores, mass = first.go_on(torch.ones_like(stays[:1]), mode, 0)[0]  # all kept: nothing changes
    assert scores == pytest.approx(first.answer[0], abs=1e-5)
    torch.testing.assert_close(mass, first.answer[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(mass.sum(1), torch.ones(len(mass)), atol=1e-5, rtol=0)


def test_a_set_that_several_ask_for_runs_once(lvlm, pairs, monkeypatch):
    _, _, first = unpruned(lvlm, pairs[0], pairs[0].questions[0], layers=(0, 1))
    ran, whole = [], first.go_on
    monkeypatch.setattr(first, "go_on", lambda stays, *how: ran.append((len(stays), *how)) or whole(
        stays, *how))
    asked = [Pruning("recency", 0.5, mode, layer) for mode in ("compress compact", "prefill")
             for layer in (0, 1)]
    found = first.answers(asked)
    assert ran == [(1, "compress compact", -1), (1, "prefill", 0), (1, "prefill", 1)]
    assert found[0][0] == found[1][0] and found[2][0] != found[3][0]


def test_the_oracle_keeps_what_is_described_and_drops_what_misleads(lvlm, pairs):
    for question in pairs[0].questions:
        _, _, first = unpruned(lvlm, pairs[0], question, "misleading", 900, image="text_middle")
        named = torch.from_numpy(bears_on(first.evidence().pieces, question.nouns))
        described = torch.from_numpy(first.described)
        elsewhere = (first.kinds == Kind.CONTEXT) & ~described
        share = float(described.sum() / (first.kinds == Kind.CONTEXT).sum())
        most, least = (first.staying(Pruning("oracle", rate, "prefill", 0))
                       for rate in (0.5, 1 - share / 2))
        assert most[described].all() and not (most & named & elsewhere).any()
        assert not (least & elsewhere).any()  # there is not even room for the description
        assert (least & named & described).any() == (question.answer == "Yes")
        assert (named & elsewhere).any() == (question.answer == "No")


def test_rows_have_every_documented_column(lvlm, pairs, tmp_path):
    modes = ("prefill", "compress compact", "evict")
    one = answer_condition(lvlm, "other_images", 40, (0.25, 0.5), ("accumulated", "random 1"),
                           modes=modes, layers=(0, 1))
    rows = measure(lvlm, pairs, [one], ResultStore(tmp_path), recovery.PRUNED,
                   each=answers_sample)
    assert len(rows) == 3 * 2 * (1 + 2 * 2 * 3 * 2)
    assert all(name in answers_sample.__doc__ for name in set(rows.columns) - {"key"})
    assert rows.groupby(["strategy", "rate"])["kept_tokens"].unique().map(list).to_dict() == {
        ("none", 0.0): [40], ("accumulated", 0.25): [30], ("accumulated", 0.5): [20],
        ("random 1", 0.25): [30], ("random 1", 0.5): [20]}
    assert rows.groupby(["mode", "layer"]).size().to_dict() == {("none", -1): 6} | {
        (mode, layer): 24 for mode in modes for layer in (0, 1)}
    for _, part in rows[rows["mode"].isin(["none", "evict"])].groupby(["image_id", "question_id"]):
        logs = np.stack(part["log_likelihoods"])  # eviction: from the whole prompt
        np.testing.assert_array_equal(logs, np.tile(logs[:1], (9, 1)))
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
        Unpruned(lvlm, whole, [0], question)
