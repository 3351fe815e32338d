# Two commands set everything up on a fresh machine: `make demo` and `make test`.
# Variables: PYTHON (3.11 or 3.12), DEMO (where the demo writes), NEMO_ENV (where NeMo goes).

PYTHON ?= python3
DEMO ?= build/demo
NEMO_ENV ?= build/nemo
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-packages test-crash test-rehearse test-nemo lint format constraints clean

demo: $(STAMP)
	$(BIN)/python -m data_prep.rehearsal $(DEMO)/corpus
	$(BIN)/soaes run examples/rehearsal/base.yaml
	$(BIN)/soaes run examples/rehearsal/recipe.yaml

# Two workers, because many tests wait for processes; one thread each, so that they do not get in each other's way.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# What the tests need of the system: a real Slurm, a browser, the library that tells file types.
test-packages:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
		slurmctld slurmd slurm-client munge chromium libmagic1

# Twenty kills at random moments of a tiny run; some minutes.
test-crash: $(STAMP)
	$(BIN)/python -m pytest tests/crash/random_kills.py --capture=no

# The examples for clusters, rehearsed from their first file to their last report; some minutes.
test-rehearse: $(STAMP)
	$(BIN)/python -m pytest tests/rehearsal/examples.py --capture=no

# NeMo pins what this project must not, so it gets an environment of its own (2.5 GB).
test-nemo: $(STAMP) $(NEMO_ENV)/.installed
	NEMO_PYTHON=$(abspath $(NEMO_ENV))/bin/python $(BIN)/python -m pytest environments/nemo -o timeout=1800

$(NEMO_ENV)/.installed: environments/nemo/requirements.txt
	$(PYTHON) -m venv $(NEMO_ENV)
	$(NEMO_ENV)/bin/python -m pip install --quiet --constraint environments/nemo/requirements.txt torch
	$(NEMO_ENV)/bin/python -m pip install --quiet --no-deps -r environments/nemo/requirements.txt
	touch $@

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The first install takes torch by its exact version, so that a CPU wheel offered by a local index
# or by PIP_EXTRA_INDEX_URL is taken instead of a newer CUDA build.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13), "Python 3.11 or 3.12 is needed; set PYTHON"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

constraints:
	{ sed '/^#/!d' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf build dist .mypy_cache .ruff_cache .hypothesis *.egg-info
