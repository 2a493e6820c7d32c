# dphpc from a fresh machine: needs Python >= 3.11, a C++17 compiler and make.  `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3 python,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $(p))))
VENV ?= .venv
# Which MPI the tests and the demo use: machine, wheel (PyPI's mpich), or auto: the machine's where mpi4py finds it.
MPI ?= auto
# Ranks that the MPI tests run on, one after the other, once all of them have run on one with the other tests; on more
# than two ranks, only those that are not marked two_ranks.
RANKS ?= 2 3
# And those on which the tests of the decomposition alone run; on 8, those of a run's bits with them.
WIDE_RANKS ?= 4 8
# Processes that share the tests on one rank; auto: one a core.
PROCESSES ?= auto
# Seconds after which they are given up on one number of ranks.
MPI_SECONDS ?= 900
# Further flags for pip, e.g. an index that has CPU-only builds of torch.
PIP_FLAGS ?=

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.dphpc-installed
HOROVOD_STAMP := $(VENV)/.horovod-installed
MPIRUN = $$(cat $(VENV)/mpirun)
# pytest on so many ranks.
RANKS_PYTEST = OMP_NUM_THREADS=1 timeout $(MPI_SECONDS) $(MPIRUN) -n $(1) $(BIN)/python .ci/pytest-rank -q --color=no --with-mpi
# Test files that say mpi of themselves; of all others, each rank would import what it does not run.
MPI_TESTS := $(sort $(shell grep -rl --include='test_*.py' 'mark\.mpi' tests))
# Of these, files with tests that go to more than two ranks.
MANY_TESTS := $(shell grep -L '^pytestmark.*two_ranks' $(MPI_TESTS))
# Those of the decomposition: sums of gradients know nothing of bricks, and their ranks import torch.
WIDE_TESTS := $(filter-out %/test_gradients.py %/test_process_group.py,$(filter tests/parallel/%,$(MPI_TESTS)))
BIT_TESTS := tests/md/test_deterministic.py
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard kernels/*/* jobscripts/*)

# Both kinds of Open MPI (4; 5) as root and with more ranks than cores, as in a container; MPICH reads none of them.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export OMPI_MCA_rmaps_base_oversubscribe := 1
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
# Containers tend to set it: every rank and every command would compile the package and the tests anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-all horovod-wheel horovod lint test-serial test-mpi clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS='|' read -r target what; do printf '  make %-13s %s\n' "$$target" "$$what"; done

install: $(STAMP)  ## a virtual environment in .venv with dphpc and everything the tests need

$(STAMP): $(SOURCES)
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 found; install one or say make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt scikit-build-core nanobind
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt --no-build-isolation -e '.[test]'
	@.ci/choose-mpi $(VENV) $(MPI)
	@touch $@
	@echo "installed; dphpc is $(BIN)/dphpc, MPI ranks are started by $$(cat $(VENV)/mpirun)"

demo: $(STAMP)  ## train, freeze, compress, test, MD on 2 ranks and plots on DFT data of silicon, into demo_output/
	$(BIN)/python examples/silicon/demo.py --output demo_output --mpirun "$(MPIRUN)"

test: lint test-serial test-mpi  ## lint, all quick tests on 1 rank, then those with MPI on 2 (in part on 3, 4, 8)

test-all: lint  ## the same with the tests that take minutes, and with Horovod
	@$(MAKE) --no-print-directory test-serial test-mpi WHICH="slow or not slow" RANKS="2 3 4 8" WIDE_RANKS="6 12 16"
	@$(MAKE) --no-print-directory horovod

WHICH ?= not slow

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

# One process a core, of one thread and one rank each: tests that are about threads say how many they want.
test-serial: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PROCESSES) --with-mpi -m "$(WHICH)"

# Ranks that wait for one that failed would wait for ever: hence the time limit.
test-mpi: $(STAMP)
	@for n in $(RANKS); do \
	  if [ $$n -le 2 ]; then chosen=mpi tests="$(MPI_TESTS)"; else chosen="mpi and not two_ranks" tests="$(MANY_TESTS)"; fi; \
	  echo "== MPI tests on $$n ranks"; \
	  $(call RANKS_PYTEST,$$n) -m "($(WHICH)) and $$chosen" $$tests; \
	done
	@for n in $(WIDE_RANKS); do \
	  if [ $$n = 8 ]; then and=" and of bits" tests="$(WIDE_TESTS) $(BIT_TESTS)"; else and= tests="$(WIDE_TESTS)"; fi; \
	  echo "== MPI tests of the decomposition$$and on $$n ranks"; \
	  $(call RANKS_PYTEST,$$n) -m "($(WHICH)) and mpi and not two_ranks" $$tests; \
	done

horovod-wheel: $(STAMP)  ## Horovod's wheel into ~/.cache (minutes, once for a torch and an MPI; needs the MPI's headers)
	$(BIN)/dphpc horovod build

$(HOROVOD_STAMP): $(STAMP)
	$(BIN)/dphpc horovod install
	@touch $@

horovod: $(HOROVOD_STAMP)  ## install that wheel, then data-parallel training with it on 2 ranks
	$(call RANKS_PYTEST,2) -m mpi $(filter tests/train/%,$(MPI_TESTS))

clean:  ## what builds, tests and the demo left behind
	rm -rf build dist demo_output .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## the virtual environment too
	rm -rf $(VENV)
