# What a person types and what CI runs.
VENV := .venv
PYTHON ?= python3
EXTRAS := bench,cuda12,decoders,docs,nifti,test
BIN := $(VENV)/bin
FUZZ_S ?= 600
# One test process per core, and one thread per process.
JOBS ?= $(shell nproc)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
IN_PARALLEL := -n $(JOBS) --dist worksteal

.PHONY: demo test quick check bench docs pictures fuzz clean

demo: $(VENV)/.installed  ## the whole way on synthetic heads, in minutes
	$(BIN)/ichfast demo

test: check  ## everything that must hold, on any machine
	$(PYTEST) $(IN_PARALLEL) -m "not alone"
	$(PYTEST) -m alone $$(grep -rlF --include='*.py' pytest.mark.alone tests)

quick: check  ## the same without slow tests, while you work
	$(PYTEST) $(IN_PARALLEL) -m "not alone and not slow"

check: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPY_NUM_WORKERS=$(JOBS) $(BIN)/mypy

bench: $(VENV)/.installed  ## every stage against its limit
	$(BIN)/python bench/throughput.py

docs: $(VENV)/.installed  ## the pages as a site: docs/build/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs docs/build

pictures: $(VENV)/.installed  ## those of the README, from the folder of `make demo`
	$(BIN)/python -m tests.docs.pictures ichfast-demo

fuzz: $(VENV)/.installed  ## read damaged files for FUZZ_S seconds
	FUZZ_S=$(FUZZ_S) $(PYTEST) tests/dicom/test_fuzz.py

clean:  ## remove what make made
	rm -rf $(VENV) ichfast-demo docs/build

$(VENV)/.installed: setup.py $(wildcard ichfast/packed/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit("ichfast needs Python 3.10 or newer; set PYTHON=python3.x" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@
