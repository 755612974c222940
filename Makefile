# make train   set up .venv and run the main job: 10 layers on 4 MPI ranks, the digits graph
# make test    set up .venv and run the tests
# make lint    set up .venv and check the style
# make clean   remove all that these made
#
# Needs Python 3.11 or newer and a C compiler; everything else comes from PyPI. PDADMM_DATA names a folder
# of real graphs: tests that need it are skipped without it.

PYTHON ?= python3
RANKS ?= 4
TRAIN_FLAGS ?= --dataset digits --layers 10
PYTEST_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One BLAS thread per rank: ranks share the cores, and thread counts change the last bits of a product.
export OMP_NUM_THREADS := 1

.PHONY: train test lint setup clean

train: $(STAMP)
	mkdir -p out
	$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m pdadmm train $(TRAIN_FLAGS) \
		--summary out/summary.json --history out/history.jsonl --save out/model.safetensors

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .

setup: $(STAMP)

$(STAMP): requirements.txt setup.py pyproject.toml $(wildcard pdadmm/kernels/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer: name one with make PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV), once, in a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

clean:
	rm -rf $(VENV) build out *.egg-info .pytest_cache .ruff_cache .hypothesis pdadmm/kernels/*.so
	find pdadmm tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
