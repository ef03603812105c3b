# The one list of what runs. `make study` calls it; on a cluster: see profiles/README.md.
import json
import os
import shlex
import sys
from glob import glob
from types import SimpleNamespace

from snakemake.logging import logger

from vdp_utils import paths
from vdp_utils.commands.inputs import files_of
from vdp_utils.errors import VDPError
from vdp_utils.lvlm.names import check_names
from vdp_utils.sources.files import Files
from vdp_utils.sources.photographs import check_data

NOTEBOOKS = [
    "00_the_embedded_lvlm",
    "01_long_context_decline",
    "02_text_only_control",
    "03_prior_consistency",
    "04_target_proportion",
    "05_attention_distribution",
    "06_context_pruning",
    "07_pruning_strategies",
    "08_theory_checks",
    "09_inference_cost",
    "10_models_and_sizes",
    "11_scaling_law",
    "12_mmdu",
    "13_text_or_distance",
]

workdir: workflow.basedir

# With --quiet, as make calls it, one reads what `vdp run` says of each notebook, and of its errors.
if workflow.output_settings.quiet and not workflow.output_settings.dryrun:
    logger.setLevel("WARNING")
    for handler in logger.handlers:
        handler.addFilter(lambda record: "non-zero exit status 1." not in record.getMessage())

PROFILE = config.get("profile", "quick")
MINUTES = config.get("minutes")  # that a shard should take; without it notebooks measure alone
MODEL = str(config.get("model", paths.MODEL))
DATA = str(config.get("data", "scenes"))
DATA_ROOT = str(config.get("data_root") or "") if DATA != "scenes" else ""
DATA_ROOT = DATA_ROOT and os.path.abspath(DATA_ROOT)
DEVICE, DTYPE = config.get("device"), config.get("dtype")
try:
    paths.results(PROFILE)  # knows the profiles
    check_names(MODEL, DEVICE, DTYPE)
    check_data(DATA, DATA_ROOT)
except VDPError as error:
    sys.exit(f"error: {error}")

if not MODEL.startswith("embedded-"):
    NOTEBOOKS = NOTEBOOKS[1:]  # the first one is about the embedded LVLM
if DATA != "scenes":  # which the first one and MMDU's dialogues are about in any case
    NOTEBOOKS = [name for name in NOTEBOOKS if "DATA_ROOT" in open(f"notebooks/{name}.ipynb").read()]

FOLDER, GIVEN = f"build/{PROFILE}", {"PROFILE": PROFILE}
if MODEL != paths.MODEL:
    FOLDER += f"/{paths.slug(MODEL)}"
    GIVEN["MODEL"] = MODEL
if DATA != "scenes":
    FOLDER += f"/{paths.slug(DATA + DATA_ROOT)}"
    GIVEN |= {"DATA": DATA, "DATA_ROOT": DATA_ROOT}
if DTYPE:
    FOLDER += f"/{DTYPE}"
GIVEN |= {name: value for name, value in {"DEVICE": DEVICE, "DTYPE": DTYPE}.items() if value}
if DTYPE not in (None, "float32"):
    GIVEN["FIGURES"] = f"{FOLDER}/figures"
    if PROFILE == "full" and MODEL.startswith("embedded-") and DATA == "scenes":
        GIVEN["RESULTS"] = f"{FOLDER}/results"  # verdicts and laws are committed, of float32

# The committed notebooks are executed in place, with the parameters' defaults, so that no injected
# cell is committed. A stamp stands for "ran here", since a rule's output cannot be its own input.
IN_PLACE = GIVEN == {"PROFILE": "full"}
OUTPUT = f"{FOLDER}/{{name}}.{'done' if IN_PLACE else 'ipynb'}"
VDP = shlex.join([sys.executable, "-m", "vdp_utils.commands"])
NOTEBOOK_FILES = expand("notebooks/{name}.ipynb", name=NOTEBOOKS)
PLAN, SHARD = f"{FOLDER}/plan.json", f"{FOLDER}/shards/{{number}}.done"
if MINUTES and os.path.exists(PLAN) and workflow.is_main_process:
    with open(PLAN) as file:
        logger.info(f"{PLAN}: {json.load(file)['said']}")


def code(wildcards):
    """Only what this notebook imports, so that a figure's new colours rerun one and not ten."""
    return [os.path.relpath(path) for path in files_of(f"notebooks/{wildcards.name}.ipynb")]


def shards(wildcards):
    """Stamps of the shards that measure this notebook's rows: which ones is known once planned."""
    if not MINUTES:
        return []
    with open(checkpoints.plan.get().output[0]) as file:
        return expand(SHARD, number=json.load(file)["needs"][wildcards.name])


def data(wildcards):
    """The weights of one model and its instruments, the data's files, benchmarks: where read."""
    weights = MODEL.replace("embedded-", "data/models/") if MODEL.startswith("embedded-") else MODEL
    weights += "*" * ("vdp_utils/findings/models.py" in code(wildcards))
    tables = "data/bench/*.csv" if "vdp_utils/commands/bench.py" in code(wildcards) else ""
    files = [DATA_ROOT] if os.path.isfile(DATA_ROOT) else []
    files += Files(DATA_ROOT).find("*.json", "*.csv", "*.parquet") if os.path.isdir(DATA_ROOT) else []
    return sorted(glob(f"{weights}/*") + glob(tables) + list(map(str, files)))


def given(names):
    """Those of the given parameters as options of a command."""
    return "".join(f" -p {name} {shlex.quote(GIVEN[name])}" for name in GIVEN if name in names)


def options(wildcards):
    """What of the given parameters this notebook takes."""
    text = open(f"notebooks/{wildcards.name}.ipynb", encoding="utf-8").read()
    return given([name for name in GIVEN if f'"{name} = ' in text])


def everything(wildcards):
    """What any notebook depends on: conditions and code decide which rows are missing."""
    return sorted({path for name in NOTEBOOKS for read in (code, data)
                   for path in read(SimpleNamespace(name=name))})


rule study:
    input:
        expand(OUTPUT, name=NOTEBOOKS),


# What a row takes is timed where this runs, and what is stored already is left out.
checkpoint plan:
    input:
        notebooks=NOTEBOOK_FILES,
        rest=everything,
    output:
        PLAN,
    params:
        options=given(GIVEN),
    threads: workflow.cores
    shell:
        f"{VDP} plan {{output}} {MINUTES} {{input.notebooks}}{{params.options}}"


# Rows go where the notebooks look for them. A shard that was stopped goes on where it was.
rule shard:
    input:
        plan=PLAN,
        notebooks=ancient(NOTEBOOK_FILES),  # where no disk is shared: changed ones are planned anew
    output:
        touch(SHARD),
    threads: workflow.cores
    shell:
        VDP + " shard {input.plan} {wildcards.number}"


# A notebook takes every core it is given: side by side they would slow down and spoil the timings.
rule notebook:
    input:
        notebook="notebooks/{name}.ipynb",
        code=code,
        data=data,
        shards=shards,
    output:
        touch(OUTPUT) if IN_PLACE else OUTPUT,
    params:
        options=options,
    threads: workflow.cores
    priority: lambda wildcards: len(NOTEBOOKS) - NOTEBOOKS.index(wildcards.name)  # in order
    shell:
        VDP + " run {input.notebook} " + ("{input.notebook}" if IN_PLACE else "{output}{params.options}")
