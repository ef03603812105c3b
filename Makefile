# make help lists what there is.
PROFILE ?= quick
PYTHON ?= python3
VENV ?= .venv
CORES ?= all
BIN := $(VENV)/bin

# A notebook runs again when it, a module or the weights have changed since it last ran (mtime; a
# file that was only touched does not count), and what a stopped run left is made again.
SNAKEMAKE = $(BIN)/snakemake --cores $(CORES) --rerun-triggers mtime --rerun-incomplete \
	--quiet host

.PHONY: help env study figures bench peers test unlock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

env: ## the virtual environment of requirements.lock in VENV=.venv, made with PYTHON=python3
	@$(PYTHON) bootstrap.py $(VENV)

study: env ## run what is missing: PROFILE=quick (minutes, into build/), or full (what is committed)
	$(SNAKEMAKE) --config profile=$(PROFILE)
	@echo "Now read the notebooks in $(if $(filter full,$(PROFILE)),notebooks,build/$(PROFILE)); README.md says what the full profile found."

figures: env ## draw every figure again from stored rows, without a model (about a minute)
	$(BIN)/python -m vdp_utils.commands.redraw

# Huge pages: in ordinary ones the time of the same run depends on where its memory happens to lie.
bench: env ## time recording and pruning: PROFILE=quick (minutes, into build/), full (into data/bench)
	THP_MEM_ALLOC_ENABLE=1 $(BIN)/python -m vdp_utils.commands.bench --profile $(PROFILE)

peers: env ## the same beside kvpress, in an environment of its own (build/peers)
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip --disable-pip-version-check install --quiet \
		--requirement requirements-peers.lock
	PYTHONPATH=. build/peers/bin/python -m vdp_utils.commands.peers --profile $(PROFILE)

test: env ## the whole test suite
	TQDM_DISABLE=1 $(BIN)/python -m pytest -q tests

unlock: env ## after a power cut or kill -9, when Snakemake says that the folder is locked
	$(SNAKEMAKE) --config profile=$(PROFILE) --unlock

clean: ## remove build/ and Snakemake's notes; committed results, figures and VENV stay
	rm -rf build .snakemake
