"""F10 on made-up rows of several models whose losses, gains and depths are built in."""

import numpy as np
import pandas as pd
import pytest

from vdp_utils import figures
from vdp_utils.attention.tokens import Kind
from vdp_utils.errors import VDPError
from vdp_utils.findings import KINDS, models, recovery
from vdp_utils.measuring.pruned import COMPACT, NONE

IMAGES, LENGTHS = 24, (0, 512, 2048)
S, M, FAR, SEED = "embedded-s", "embedded-m", "embedded-s-far", "embedded-s-seed1"


def lines_of(model, lost, layers, **more):
    """A yes- and a no-question about each image; of the no-questions the share `lost` is lost."""
    maps = np.zeros((layers, len(Kind)))
    maps[:, Kind.IMAGE], maps[:, Kind.QUESTION] = 0.25, 0.75
    for number in range(IMAGES):
        for question, answer in enumerate(("yes", "no")):
            right = question == 0 or number >= round(lost * IMAGES)
            said = answer if right else "yes"
            yield dict(model=model, image_id=f"i{number:02d}", question_id=str(question),
                       answer=answer, correct=right, predicted=said, margin=1.0,
                       log_likelihoods=[-0.1, -3.0] if said == "yes" else [-3.0, -0.1],
                       attention=maps.ravel().astype(np.float16), **more)


def made(lost, gain=0.5, layers=None, lengths=None):
    """Tables of presence, pruned and placed rows by {model: share lost to distance}.

    What is lost to text is 0.5, of which pruning mends the share `gain`.
    """
    presence, pruned, placed = [], [], []
    for model, far in lost.items():
        depth = (layers or {}).get(model, 6)
        for length in (lengths or {}).get(model, LENGTHS):
            share = far * bool(length)
            for image in ("own", "text", "swapped"):
                seen = share * (image == "own")
                for kind in KINDS[image == "text":]:  # never described after its own dialogue
                    presence += lines_of(model, seen, depth, image=image, context_kind=kind,
                                         context_length=length)
                bare = dict(image=image, rate=0.0, positions="compact", context_kind="other_images")
                placed += lines_of(model, seen, depth, context_length=0, places=length,
                                   placement="gap" if length else "plain", **bare)
                if length:
                    placed += lines_of(model, 0, depth, context_length=length, places=0,
                                       placement="near", **bare)
            for kind in recovery.KINDS:
                for mode, rate in [(NONE, 0.0), (COMPACT, 0.5)][:1 + bool(length)]:
                    pruned += lines_of(
                        model, 0.5 * bool(length) * (1 - gain * bool(rate)), depth, image="own",
                        context_kind=kind, context_length=length, mode=mode, rate=rate,
                        strategy="accumulated" if rate else NONE)
    return tuple(map(pd.DataFrame, (presence, pruned, placed)))


def judged(*arguments, **options):
    presence, pruned, placed = made(*arguments, **options)
    rows = models.answers(presence, placed)
    table = models.tests(rows, pruned)
    return models.verdict(table, rows), table


@pytest.fixture(scope="module")
def ladder():
    return made({S: 0.5, FAR: 0.0, SEED: 0.5})


@pytest.mark.parametrize("lost, gain, expected", [
    ({S: 0.75, M: 0.0}, 1.0, "reproduced"), ({S: 0.75, M: 0.0}, 0.0, "partly"),
    ({S: 0.25, M: 0.25}, 0.0, "not reproduced"), ({S: 0.0, M: 0.75}, 0.0, "contradicted"),
    ({S: 0.75, FAR: 0.0}, 1.0, "inconclusive")])  # of one depth: by construction
def test_the_verdict_is_about_depth(lost, gain, expected):
    verdict, table = judged(lost, gain, {M: 12, FAR: 6})
    assert (verdict.finding, verdict.verdict, verdict.n) == ("F10", expected, IMAGES)
    other = list(lost)[1]
    wanted = (lost[S] - lost[other]) / 2
    assert verdict.estimates == {other: verdict.estimates[other]}
    assert verdict.estimates[other].value == pytest.approx(wanted)
    less = table[table["claim"] == models.LESS]
    assert less["effect"].tolist() == pytest.approx([wanted] * len(KINDS))
    assert "inconclusive by construction" in models.RULE


def test_only_models_that_differ_in_depth_alone_count():
    lost = {S: 0.5, M: 0.25, FAR: 0.0, SEED: 0.5, "embedded-m-far": 0.0}
    _, table = judged(lost, 1.0, {M: 12, "embedded-m-far": 12})
    reasons = {claim: part.groupby("model")["limit"].unique().map(list).to_dict()
               for claim, part in table.groupby("claim")}
    other = ["other training"]
    assert reasons[models.LESS] == {M: [""], SEED: ["same depth"], FAR: other,
                                    "embedded-m-far": other}
    assert reasons[models.KEPT] == {S: ["not deeper"], M: [""], SEED: ["not deeper"], FAR: other,
                                    "embedded-m-far": other}


def test_the_deeper_model_may_come_first():
    verdict, table = judged({M: 0.0, S: 0.75}, 1.0, {M: 12})
    assert verdict.verdict == "reproduced" and set(table["limit"]) == {"", "not deeper"}
    assert verdict.estimates[S].value == pytest.approx(-0.375)  # the first one minus the other


@pytest.mark.parametrize("one, other, same", [
    (S, M, True), (S, SEED, True), (S, FAR, False), (FAR, "embedded-m-far", True),
    ("org/llava-1.5-7b-hf", "org/llava-1.5-13B-hf", True), ("org/a-7b", S, False)])
def test_names_say_whether_training_is_the_same(one, other, same):
    assert (models.training(one) == models.training(other)) == same


def test_what_stands_between_is_told_apart(ladder):
    rows = models.answers(ladder[0], ladder[2])
    drops = models.drops(rows).set_index(["model", "between", "image"])["value"]
    assert set(rows["between"]) == {"gap", "near", *KINDS} and set(rows["image"]) == {"own", "text"}
    for between in ("gap", *KINDS):
        assert drops[S, between, "own"] == pytest.approx(0.25)
        assert drops.get((S, between, "text"), 0) == drops[FAR, between, "own"] == 0
    assert drops[S, "near", "own"] == 0
    assert models.depths(rows) == {S: 6, FAR: 6, SEED: 6}


def test_training_is_contrasted_with_each_run_of_it(ladder):
    rows = models.answers(ladder[0], ladder[2])
    for reference, same in ((S, SEED), (SEED, S)):
        table = models.contrasts(rows[rows["between"] != "near"], reference)
        effects = table.set_index(["model", "image"])["effect"]
        assert effects[FAR, "own"].tolist() == pytest.approx([0.25] * 4)
        assert effects[same, "own"].tolist() == [0] * 4 and effects[FAR, "text"].tolist() == [0] * 3
        assert (table["p_holm"] >= table["p"]).all() and set(table["limit"]) == {""}


def test_a_model_at_chance_from_the_start_is_at_floor():
    presence, _, placed = made({S: 0.5, FAR: 0.0})
    presence.loc[presence["model"] == FAR, "correct"] = presence["answer"] == "yes"
    table = models.contrasts(models.answers(presence, placed), S).set_index("between")["limit"]
    assert table.loc[list(KINDS)].eq("floor").all() and table["gap"].eq("").all()


def test_only_lengths_that_all_models_have_are_compared():
    presence, pruned, placed = made({S: 0.5, FAR: 0.0}, lengths={FAR: LENGTHS[:2]})
    assert models.answers(presence, placed)["context_length"].max() == 512
    assert set(models.gains(pruned)["context_length"]) == {512}
    assert set(models.dependency(presence)["context_length"]) == {0, 512}


def test_one_model_alone_is_refused():
    presence, _, placed = made({S: 0.5})
    with pytest.raises(VDPError, match="embedded-s alone: name another model in OTHERS"):
        models.answers(presence, placed)


def test_gains_and_dependency_are_each_model_s(ladder):
    gains = models.gains(ladder[1])
    assert gains["effect"].tolist() == pytest.approx([0.125] * 12) and set(gains["limit"]) == {""}
    found = models.dependency(ladder[0]).set_index(["model", "context_length", "measure"])["value"]
    assert found[S, 0, "KL, swapped"] == 0 and found[S, 2048, "flip rate, swapped"] == 0.25
    assert found[FAR, 2048, "flip rate, swapped"] == 0
    assert found[S, 512, "attention on image"] == pytest.approx(0.25)


def test_figures_say_what_was_measured(ladder):
    rows = models.answers(ladder[0], ladder[2])
    drawn = figures.side_by_side(models.summary(rows))
    assert len(drawn.axes) == 10 and "24 images" in drawn.get_suptitle()
    (legend,) = drawn.legends
    assert [text.get_text().split(":")[0] for text in legend.get_texts()] == [S, SEED, FAR]
    assert not drawn.axes[7].axison  # the description after talk about the same image
    contrasts = pd.concat([models.contrasts(rows, reference) for reference in (S, SEED)])
    against = figures.depth_or_training(contrasts, 2048)
    assert [label.get_text() for label in against.axes[0].get_yticklabels()] == [SEED, FAR]
    points = [bars.lines[0].get_xdata().tolist() for bars in against.axes[0].containers]
    assert points == [pytest.approx([0.25, 0]), pytest.approx([0.25])]  # than S, than its other run
    gains = models.gains(ladder[1])
    gains.loc[gains["model"] == FAR, "limit"] = "no cost"
    won = figures.pruning_gain(gains, recovery.RATE)
    hollow = [len(line.get_xdata()) for axes in won.axes for line in axes.lines
              if line.get_markerfacecolor() == "white"]
    assert hollow == [1] * 4 and len(won.axes) == 2
