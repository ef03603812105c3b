"""The ladder of instruments: where gaps lie, what each step sees, and that a run can be resumed."""

import collections
import copy
import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from architectures import louder
from vdp_utils.commands import train as recipe
from vdp_utils.errors import VDPError
from vdp_utils.lvlm import load as loading, prompts
from vdp_utils.measuring.measure import condition, measure
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources import dialogues, scenes
from vdp_utils.sources.samples import one_pair, presence_samples
from vdp_utils.training import dialogue, evaluate, ladder, loop
from vdp_utils.training.dialogue import add_lora, answers, export, image_features
from vdp_utils.training.ladder import GAPS, INSTRUMENTS, REACH, STRATA, Further, distance, skip
from vdp_utils.training.loop import Run, trainable
from vdp_utils.training.packing import MAX_CONTEXT, pack
from vdp_utils.training.tower import GRID

KINDS = ("image", "text", "long", "several")
IMAGE = 3  # an image token's id in made-up prefixes


@pytest.fixture(scope="module")
def base(tiny):
    return louder(tiny)


@pytest.fixture(scope="module")
def made(base):
    """(instrument, kind) -> its first two batches."""
    return {(name, kind): [Further(base, "train", one, kind=kind).make(n) for n in (0, 1)]
            for name, one in INSTRUMENTS.items() for kind in KINDS}


def stratum(value: int) -> int:
    return int(np.searchsorted(STRATA, value))


def starts(packed):
    """(row, question) -> how many positions lie free before the question."""
    found = {}
    for row in range(len(packed.ids)):
        end = packed.positions[row][packed.blocks[row] == 0].max()
        for block in range(1, int(packed.blocks[row].max()) + 1):
            own = packed.positions[row][packed.blocks[row] == block]
            assert (own.diff() == 1).all()  # a question itself has no gap
            found[row, block] = int(own.min() - end - 1)
    return found


# ---- gaps


def test_a_question_begins_after_its_gap():
    rows = [(np.array([1, 2, 3]), [(np.array([4, 5]), [6], "presence"),
                                   (np.array([7]), [8, 9], "naming")])]
    packed = pack(rows, 0, [(np.array([0, 1, 9]), [0, 500])], pixels=None, labels=None)
    assert packed.positions.tolist() == [[0, 1, 9, 10, 11, 12, 510, 511, 512]]
    plain = pack(rows, 0, pixels=None, labels=None)
    assert plain.positions.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 5]]
    assert torch.equal(packed.mask(), plain.mask())  # explicit: gaps change nothing that is seen


def test_long_distances_are_drawn_as_often_as_short_ones():
    rng = np.random.default_rng(0)
    drawn = [distance(rng) for _ in range(5_000)]
    share = np.bincount([stratum(d) for d in drawn]) / len(drawn)
    assert len(share) == 5 and np.abs(share - 0.2).max() < 0.02
    assert max(drawn) > 0.99 * REACH and REACH >= GAPS[-1] + 100


@pytest.mark.parametrize("start, end, length", [(0, 9, 9), (0, 9, 40), (5, 20, 20), (30, 50, 300)])
def test_gaps_lie_before_and_after_what_is_asked_about_and_nowhere_else(start, end, length):
    rng = np.random.default_rng(1)
    ids = np.full(length, 7)
    ids[start:end] = IMAGE
    ids[end + 10:end + 14] = IMAGE  # another picture, where there is room
    ids = ids[:length]
    met, jumps, alike = [], collections.Counter(), 0
    for _ in range(1_000):
        positions, gaps = skip(rng, ids, start, end, 4, IMAGE)
        steps = np.diff(positions, prepend=-1)
        assert positions[0] == 0 and (steps >= 1).all() and len(gaps) == 4 and min(gaps) >= 0
        at = np.flatnonzero(steps > 1)
        assert all(1 <= n <= start or end <= n for n in at)
        assert not any(ids[n] == ids[n - 1] == IMAGE for n in at)
        jumps.update("before" if n <= start else "after" for n in at)
        distances = positions[-1] + 1 + np.array(gaps) - (positions[end - 1] + 1)
        assert (distances >= length - end).all()
        assert positions[-1] + 1 + max(gaps) <= REACH + MAX_CONTEXT
        met += distances.tolist()
        alike += len(set(gaps)) == 1
    share = np.bincount([stratum(d) for d in met], minlength=5) / len(met)
    assert np.abs(share[2:] - 0.2).max() < 0.04  # shorter ones may be shorter than the text is
    assert (jumps["before"] > 100) == (start > 0) and (jumps["after"] > 100) == (length > end)
    assert 300 < alike < 700


def test_only_the_instruments_that_should_see_gaps_do(made):
    for (name, kind), several in made.items():
        reach = INSTRUMENTS[name].text if kind in ("text", "long") else INSTRUMENTS[name].images
        for packed in several:
            gaps = starts(packed)
            jumps = [int(packed.positions[row][packed.blocks[row] == 0].diff().max()) - 1
                     for row in range(len(packed.ids))]
            furthest = max(*gaps.values(), *jumps)
            assert (furthest > 0) == (reach > MAX_CONTEXT) or kind == "long", (name, kind)
            assert packed.positions.max() <= REACH + MAX_CONTEXT + 200
    assert {stratum(gap) for packed in made["far", "image"] for gap in starts(packed).values()} == {
        0, 1, 2, 3, 4}


def test_only_words_of_those_who_should_know_them_are_really_long(made):
    length = {name: [int((packed.blocks == 0).sum(1).max()) for packed in made[name, "long"]]
              for name in INSTRUMENTS}
    assert max(length["short"]) < MAX_CONTEXT + 400
    assert length["s"] == length["far"] and min(length["s"]) > MAX_CONTEXT
    lengths = [int((packed.blocks == 0).sum(1).max())
               for kind in ("image", "text", "several") for packed in made["s", kind]]
    assert max(lengths) < MAX_CONTEXT + 900  # the tiny tokenizer's pieces are short


def test_a_description_stands_anywhere_in_its_context(base):
    told, shares = "The image shows the following.", []
    for number in range(12):
        packed = Further(base, "train", INSTRUMENTS["s"], kind="long").make(number)
        for ids, blocks in zip(packed.ids, packed.blocks):
            text = base.tokenizer.decode(ids[blocks == 0])
            shares.append(text.index(told) / len(text))
    assert sum(share < 0.1 for share in shares) > 6 and max(shares) > 0.7
    assert any(0.25 < share < 0.75 for share in shares)


# ---- what a question sees


@torch.no_grad()
def logits_of(lvlm, packed):
    features = image_features(lvlm.model, packed.pixels) if packed.pixels is not None else None
    row, column = (packed.weights > 0).nonzero(as_tuple=True)
    return answers(lvlm, packed, features)[0], row, packed.blocks[row, column]


@pytest.mark.parametrize("kind", ["image", "text", "several"])
def test_after_a_gap_a_question_sees_the_prefix_and_itself_only(base, made, kind):
    packed = made["far", kind][0]
    before, row, block = logits_of(base, packed)
    at = (packed.blocks[0] == 2) & (packed.weights[0] == 0)
    changed = dataclasses.replace(packed, ids=packed.ids.clone())
    changed.ids[0, at] = base.tokenizer.convert_tokens_to_ids("a")
    moved = (logits_of(base, changed)[0] - before).abs().amax(-1)
    own = (row == 0) & (block == 2)
    assert moved[own].max() > 1e-2 and moved[~own].max() < 1e-4
    changed = dataclasses.replace(packed, ids=packed.ids.clone())
    changed.ids[0, 1] = base.tokenizer.convert_tokens_to_ids("a")  # of the template
    moved = (logits_of(base, changed)[0] - before).abs().amax(-1)
    assert moved[row == 0].min() > 1e-6 and moved[row == 1].max() < 1e-4


@torch.no_grad()
def test_a_packed_question_after_a_gap_answers_as_one_alone_does(base, made):
    """Its prefix and it, with the same position ids and a mask of ones: no other packing."""
    packed = made["far", "text"][0]
    found, row, block = logits_of(base, packed)
    gaps = starts(packed)
    for wanted in (max(gaps, key=gaps.get), min(gaps, key=gaps.get)):
        r, b = wanted
        use = (packed.blocks[r] == 0) | (packed.blocks[r] == b)
        ids = packed.ids[r, use][None]
        alone = base.model(input_ids=ids, attention_mask=torch.ones_like(ids),
                           position_ids=packed.positions[r, use][None]).logits[0]
        count = int(((row == r) & (block == b)).sum())
        torch.testing.assert_close(found[(row == r) & (block == b)], alone[-count - 1:-1],
                                   atol=1e-4, rtol=1e-4)


# ---- the same for all


def test_all_instruments_see_the_same_questions(base, made):
    one, *others = INSTRUMENTS
    for kind, number in itertools.product(KINDS, (0, 1)):
        wanted = made[one, kind][number]
        for other in others:
            found = made[other, kind][number]
            assert torch.equal(found.ids[found.blocks > 0], wanted.ids[wanted.blocks > 0])
            assert torch.equal(found.weights[found.weights > 0], wanted.weights[wanted.weights > 0])
            assert (found.pixels is None) == (wanted.pixels is None)
            if found.pixels is not None:
                assert torch.equal(found.pixels, wanted.pixels)
            if kind != "long":  # there the text's context is what differs
                assert torch.equal(found.ids, wanted.ids)
    drawn = {name: [Further(base, "train", instrument).drawn_kind(np.random.default_rng(n))
                    for n in range(2_000)] for name, instrument in INSTRUMENTS.items()}
    assert drawn["short"] == drawn["s"] == drawn["far"]
    share = {kind: drawn["s"].count(kind) / 2_000 for kind in KINDS}
    wanted = dict(image=7 / 16, several=1 / 16, text=3 / 8, long=1 / 8)
    assert share == pytest.approx(wanted, abs=0.03)


def test_a_batch_hangs_on_its_number_and_the_seed_alone(base, made):
    data = Further(base, "train", INSTRUMENTS["far"], kind="text", start=1)
    again = next(iter(data))
    for value in ("ids", "positions", "blocks", "weights"):
        assert torch.equal(getattr(again, value), getattr(made["far", "text"][1], value))
    other = Further(base, "train", INSTRUMENTS["far"], seed=1, kind="text").make(1)
    assert not torch.equal(other.ids[:, :150], again.ids[:, :150])
    assert not torch.equal(made["far", "text"][0].ids[:, :150], again.ids[:, :150])


def test_leads_say_which_image_and_that_others_are_not_shown(base):
    texts = collections.Counter()
    for number in range(6):
        for kind in ("image", "long"):
            packed = Further(base, "train", INSTRUMENTS["s"], kind=kind).make(number)
            texts.update(line for ids in packed.ids
                         for line in re.findall(r"About the [a-z ]+: |User: [^.]+\.",
                                                base.tokenizer.decode(ids)))
    plain, start = texts[dialogues.LEAD_ELSEWHERE], texts[dialogues.LEAD_AT_START]
    assert plain > 100 and start > 50
    assert any(texts["User: " + lead] for lead in ladder.EARLIER_LEADS)
    assert any(texts["User: " + lead] for lead in dialogues.NOT_SHOWN)
    named = [noun for noun in scenes.GLYPHS for lead in dialogues.NOT_SHOWN
             if re.search(rf"\b{noun}\b", lead)]
    assert not named


# ---- several pictures


@pytest.fixture(scope="module")
def dialogue_rows(base):
    """Rows of several pictures: their scenes, text, image tokens, and the questions' texts."""
    composed, rows = [], []
    real = scenes.compose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder.scenes, "compose",
                      lambda split, index: composed.append(real(split, index)) or composed[-1])
        for number in range(10):
            composed.clear()
            packed = Further(base, "train", INSTRUMENTS["s"], kind="several").make(number)
            counts = (packed.ids == base.image_token_id).sum(1) // GRID**2
            assert counts.sum() == len(packed.pixels) == len(composed)
            for scene, shown in zip(composed, packed.pixels):
                torch.testing.assert_close(shown, ladder.pixels(scenes.render(scene)))
            at = iter(composed)
            for r, count in enumerate(counts.tolist()):
                blocks = range(1, int(packed.blocks[r].max()) + 1)
                asked = [(base.tokenizer.decode(packed.ids[r, packed.blocks[r] == b]))
                         for b in blocks]
                text = base.tokenizer.decode(packed.ids[r, packed.blocks[r] == 0])
                rows.append((list(itertools.islice(at, count)),
                             text.replace("<image>" * GRID**2, "<image>"), asked))
    return rows


def test_a_row_shows_two_or_three_pictures_each_before_its_turns(dialogue_rows):
    assert {len(pictures) for pictures, _, _ in dialogue_rows} == {2, 3}
    chats = 0
    for pictures, text, _ in dialogue_rows:
        assert text.count("<image>") == len(pictures)
        assert text.startswith("<|im_start|>user\n<image>\n")
        for part in text.split("<image>")[1:]:
            chat = "<|im_start|>assistant\n" in part
            assert chat or re.match("\nUser: .+\nAssistant: .+\n", part)
        if chat:
            assert text.endswith("<|im_end|>\n<|im_start|>user\n")
            assert text.count("<|im_start|>user\n<image>\n") == len(pictures)
            assert "User:" not in text
        else:
            assert text.count("<|im_start|>") == 1
        chats += chat
    assert 0.25 < chats / len(dialogue_rows) < 0.75


def test_the_answer_is_that_of_the_picture_named(dialogue_rows):
    leads, checked = collections.Counter(), collections.Counter()
    borrowed = 0
    for pictures, _, asked in dialogue_rows:
        for text in asked:
            lead, question, answer = re.fullmatch(
                r"(About the [a-z ]+: )(.+)<\|im_end\|>\n<\|im_start\|>assistant\n(.+)<\|im_end\|>",
                text).groups()
            leads[lead] += 1
            word = lead.split()[2]
            n = {"first": 0, "image": 0, "second": 1, "third": 2, "last": -1}[word]
            own = pictures[n]
            assert (lead == dialogues.LEAD_AT_START) == (word == "image")
            nouns = [noun for noun in scenes.NOUNS if re.search(rf"\ban? {noun}\b", question)]
            if answer in ("Yes", "No"):
                (noun,) = nouns
                assert (answer == "Yes") == (noun in own.counts), text
                borrowed += answer == "No" and any(noun in p.counts for p in pictures)
                checked[answer] += 1
            elif answer.startswith(("a ", "an ")):
                assert answer == ", ".join(map(dialogues.a, own.counts))
                checked["naming"] += 1
    assert len(leads) == 5 and min(leads.values()) > 10
    assert abs(checked["Yes"] - checked["No"]) < 0.15 * sum(checked.values())
    assert borrowed > 0.9 * checked["No"] and checked["naming"] > 50


class Overheard(Further):
    """Notes the turns of its rows and what is asked about which picture."""

    def ask(self, scene, kind, pictures, rng):
        question = super().ask(scene, kind, pictures, rng)
        self.asked.append((pictures.index(scene), question))
        return question

    def in_one_turn(self, turns):
        self.texts = [dialogues.as_text({"conversations": turn}) for turn in turns]
        return "<image>"

    in_chat_turns = in_one_turn


def test_no_turns_tell_what_is_asked_of_another_picture(base):
    """A presence question's noun is named in its own picture's turns or nowhere."""
    data, told = Overheard(base, "train", INSTRUMENTS["s"]), 0
    for number in range(60):
        data.asked = []
        data.several([scenes.compose("train", 3 * number + n) for n in range(3)],
                     np.random.default_rng(number))
        for n, question in data.asked:
            if question and question.kind == "presence":
                (noun,) = question.nouns
                said = [bool(re.search(rf"\b({noun}|{dialogues.plural(noun)})\b", text))
                        for text in data.texts]
                told += said[n]
                assert not any(said[:n] + said[n + 1:]), (question, data.texts)
    assert told > 5


# ---- evaluation


def test_yes_and_no_are_told_apart_by_one_token(base_tokenizer):
    ids = [base_tokenizer(option, add_special_tokens=False).input_ids for option in ("Yes", "No")]
    assert [len(option) for option in ids] == [1, 1] and ids[0] != ids[1]


def test_presence_without_a_gap_is_what_is_measured(base, tmp_path, monkeypatch):
    real = prompts.option_ids  # the tiny tokenizer's options are longer than the real one's
    monkeypatch.setattr(prompts, "option_ids", lambda lvlm, option: real(lvlm, option)[:1])
    samples = presence_samples("evaluation", 4, pairs=2)
    for image in (True, False):
        rows = ladder.presence_by_gap(base, samples, image)
        assert len(rows) == len(GAPS) * sum(len(s.questions) for s in samples)
        one = condition(base, "other_images", 0, "own" if image else "text")
        wanted = measure(base, samples, [one], ResultStore(tmp_path / str(image)), "x")
        found = rows[rows["gap"] == 0]
        assert found["correct"].tolist() == wanted["correct"].tolist()
        assert found["answer"].tolist() == wanted["answer"].tolist()
        assert found["image_id"].tolist() == wanted["image_id"].tolist()


@torch.no_grad()
def test_a_gap_of_n_moves_the_questions_positions_by_n(base, monkeypatch):
    (sample,) = one_pair(presence_samples("evaluation", 1))
    given = []
    real = ladder.answers
    monkeypatch.setattr(ladder, "answers", lambda lvlm, packed, features: given.append(
        (packed, real(lvlm, packed, features))) or given[-1][1])
    rows = ladder.presence_by_gap(base, [sample], True)
    ((packed, (logits, _)),) = given
    assert rows["gap"].tolist() == list(GAPS) * 2
    prefix = prompts.shared_prefix(base, sample, "other_images", 0)
    assert sorted(set(starts(packed).values())) == list(GAPS)
    for number, gap in enumerate(GAPS):
        whole = prompts.join(prefix, prompts.asking(base, sample.questions[0]))
        inputs = prompts.tensors(whole, "cpu")
        positions = torch.arange(len(whole))[None].clone()
        positions[:, len(prefix):] += gap
        alone = base.model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]),
                           position_ids=positions).logits[0, -1]
        per_question = len(prompts.option_ids(base, sample.questions[0].answer)) + 1
        torch.testing.assert_close(logits[number * per_question], alone, atol=1e-4, rtol=1e-4)


def test_several_pictures_are_judged_by_the_first_and_the_last(base):
    rows = ladder.presence_of_several(base, "evaluation", 20)
    assert set(rows["which"]) == {"first", "last"}
    counts = rows.groupby(["image_id", "which"]).size()
    assert len(counts) == 2 * 8 and (counts == ladder.SEVERAL_QUESTIONS["presence"]).all()
    assert not rows.duplicated(["image_id", "question_id"]).any()


def test_the_card_has_a_line_a_gap_a_length_and_a_picture_asked_about(base, tmp_path):
    table = evaluate.held_out(base, 13, ResultStore(tmp_path))
    presence = table[table["skill"] == "presence"]["setting"].tolist()
    assert len(presence) == len(set(presence))
    wanted = [f"{what}, gap {gap}" for what in ("image", "text description") for gap in GAPS]
    wanted += [f"text description, {length} tokens" for length in GAPS[1:]]
    wanted += [f"the {which} of two or three images" for which in ("first", "last")]
    assert set(wanted) <= set(presence)
    assert (table["n_rows"] >= 13).all() and table["value"].between(0, 1).all()


# ---- training


@pytest.fixture
def clock(monkeypatch):
    """A clock that passes 100 seconds whenever it is read, so that every step is saved."""
    ticks = itertools.count(step=100.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


@pytest.fixture
def quick(monkeypatch):
    """Small batches, few validation images."""
    monkeypatch.setattr(ladder, "BATCH", 1)
    monkeypatch.setattr(ladder, "SEVERAL_BATCH", 1)
    monkeypatch.setattr(ladder, "LONG_BATCH", 1)
    real = ladder.presence_samples
    monkeypatch.setattr(ladder, "presence_samples", lambda split, n: real(split, min(n, 2)))


def learner(base):
    model = copy.deepcopy(base.model)
    torch.manual_seed(0)
    add_lora(model)
    return dataclasses.replace(base, model=model)


def test_a_budget_of_steps_is_kept_whatever_time_they_take(tmp_path, clock):
    def run(stop=None):
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)
        one, rates = Run(tmp_path, "stage", 0, {"all": module}, {"all": 1e-2},
                         tmp_path / "log.csv", limit=20), []
        for batch in one.steps(itertools.count(one.step), lambda: {}, warmup=4):
            rates.append(one.optimizer.param_groups[0]["lr"])
            if batch == stop:
                break
            one.learn(module(torch.ones(1, 3)).sum(), 1)
        return one, rates

    first, before = run(stop=12)
    again, after = run()
    assert (first.step, again.step) == (12, 20) and again.finished
    assert before[-1] == after[0] and before[3] == max(before)
    rates = before[:-1] + after
    assert len(rates) == 20 and rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[10] == pytest.approx(1e-2 * (0.03 + 0.97 * 0.5))
    assert 0 < rates[-1] < 0.05e-2
    assert run()[1] == []


def test_a_stopped_instrument_goes_on_with_the_next_batch(base, tmp_path, clock, quick,
                                                          monkeypatch):
    def train(folder, stop=None):
        lvlm, taken, real = learner(base), [], answer_loss

        def note(lvlm, packed, features):
            if len(taken) == stop:
                raise KeyboardInterrupt
            taken.append(packed.ids[0, :200].tolist())
            return real(lvlm, packed, features)

        monkeypatch.setattr(ladder, "answer_loss", note)
        try:
            ladder.train_further(folder, INSTRUMENTS["s"], 5, folder / "log.csv", lvlm, every=2,
                                 images=2)
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.setattr(ladder, "answer_loss", real)
        return lvlm, taken

    answer_loss = ladder.answer_loss
    whole, all_taken = train(tmp_path / "whole")
    _, first = train(tmp_path / "parts", stop=2)
    parts, rest = train(tmp_path / "parts")
    assert first + rest == all_taken and len(all_taken) == 5
    for ours, wanted in zip(trainable(parts.model).values(), trainable(whole.model).values()):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)
    log = pd.read_csv(tmp_path / "whole" / "log.csv")
    assert set(log["stage"]) == {"distances"} and np.isfinite(log["value"]).all()
    assert sorted(log[log["metric"] == "loss"]["step"]) == [1, 2, 3, 4, 5]
    for metric in ("text_gap_4096", "image_gap_0", "several_presence"):
        assert list(log[log["metric"] == metric]["step"]) == [2, 4, 5]


def test_bfloat16_is_used_only_where_the_machine_computes_in_it(monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(loop, "BFLOAT16", there)
        with loop.autocast():
            product = torch.ones(2, 2, device=loop.DEVICE) @ torch.ones(2, 2, device=loop.DEVICE)
        assert (product.dtype == torch.bfloat16) == there


@pytest.fixture
def stored(base, monkeypatch, tmp_path):
    """Weights of size S in a folder of this test, on a small base model."""
    models = tmp_path / "models"
    for module in (recipe, loading):
        monkeypatch.setattr(module, "MODELS", models)
    for module in (recipe, loading):
        monkeypatch.setattr(module, "build_embedded",
                            lambda layers: (copy.deepcopy(base.model), base.processor))
    monkeypatch.setenv("VDP_CACHE", str(tmp_path / "cache"))
    export(learner(base), 2, models / "s")
    (models / "s" / "training_log.csv").write_text("stage,minutes,step,samples,metric,value\n")
    return models


def test_an_instrument_stays_beside_its_state_until_it_is_exported(stored, tmp_path, quick):
    before = {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    state = tmp_path / "state"

    def run(**more):
        recipe.train(**dict(instrument="far", start_from="s", steps=2, state=state) | more)

    run()
    assert {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()} == before
    about = json.loads((state / "s-far" / "manifest.json").read_text())
    assert (about["instrument"], about["steps"], about["seed"]) == ("far", 2, 0)
    assert about["max_context"] == about["max_text"] == GAPS[-1]
    start = json.loads((stored / "s" / "manifest.json").read_text())
    assert about["start_sha256"] == start["weights_sha256"] != about["weights_sha256"]
    run(into_models=True)
    for name in ("weights.safetensors", "manifest.json", "training_log.csv"):
        assert (stored / "s-far" / name).read_bytes() == (state / "s-far" / name).read_bytes()
    assert set(pd.read_csv(stored / "s-far" / "training_log.csv")["stage"]) == {"distances"}
    run(seed=2, start_from=str(stored / "s"))
    assert (state / "s-far-seed2" / "weights.safetensors").exists()
    with pytest.raises(VDPError, match="--start-from"):
        recipe.train(instrument="s")


def test_names_of_instruments():
    names = [recipe.instrument_name("s", "s"), recipe.instrument_name("s", "short"),
             recipe.instrument_name("m", "far", 3), recipe.instrument_name("s", "s", 1)]
    assert names == ["s", "s-short", "m-far-seed3", "s-seed1"]
    assert dialogue.MAX_CONTEXT == MAX_CONTEXT
