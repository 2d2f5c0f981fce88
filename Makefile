# What a person types and what CI runs.
VENV := .venv
PYTHON ?= python3
# What `make demo` installs, and what all other targets add to it.
DEMO_EXTRAS := cpu
ALL_EXTRAS := bench,cuda12,decoders,docs,nifti,test
# Measured on 2026-11-30 with Python 3.12, torch 2.14.1 and DALI 2.4.0.
DEMO_SIZE := about 3.7 GB of packages, which take 7 GB in $(VENV)
BIN := $(VENV)/bin
SMOKE := build/smoke
FUZZ_S ?= 600
# One test process per core, and one thread per process.
JOBS ?= $(shell nproc)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
IN_PARALLEL := -n $(JOBS) --dist worksteal

.PHONY: demo test quick check bench docs pictures fuzz smoke clean

demo: $(VENV)/.demo  ## the whole way on synthetic heads, in minutes
	$(BIN)/ichfast demo

test: check  ## everything that must hold, on any machine
	$(PYTEST) $(IN_PARALLEL) -m "not alone"
	$(PYTEST) -m alone $$(grep -rlF --include='*.py' pytest.mark.alone tests)

quick: check  ## the same without slow tests, while you work
	$(PYTEST) $(IN_PARALLEL) -m "not alone and not slow"

check: $(VENV)/.all  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPY_NUM_WORKERS=$(JOBS) $(BIN)/mypy

bench: $(VENV)/.all  ## every stage against its limit
	$(BIN)/python bench/throughput.py

docs: $(VENV)/.all  ## the pages as a site: docs/build/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs docs/build

pictures: $(VENV)/.all  ## those of the README, from the folder of `make demo`
	$(BIN)/python -m tests.docs.pictures ichfast-demo

fuzz: $(VENV)/.all  ## read damaged files for FUZZ_S seconds
	FUZZ_S=$(FUZZ_S) $(PYTEST) tests/dicom/test_fuzz.py

smoke:  ## build the package and use it in a new environment: PYTHON=python3.12
	rm -rf $(SMOKE)
	$(PYTHON) -m venv $(SMOKE)/venv
	$(SMOKE)/venv/bin/python -m pip install --quiet build
	$(SMOKE)/venv/bin/python -m build --outdir $(SMOKE)/dist
	$(SMOKE)/venv/bin/python -m pip install --quiet "$$(ls $(SMOKE)/dist/*.whl)[$(DEMO_EXTRAS)]"
	cp tests/smoke.py $(SMOKE)
	cd $(SMOKE) && venv/bin/python smoke.py

clean:  ## remove what make made
	rm -rf $(VENV) $(SMOKE) ichfast-demo docs/build

$(VENV)/.demo: setup.py $(wildcard ichfast/packed/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit("ichfast needs Python 3.10 or newer; set PYTHON=python3.x" if sys.version_info < (3, 10) else 0)'
	@echo "fetching $(DEMO_SIZE); less of what pip has fetched before"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[$(DEMO_EXTRAS)]'
	touch $@

$(VENV)/.all: $(VENV)/.demo
	@echo "adding what tests, benchmarks and docs need"
	$(BIN)/python -m pip install --quiet --editable '.[$(ALL_EXTRAS)]'
	touch $@
