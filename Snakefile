# The one list of what runs. `make study` calls it; on a cluster:
#     snakemake --executor slurm --jobs 4 --cores 8 --config profile=full
import sys
from glob import glob

from snakemake.exceptions import WorkflowError

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
]

workdir: workflow.basedir

PROFILE = config.get("profile", "quick")
if PROFILE not in ("full", "quick", "smoke"):
    raise WorkflowError(f"profile={PROFILE}: choose full, quick or smoke")

PYTHON = sys.executable
CODE = sorted(glob("vdp_utils/**/*.py", recursive=True))
WEIGHTS = sorted(glob("data/models/*/*"))
SUFFIX = "done" if PROFILE == "full" else "ipynb"


rule study:
    input:
        expand("build/{profile}/{name}.{suffix}", profile=PROFILE, name=NOTEBOOKS, suffix=SUFFIX),


# A notebook takes every core it is given: side by side they would slow down and spoil the timings.
# One retry, for a kernel that did not start; rows measured before a failure are not measured again.
if PROFILE == "full":

    # Executed in place, with the parameters' defaults, so that no injected cell is committed.
    # The stamp stands for "ran here", since a rule's output cannot be its own input.
    rule notebook:
        input:
            notebook="notebooks/{name}.ipynb",
            code=CODE,
            weights=WEIGHTS,
        output:
            touch("build/full/{name}.done"),
        threads: workflow.cores
        retries: 1
        shell:
            "{PYTHON:q} -m vdp_utils.commands.run_notebook {input.notebook} {input.notebook}"

else:

    rule notebook:
        input:
            notebook="notebooks/{name}.ipynb",
            code=CODE,
            weights=WEIGHTS,
        output:
            f"build/{PROFILE}/{{name}}.ipynb",
        threads: workflow.cores
        retries: 1
        shell:
            "{PYTHON:q} -m vdp_utils.commands.run_notebook {input.notebook} {output} -p PROFILE {PROFILE}"
