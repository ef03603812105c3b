"""`vdp figures`: every figure again from stored rows and tables, without loading a model."""

import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from vdp_utils import figures as plots
from vdp_utils import paths
from vdp_utils.commands import bench
from vdp_utils.errors import VDPError
from vdp_utils.findings import (OTHER_AND_MISLEADING, PRESENCE, attention, concentration, cost,
                                decline, distance, law, mmdu, priors, proportion, ranking,
                                recovery, text_control)
from vdp_utils.findings import models as sizes
from vdp_utils.lvlm.load import MODELS, manifest
from vdp_utils.measuring.store import ResultStore
from vdp_utils.sources.samples import one_pair, presence_samples


class NoRows(VDPError):
    """A figure's rows are not stored."""


class Stored:
    """What is stored of one model under a results folder."""

    def __init__(self, results: Path, model: str):
        self.store, self.model = ResultStore(results), model
        self.rows = cache(self._rows)  # several figures read the same
        self.revision = self.trained = None
        if model.startswith("embedded-"):
            about = manifest(MODELS / model.removeprefix("embedded-"))
            self.revision, self.trained = about["weights_sha256"][:16], about["max_context"]

    @cached_property
    def conditions(self) -> dict[str, list[dict]]:
        """The model's conditions by finding: of its present weights, of one dtype only.

        That is float32 where there are such rows. VDPError where rows would still be mixed.
        """
        found = {path.name: [one for one in self.store.conditions(path.name)
                             if one["model"] == self.model
                             and self.revision in (None, one["revision"])]
                 for path in Path(self.store.root).glob("*") if path.is_dir()}
        dtypes = {one["dtype"] for conditions in found.values() for one in conditions}
        if "float32" in dtypes:
            found = {finding: [one for one in conditions if one["dtype"] == "float32"]
                     for finding, conditions in found.items()}
        versions = {(one["revision"], one["dtype"], one["attention"])
                    for conditions in found.values() for one in conditions}
        if len(versions) > 1:
            raise VDPError(f"{self.store.root} holds rows of {self.model} in several versions "
                           f"({'; '.join(' '.join(one) for one in sorted(versions))}): keep each "
                           "in a folder of its own and draw it with --results")
        return found

    def _rows(self, finding: str, images: tuple = ()) -> pd.DataFrame:
        """All rows of a finding. NoRows for none, and for none with one of `images`."""
        found = self.conditions.get(finding, [])
        lacking = sorted(set(images) - {one["image"] for one in found})
        if lacking or not found:
            which = f" with the images {', '.join(lacking)}" if found else ""
            given = "" if self.model == paths.MODEL else f" MODEL={self.model}"
            raise NoRows(f"no rows of {finding}{which} for {self.model} in {self.store.root}: "
                         f"measure them with make study PROFILE=full{given}")
        return pd.concat([self.store.read(finding, one) for one in found], ignore_index=True)

    def compared(self, *images: str) -> pd.DataFrame:
        """Presence rows under OTHER_AND_MISLEADING contexts, with `images` among them."""
        rows = self.rows(PRESENCE, images)
        return rows[rows["context_kind"].isin(OTHER_AND_MISLEADING)]

    def own(self) -> pd.DataFrame:
        """Presence rows about the sample's own image."""
        rows = self.rows(PRESENCE, ("own",))
        return rows[rows["image"] == "own"]


# Each of these yields (name, figure), and raises NoRows where the figures' rows are missing.


def f1(stored: Stored):
    yield "fig01_long_context_decline", plots.decline(
        decline.summary(stored.own()), stored.trained, stored.model)


def f2(stored: Stored):
    compared = stored.compared(*text_control.IMAGES)
    both = compared[compared["image"].isin(text_control.IMAGES)]
    yield "fig02_text_only_control", plots.text_control(
        text_control.summary(both),
        text_control.places(compared[compared["context_kind"] == "other_images"]),
        text_control.tests(both), stored.trained, stored.model)


def f3(stored: Stored):
    found = priors.pairs(stored.compared("own", "none"))
    yield "fig03_prior_consistency", plots.priors(
        priors.summary(found), priors.by_prior(found), stored.trained, stored.model)


def f4(stored: Stored):
    own = stored.own()
    yes = proportion.yes_questions(own, presence_samples("evaluation", own["image_id"].nunique()))
    fits = proportion.fits(yes)
    yield "fig04_target_proportion", plots.proportion(
        proportion.summary(yes, fits), proportion.curves(yes, fits), proportion.SHOWN,
        stored.model)


def f5(stored: Stored):
    own = stored.own()
    neutral = own[own["context_kind"] == "other_images"]
    layers = attention.by_layer(neutral)
    yield "fig05_attention_distribution", plots.attention(
        attention.summary(layers), attention.heat(layers, "mass_image"),
        attention.heat(layers, "prefers_image"), attention.heads(neutral), stored.trained,
        stored.model)


def f5_cause(stored: Stored):
    yield "fig05_attention_and_cause", plots.attention_and_cause(
        attention.against_cause(stored.compared("own", "none", "swapped")), stored.model)


def f5_maps(stored: Stored):
    yield "fig05_attention_maps", plots.attention_maps(
        attention.first_questions(stored.rows(attention.MAPS)),
        presence_samples("evaluation", attention.SHOWN), attention.MAP_LENGTHS, stored.model)


def f6(stored: Stored):
    answers = stored.rows(recovery.PRUNED, ("own", "swapped", recovery.DESCRIBED))
    summary = recovery.summary(answers)
    yield "fig06_context_pruning", plots.recovery(summary, stored.model)
    yield "fig06_return_to_the_image", plots.returning(summary, stored.model)
    yield "fig06_image_and_text_targets", plots.targets(recovery.targets(answers), stored.model)


def f6_examples(stored: Stored):
    yield "fig06_examples", plots.pruned_examples(
        stored.rows(recovery.EXAMPLES), one_pair(presence_samples("evaluation", recovery.SHOWN)),
        stored.model)


def f7(stored: Stored):
    found = ranking.answers(stored.rows(ranking.STRATEGIES))
    tables = [ranking.scores(found, layer) for layer in ranking.layers(found)]
    yield "fig07_strategies", plots.strategies(tables[0], ranking.cells(found), stored.model)
    yield "fig07_two_targets", plots.two_targets(tables, stored.model)


def f8(stored: Stored):
    pruned = concentration.by_layer(stored.rows(concentration.MASSES), concentration.RATES)
    yield "fig08_theory_checks", plots.concentration(concentration.tests(pruned), pruned,
                                                     stored.model)


def f9(stored: Stored):
    times = cost.summary(stored.rows(cost.TIMES))
    modes = times[times["context_length"] == cost.LENGTH]
    yield "fig09_inference_cost", plots.cost(modes, stored.model)
    chosen = times[times["context_length"] == cost.STRATEGY_LENGTH]
    late = cost.summary(stored.rows(cost.LATE))
    yield "fig09_pareto", plots.pareto(
        cost.pareto(chosen, ranking.answers(stored.rows(ranking.STRATEGIES))),
        cost.by_length(late, stored.rows(recovery.PRUNED)), stored.model)


def f10(stored: Stored):
    every = [stored, *(Stored(stored.store.root, name) for name in sizes.OTHERS)]
    presence, pruned, placed = (
        pd.concat([one.rows(table).assign(model=one.model) for one in every], ignore_index=True)
        for table in sizes.EACH)
    rows = sizes.answers(presence, placed)
    yield "fig10_side_by_side", plots.side_by_side(sizes.summary(rows))
    runs = [stored.model, *(name for name in sizes.OTHERS if "-seed" in name)]
    yield "fig10_depth_or_training", plots.depth_or_training(
        pd.concat([sizes.contrasts(rows, run) for run in runs]), rows["context_length"].max())
    yield "fig10_pruning_gain", plots.pruning_gain(sizes.gains(pruned), recovery.RATE)


def f11(stored: Stored):
    rows = stored.rows(law.LAW)
    found = law.answers(rows)
    yield "fig11_scaling_law", plots.law(
        law.accuracies(rows), law.best_rates(rows), law.laws(found), law.use(found), law.predicted,
        stored.model)


def f12(stored: Stored):
    rows = stored.rows(mmdu.DIALOGUES)
    yield "fig12_mmdu", plots.dialogues(mmdu.summary(rows), mmdu.by_distance(rows), stored.model)


def d1(stored: Stored):
    rows = stored.rows(distance.ROWS, ("own", "swapped"))  # F10's rows lack the latter
    summary = distance.summary(rows)
    yield "fig13_text_or_distance", plots.text_or_distance(summary, stored.trained, stored.model)
    yield "fig13_parts", plots.parts(distance.parts(rows), stored.model)
    yield "fig13_cures", plots.cures(distance.remedies(rows), distance.times(
        stored.rows(distance.TIMES)), stored.model)
    yield "fig13_looking", plots.looking(distance.looking(rows), summary, stored.model)


def embedded(stored: Stored):
    log = pd.read_csv(MODELS / stored.model.removeprefix("embedded-") / "training_log.csv")
    yield "fig00_scenes", plots.gallery(presence_samples("evaluation", 8))
    yield "fig00_training", plots.training_curves(log)


def benchmark(stored: Stored):
    tables = bench.tables_of(paths.bench("full"))
    yield "fig09_break_even", plots.break_even(
        {model: bench.break_even(tables[name]) for model, name in bench.MODELS.items()})
    yield "fig09_baselines", plots.baselines(tables["baselines_times"])


OF_ROWS = ((f1, f2, f3, f4, f5, f5_cause, f5_maps), (f6, f6_examples, f7, f8, f9, f11, f12, d1))
OF_TABLES = (embedded, benchmark, f10)  # of the default model only


def draw(results: Path, output: Path, model: str, parts: Iterable) -> list[Path]:
    """Save the figures of `parts`, without endings; returns their paths.

    Where a model's rows are missing its figures are left out, but for the default model's.
    """
    stored, drawn = Stored(results, model), []
    for part in parts:
        try:
            for name, figure in part(stored):
                plt.close(plots.save(figure, output, name))
                drawn.append(output / name)
        except NoRows:
            if model == paths.MODEL:
                raise
    return drawn


def models(results: Path) -> list[str]:
    """The models with a verdict in a results folder, the default one first."""
    found = {json.loads(path.read_text())["model"] for path in results.glob("*_verdict.json")}
    return sorted(found, key=lambda model: (model != paths.MODEL, model))


def figures(results: Path, output: Path, chosen: Iterable[str] = ()) -> list[Path]:
    """Draw what is stored of the `chosen` models, or of all that have verdicts.

    Into `output`, another model's than the default one into a folder of its name there. Returns
    the paths without endings. VDPError for a model of which nothing can be drawn.
    """
    chosen = list(chosen) or models(results) or [paths.MODEL]
    tasks = [(results, output / ("" if model == paths.MODEL else paths.slug(model)), model, parts)
             for parts in OF_ROWS for model in chosen]
    if paths.MODEL in chosen:
        tasks.append((results, output, paths.MODEL, OF_TABLES))
    drawn = {model: [] for model in chosen}
    with ProcessPoolExecutor(2) as pool:  # one after the other they take more than a minute
        for task, found in zip(tasks, pool.map(draw, *zip(*tasks))):
            drawn[task[2]] += found
    for model, found in drawn.items():
        if not found:
            raise NoRows(f"nothing to draw of {model} in {results}: measure it with make study "
                         f"PROFILE=full MODEL={model}")
    if paths.MODEL in chosen:
        bench.draw(bench.tables_of(paths.bench("full")), output)
    return sum(drawn.values(), [])
