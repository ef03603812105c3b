"""The study's one command line: `vdp --help`, or `python -m vdp_utils.commands --help`.

A command's module is imported when it runs: help and wrong options wait for nothing heavy.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option, Typer
from typer.core import TyperCommand

from vdp_utils.errors import VDPError
from vdp_utils.lvlm.names import SIZES

app = Typer(
    name="vdp", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does a vision-language model still look at the image once the context gets long?")

Profile = Annotated[Literal["quick", "full"], Option(
    help="quick: minutes, into build/quick/bench; full: into data/bench, as committed.")]
Lengths = Annotated[list[int], Option("--length", min=1, metavar="TOKENS", show_default=False,
                                      help="Context tokens; may be repeated.")]
Repeats = Annotated[int, Option(min=1, help="Rounds of measurement, whose medians count.")]
Size = Annotated[Literal[*SIZES], Option(case_sensitive=False, help="Of the embedded LVLM.")]


class WithPairs(TyperCommand):
    """-p takes two words and may be repeated: typer knows options of either kind, not of both."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        next(one for one in self.params if "-p" in one.opts).nargs = 2


@app.command(cls=WithPairs)
def run(
    notebook: Annotated[Path, Argument(help="Such as notebooks/01_long_context_decline.ipynb.")],
    output: Annotated[Path | None, Argument(help="[default: build/ and NOTEBOOK's name]")] = None,
    parameters: Annotated[list[tuple], Option(
        "-p", metavar="NAME VALUE", show_default=False,
        help="A parameter, its value read as papermill reads it; may be repeated.")] = (),
):
    """Run one notebook, with other parameters where given."""
    from vdp_utils.commands.run import run

    run(notebook, output, dict(parameters))


@app.command(cls=WithPairs)
def plan(
    output: Annotated[Path, Argument(help="The plan's file, which vdp shard reads.")],
    minutes: Annotated[float, Argument(min=0.01, help="That a shard should take.")],
    notebooks: Annotated[list[Path], Argument(metavar="NOTEBOOK...")],
    parameters: Annotated[list[tuple], Option(
        "-p", metavar="NAME VALUE", show_default=False,
        help="A parameter of theirs, as for vdp run; may be repeated.")] = (),
):
    """Cut what notebooks measure into shards, timed on this machine."""
    from vdp_utils.commands.plan import plan

    plan(output, minutes, notebooks, dict(parameters))


@app.command()
def shard(
    plan: Annotated[Path, Argument(help="What vdp plan wrote.")],
    number: Annotated[int, Argument(help="Of the shard, from 0.")],
):
    """Measure one shard of a plan, going on where it stopped."""
    from vdp_utils.commands.shard import shard

    shard(plan, number)


@app.command()
def figures(
    results: Annotated[Path | None, Option(
        show_default="data/results", help="Folder of the rows.")] = None,
    output: Annotated[Path | None, Option(
        show_default="figures", help="Folder for the figures.")] = None,
    model: Annotated[list[str], Option(
        metavar="MODEL", show_default=False, help="Only this one; may be repeated.")] = (),
):
    """Draw every figure again from stored rows, without a model."""
    from vdp_utils import paths
    from vdp_utils.commands.figures import figures

    print(*figures(results or paths.results("full"), output or paths.figures("full"), model),
          sep="\n")


@app.command()
def bench(
    profile: Profile = "quick",
    length: Lengths = (),
    part: Annotated[list[str], Option(
        metavar="TABLE", show_default=False, help="Only this one; may be repeated.")] = (),
    repeats: Repeats = 5,
):
    """Time recording and pruning on this machine."""
    from vdp_utils.commands.bench import bench

    bench(profile, length, part, repeats)


@app.command()
def baselines(profile: Profile = "quick", length: Lengths = (1024, 2048), repeats: Repeats = 5):
    """Time kvpress beside them, in the environment of make baselines."""
    from vdp_utils.commands.baselines import baselines

    baselines(profile, length, repeats)


@app.command()
def probe(
    model: Annotated[str, Argument(help="A hub id, a model folder, or embedded-s.")],
    images: Annotated[int, Option(
        min=2, help="Each with one yes- and one no-question.")] = 24,
    length: Lengths = (2048,),
    device: Annotated[str | None, Option(
        show_default="cuda where it is", help="cpu, cuda, cuda:N, mps or auto.")] = None,
    dtype: Annotated[str, Option(help="float32, bfloat16, float16, or auto: as stored.")] = "auto",
    out: Annotated[Path | None, Option(
        show_default="build/probe/MODEL",
        help="Folder of rows and figure; what it has is not measured again.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead.")] = False,
    data: Annotated[str, Option(
        help="Whose images: scenes, table, coco, visual-genome, svit, pope, ..., and after a + "
        "whose talk about other images, such as pope+svit.")] = "scenes",
    data_root: Annotated[Path | None, Option(
        metavar="ROOT", show_default=False, help="The folder its files lie in.")] = None,
):
    """Say what a model loses to text, what to distance, and what helps."""
    from vdp_utils.commands.probe import probe

    probe(model, images, length, device, dtype, out, as_json, data, data_root)


@app.command()
def sources(
    data: Annotated[str, Argument(help="table, coco, visual-genome, svit, pope, pope+svit, ...")],
    root: Annotated[Path, Argument(help="The folder its files lie in, or a table's file.")],
    model: Annotated[str, Option(help="Whose tokens the talk is counted in.")] = "embedded-s",
):
    """Say what of photographs, questions and talk lies in a folder."""
    from vdp_utils.commands.sources import sources

    sources(data, root, model)


@app.command()
def dataset(
    data: Annotated[str, Argument(help="scenes, table, coco, visual-genome, svit, pope, ...")],
    root: Annotated[Path, Argument(help="The folder its files lie in; - for scenes.")],
    out: Annotated[Path, Argument(help="A new folder.")],
    model: Annotated[str, Option(help="Whose tokens count.")] = "embedded-s",
    images: Annotated[int, Option(min=1, help="At most.")] = 100,
    pairs: Annotated[int, Option(min=1, help="Of yes- and no-questions an image, at most.")] = 3,
    kind: Annotated[list[str], Option(
        metavar="KIND", help="Of contexts; may be repeated.")] = (
            "same_image", "other_images", "misleading"),
    length: Lengths = (512, 2048),
    questions: Annotated[str, Option(
        help="presence, position, relation, counting, or a table's own.")] = "presence",
    seed: Annotated[int, Option(min=0, help="Of the contexts.")] = 0,
):
    """Write questions behind contexts of exact lengths."""
    from vdp_utils.commands.dataset import dataset

    dataset(data, root, out, model, images, pairs, kind, length, questions, seed)


@app.command()
def train(
    size: Size = "s",
    minutes: Annotated[float, Option(help="For all stages together.")] = 70,
    state: Annotated[Path, Option(
        help="What is needed to go on after a stop; all sizes share tower and projector.",
    )] = Path("build/training"),
    start_from: Annotated[str | None, Option(
        metavar="WEIGHTS", help="Only the last stage, from the stored weights of this size, of a "
        "smaller one, whose decoder then grows, or from a folder of weights.")] = None,
    instrument: Annotated[Literal["short", "s", "far"] | None, Option(
        help="The last stage is that of this rung of the ladder, --steps long.")] = None,
    steps: Annotated[int, Option(min=1, help="Of an instrument's training.")] = 750,
    seed: Annotated[int, Option(help="Of an instrument's training.")] = 0,
    export: Annotated[bool, Option(
        "--export", help="An instrument's weights go into data/models, not beside its state.",
    )] = False,
):
    """Train the embedded LVLM, going on where a run stopped."""
    from vdp_utils.commands.train import train

    train(size, minutes, state, start_from, instrument, steps, seed, export)


@app.command()
def held_out(
    size: Size = "s",
    questions: Annotated[int, Option(min=1, help="Of each skill, at least.")] = 500,
    results: Annotated[Path, Option(help="Folder of the rows.")] = Path("build/results/held_out"),
    weights: Annotated[Path | None, Option(
        show_default=False, help="A folder of weights instead of a size's.")] = None,
):
    """Ask the embedded LVLM about scenes that its training never drew."""
    from vdp_utils.commands.held_out import held_out

    held_out(size, questions, results, weights)


def main():
    """The command line. An error of the study is one sentence and exit code 1."""
    try:
        app(prog_name="vdp")
    except VDPError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
