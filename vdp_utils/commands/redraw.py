"""`make figures`: every figure again from stored rows and tables, without loading a model."""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from vdp_utils import figures, paths
from vdp_utils.commands import bench
from vdp_utils.errors import VDPError
from vdp_utils.findings import (NEUTRAL_AND_LURING, PRESENCE, attention, concentration, cost,
                                decline, priors, proportion, ranking, recovery, text_control)
from vdp_utils.lvlm.load import MODELS, manifest
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources.samples import one_pair, presence_samples


class Stored:
    """What is stored of one model under a results folder."""

    def __init__(self, results: Path, model: str):
        self.store, self.model = ResultStore(results), model
        self.source = MODELS / model.removeprefix("embedded-")
        about = manifest(self.source)
        self.trained = about["max_context"]
        self.revision = about["weights_sha256"][:16]

    def rows(self, finding: str, images=()) -> pd.DataFrame:
        """All rows of a finding under the model's present weights.

        VDPError for none, and for none with one of `images`.
        """
        found = [one for one in self.store.conditions(finding)
                 if (one["model"], one["revision"]) == (self.model, self.revision)]
        lacking = sorted(set(images) - {one["image"] for one in found})
        if lacking or not found:
            which = f" with the images {', '.join(lacking)}" if found else ""
            raise VDPError(f"no rows of {finding}{which} for {self.model} in {self.store.root}: "
                           "measure them with make study PROFILE=full")
        return pd.concat([self.store.read(finding, one) for one in found], ignore_index=True)


def of_each_size(stored: Stored):
    """(name, figure) of each figure that is drawn of both sizes."""
    model, trained = stored.model, stored.trained
    rows = stored.rows(PRESENCE, ("own", "words", "none"))
    own = rows[rows["image"] == "own"]
    samples = presence_samples("evaluation", own["image_id"].nunique())
    yield "fig01_long_context_decline", figures.decline(decline.summary(own), trained, model)
    told = rows[rows["context_kind"].isin(NEUTRAL_AND_LURING)]
    yield "fig02_text_only_control", figures.text_control(
        text_control.summary(told[told["image"].isin(text_control.IMAGES)]),
        text_control.places(told[told["context_kind"] == "other"]), trained, model)
    found = priors.pairs(told)
    yield "fig03_prior_consistency", figures.priors(
        priors.summary(found), priors.by_prior(found), trained, model)
    yes = proportion.yes_questions(own, samples)
    yield "fig04_target_proportion", figures.proportion(
        proportion.summary(yes), proportion.curves(yes), proportion.SHOWN, model)
    neutral = own[own["context_kind"] == "other"]
    layers = attention.by_layer(neutral)
    yield "fig05_attention_distribution", figures.attention(
        attention.summary(layers), attention.heat(layers, "mass_image"),
        attention.heat(layers, "prefers_image"), attention.heads(neutral), trained, model)


def diagnosis(stored: Stored, larger: Stored):
    """(name, figure) of F1 to F5, one after the other; names of the larger size end in `_m`."""
    model = stored.model
    yield from of_each_size(stored)
    for name, figure in of_each_size(larger):
        yield f"{name}_m", figure
    rows = stored.rows(PRESENCE)
    yield "fig05_attention_and_cause", figures.attention_and_cause(
        attention.against_cause(rows[rows["context_kind"].isin(NEUTRAL_AND_LURING)]), model)
    yield "fig05_attention_maps", figures.attention_maps(
        attention.first_questions(stored.rows(attention.MAPS)),
        presence_samples("evaluation", attention.SHOWN), attention.MAP_LENGTHS, model)


def cure(stored: Stored, larger: Stored):
    """(name, figure) of the embedded LVLM itself and of F6 to F9."""
    model = stored.model
    yield "fig00_scenes", figures.gallery(presence_samples("evaluation", 8))
    yield "fig00_training", figures.training_curves(pd.read_csv(stored.source / "training_log.csv"))
    answers = stored.rows(recovery.PRUNED)
    yield "fig06_context_pruning", figures.recovery(recovery.summary(answers), model)
    yield "fig06_context_pruning_m", figures.recovery(
        recovery.summary(larger.rows(recovery.PRUNED)), larger.model)
    yield "fig06_image_and_text_targets", figures.targets(recovery.targets(answers), model)
    yield "fig06_examples", figures.pruned_examples(
        stored.rows(recovery.EXAMPLES), one_pair(presence_samples("evaluation", recovery.SHOWN)),
        model)
    by_strategy = stored.rows(ranking.STRATEGIES)
    found = ranking.answers(by_strategy)
    ranked = ranking.tests(found)
    yield "fig07_strategies", figures.strategies(
        ranked, ranking.cells(found),
        ranking.critical_difference(len(ranked) + 1, ranked["n_images"].max()), model)
    yield "fig07_ablations", figures.ablations(ranking.ablations(by_strategy), model)
    pruned = concentration.by_layer(stored.rows(concentration.MASSES), concentration.RATES)
    yield "fig08_theory_checks", figures.concentration(concentration.tests(pruned), pruned, model)
    yield from costs(stored, found, answers)


def costs(stored: Stored, by_strategy: pd.DataFrame, answers: pd.DataFrame):
    """(name, figure) of F9's figures, but for those of the benchmark alone."""
    times = cost.summary(stored.rows(cost.TIMES))
    ways = times[times["context_length"] == cost.LENGTH]
    yield "fig09_inference_cost", figures.cost(ways, stored.model)
    chosen = times[times["context_length"] == cost.STRATEGY_LENGTH]
    late = times[times["context_length"].isin(cost.LONG)]
    yield "fig09_pareto", figures.pareto(cost.pareto(chosen, by_strategy),
                                         cost.by_length(late, answers), stored.model)
    tables = bench.tables_of(paths.bench("full"))
    yield "fig09_break_even", figures.break_even(
        {model: bench.break_even(tables[name]) for model, name in bench.MODELS.items()})
    yield "fig09_peers", figures.peers(tables["peers_times"])


def draw(options, part) -> list[str]:
    """Save the figures of `diagnosis` or `cure`, and return their names."""
    names = []
    for name, figure in part(*(Stored(options.results, model)
                               for model in (options.model, options.larger))):
        plt.close(figures.save(figure, options.output, name))
        names.append(name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vdp_utils.commands.redraw",
                                     description=__doc__)
    parser.add_argument("--results", type=Path, default=paths.results("full"))
    parser.add_argument("--output", type=Path, default=paths.figures("full"))
    parser.add_argument("--model", default="embedded-s")
    parser.add_argument("--larger", default="embedded-m")
    options = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:  # one after the other they take more than a minute
        for names in pool.map(partial(draw, options), (diagnosis, cure)):
            print(*(options.output / name for name in names), sep="\n")
    bench.draw(bench.tables_of(paths.bench("full")), options.output)


if __name__ == "__main__":
    main()
