"""What the embedded LVLM can see: one row per skill, over scenes that training never drew."""

import re

import numpy as np
import pandas as pd
from tqdm import tqdm

from vdp_utils import stats
from vdp_utils.lvlm import prompts
from vdp_utils.lvlm.load import LVLM
from vdp_utils.measuring.measure import condition, measure
from vdp_utils.measuring.scoring import generate
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources.samples import Sample, presence_samples, question_samples
from vdp_utils.training.ladder import GAPS, presence_by_gap, presence_of_several

MAX_NAMES = 40  # tokens of a naming answer


def naming_f1(lvlm: LVLM, samples: list[Sample]) -> stats.Estimate:
    """F1 of the nouns in the greedy answer against those in the scene, mean over images."""
    scores = []
    for sample in tqdm(samples, desc="naming"):
        prefix = prompts.shared_prefix(lvlm, sample, "same_image", 0)
        text = generate(lvlm, prefix, None, prompts.asking(lvlm, sample.questions[0]), MAX_NAMES)
        found = {re.sub("^an? ", "", name.strip()) for name in text.split(",")} - {""}
        true = set(sample.picture.counts)
        scores.append(2 * len(found & true) / (len(found) + len(true)))
    return stats.Estimate(*stats.bca(np.mean, scores), len(scores), len(scores))


def enough(samples: list[Sample], questions: int) -> list[Sample]:
    """The first samples that together have `questions` questions."""
    totals = np.cumsum([len(sample.questions) for sample in samples])
    return samples[:int(np.searchsorted(totals, questions)) + 1]


def held_out(lvlm: LVLM, questions: int, store: ResultStore) -> pd.DataFrame:
    """One row per skill: skill, setting, measure, value, low, high, n_images, n_rows.

    A gap is a distance without text: the question's position ids alone begin that much later.
    """
    lines = []

    def add(skill, setting, measure, estimate):
        lines.append(dict(skill=skill, setting=setting, measure=measure, **vars(estimate)))

    def presence(setting, split="evaluation", kind="same_image", length=0, image="own", **options):
        samples = enough(presence_samples(split, questions, **options), questions)
        rows = measure(lvlm, samples, [condition(lvlm, kind, length, image)], store,
                       "presence_" + setting.replace(" ", "_").replace(",", ""))
        add("presence", setting, "balanced accuracy", stats.balanced_accuracy(rows))

    presence("image")
    presence("image blanked", image="blank")
    presence("image swapped", image="swapped")
    for length in GAPS[1:]:
        presence(f"text description, {length} tokens", kind="other_images", length=length,
                 image="text")
    presence("image, 512 tokens about this image", length=512)
    presence("image, 512 tokens about others", kind="other_images", length=512)
    presence("held-out templates", held_out=True)
    presence("held-out backgrounds", split="evaluation_backgrounds")
    presence("held-out nouns", split="evaluation_nouns")
    for kind, image in (("position", "own"), ("position", "blank"), ("relation", "own"),
                        ("counting", "own")):
        samples = enough(question_samples("evaluation", questions, kind), questions)
        rows = measure(lvlm, samples, [condition(lvlm, "same_image", 0, image)], store, kind)
        add(kind, "image" if image == "own" else "image blanked", "accuracy",
            stats.mean_estimate(rows, "correct"))
    samples = enough(presence_samples("evaluation", questions), questions)
    for setting in ("image", "text description"):
        for gap, rows in presence_by_gap(lvlm, samples, setting == "image").groupby("gap"):
            add("presence", f"{setting}, gap {gap}", "balanced accuracy",
                stats.balanced_accuracy(rows))
    for which, rows in presence_of_several(lvlm, "evaluation", questions).groupby("which"):
        add("presence", f"the {which} of two or three images", "balanced accuracy",
            stats.balanced_accuracy(rows))
    names = question_samples("evaluation", questions, "naming")
    add("naming", "image", "F1", naming_f1(lvlm, names))
    return pd.DataFrame(lines).round(4)


def markdown(table: pd.DataFrame) -> str:
    """The table as the model card shows it."""
    lines = ["| skill | setting | measure | value [95 %] | images | questions |", "|---" * 6 + "|"]
    for line in table.itertuples():
        estimate = stats.Estimate(line.value, line.low, line.high, line.n_images, line.n_rows)
        lines.append(f"| {line.skill} | {line.setting} | {line.measure} | {estimate} "
                     f"| {line.n_images} | {line.n_rows} |")
    return "\n".join(lines)
