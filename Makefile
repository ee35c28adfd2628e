# `make demo` and `make test` each do all their own set-up, and nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-random test-slow test-slurm lint install

demo: install
	$(BIN)/snakemake --cores all

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# The property tests with other examples than `make test`. The seed, by which to run them again, is printed with the command.
test-random: SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
test-random: install
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=random $(BIN)/pytest -n auto -m "hypothesis and not slow" --hypothesis-seed=$(SEED)

test-slow: install
	$(BIN)/pytest -m slow --ignore tests/test_slurm.py

# On a real Slurm that the test starts on this machine: apt-get install slurm-wlm munge; as root.
test-slurm: install
	$(BIN)/pytest tests/test_slurm.py -m "slow or not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile pipeline/rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "avqa-pipeline needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
		{ echo "this Python has no venv module: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
