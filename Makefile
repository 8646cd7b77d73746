# Everything runs in .venv, which `make setup` makes and every target needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SPEC ?= jobs/specs/medical_diagnosis.yaml
STAMP := $(VENV)/.installed
# Tests of functions run in a process for each core; those that start clusters and servers run alone.
FUNCTIONS := tests/unit tests/numerics --numprocesses logical --maxprocesses 8 --dist loadfile
CLUSTERS := tests/connectors tests/docs tests/e2e tests/ray
# Ray starts dozens of Python processes: where each compiles anew what it imports, a cluster takes 14 seconds to start, not 5.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-all check format bench bench-data bench-train bench-serve bench-models docs clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv and install the project with its tested versions

# Compiling what is never imported takes minutes; Python compiles the rest at its first import.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[all,samples,bench,dev]'
	touch $@

demo: $(STAMP) ## raw records to a live endpoint; SERVE=1 keeps the endpoint up
	$(BIN)/python jobs/demo.py $(SPEC) $(if $(SERVE),--serve)

test: $(STAMP) ## all tests but the slow ones
	$(BIN)/python -m pytest -m 'not slow' $(FUNCTIONS)
	$(BIN)/python -m pytest -m 'not slow' $(CLUSTERS)

test-all: test ## all tests; as root on Debian it first installs what the slow ones need
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then .ci/packages; fi
	$(BIN)/python -m pytest -m slow $(FUNCTIONS)
	$(BIN)/python -m pytest -m slow $(CLUSTERS)

check: $(STAMP) ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## time the main job; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/main_job.py

bench-data: $(STAMP) ## time the data plane against pandas, polars, duckdb and Ray Data; takes half an hour
	$(BIN)/python benchmarks/data/bench.py all

bench-train: $(STAMP) ## time training and search beside Keras fit, a bare torch loop, Ray Train, Tune, Optuna and DDP; takes 40 minutes
	$(BIN)/python benchmarks/train/bench.py

bench-models: $(STAMP) ## measure families, frameworks and tasks on real data beside scikit-learn; takes a quarter of an hour
	$(BIN)/python benchmarks/models.py

bench-serve: $(STAMP) ## time serving beside LitServe, BentoML, MLflow, Ray Serve, FastAPI and Starlette; takes 35 minutes; install wrk for it
	$(BIN)/python benchmarks/serve/bench.py

docs: $(STAMP) ## check the links and commands of the documents
	$(BIN)/python -m pytest tests/docs

clean: ## remove .venv, data and runs
	rm -rf $(VENV) data runs
