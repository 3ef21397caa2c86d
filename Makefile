# make demo · make test · make drills · make lint · make docs · make bench · make chaos · make study, each of which sets up .venv when it
# is missing; make clean.
PYTHON ?= python3
BIN := .venv/bin
# One thread per process unless told otherwise: small matrices, few cores. Not for demo, whose figures in README.md are
# those of a training with as many threads as Ray gives it.
test drills bench chaos study: export OMP_NUM_THREADS ?= 1

.PHONY: demo test drills lint docs bench chaos study clean lock

# The demo needs the package alone, and takes the environment with the tests' tools where it is there.
.venv/demo: WANTED = .[compare]
.venv/installed: WANTED = .[test]
.venv/demo .venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or later is needed; set PYTHON=python3.11"; exit 1; }
	@echo "setting up .venv (once, a few minutes)"
	@test -d .venv || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '$(WANTED)'
	@touch $@

demo: $(if $(wildcard .venv/installed),.venv/installed,.venv/demo)
	@$(BIN)/python -m pipeline.run --config configs/digits.yaml

test: .venv/installed lint
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'not drill'

# Faults of which `make test` has a shorter drill: storage that fails all the time or is full, memory that runs out,
# kills amid a stream, a search or a comparison. A quarter of an hour; before a release.
drills: .venv/installed
	@$(BIN)/python -m pytest -m drill tests

# Of the scripts that nobody runs for weeks: whether what they call is there. Their own types may be loose.
LOOSE := arg-type assignment func-returns-value index method-assign misc operator return-value unused-ignore

lint: .venv/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@cd benchmarks && MYPYPATH=.. ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache $(addprefix --disable-error-code=,$(LOOSE)) *.py

# The documentation's site, in site/.
docs: .venv/installed
	@$(BIN)/mkdocs build --strict

# The ratios of docs/performance.md, beside the committed ones; twenty minutes or more on two idle cores.
bench: .venv/installed
	@$(BIN)/python benchmarks/suite.py

# Kill driver, workers and nodes of a real run twenty times over; about a quarter of an hour. docs/operations.md
chaos: .venv/installed
	@$(BIN)/python tests/pipeline/chaos.py

# The study of docs/results/study.md: hours on two cores, resumable. docs/compare.md
study: .venv/installed
	@$(BIN)/python -m pipeline.compare --config configs/fashion_mnist_study.yaml

# Not runs/, which holds trained models and studies of hours.
clean:
	rm -rf .venv site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Renew the lock file from the newest versions that pyproject.toml allows.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet '.[test,compare,inception,track,aws,gcp,azure]'
	{ echo "# Exact versions, as pip constraints: pip install -c requirements.lock . Renew with make lock."; \
	  .venv-lock/bin/pip freeze --exclude ldcvae; } > requirements.lock
	rm -rf .venv-lock
