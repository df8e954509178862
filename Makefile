# make run     the main job: train a small network, prune it, certify every layer (writes runs/digits)
# make test    style, layers, types and tests
# make proofs  the theorems: Coq (where installed), the axioms below each, numerical checks, and a table of them
#
# Each creates .venv when it is missing and installs again only when pyproject.toml or constraints.txt changed.
# make run ARGS="--density 0.1"         passes options on to `optprune prune`
# make test TESTS="tests/certify -m ''" passes arguments on to pytest (-m '' runs the slow tests too)
# make test JOBS=0                      runs them in one process, for a debugger; the default is one for each core
# make run PYTHON=/path/to/python3.12   chooses the interpreter for a new .venv

JOBS ?= auto
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test check proofs clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed
	@$(BIN)/optprune prune --output runs/digits --overwrite $(ARGS)

# One thread per library: the tests are many and small, and the machine may be shared.
test: export OMP_NUM_THREADS ?= 1
test: check
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal $(TESTS)

check: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright

proofs: $(VENV)/.installed-dev
	@$(BIN)/python -m proofs --check

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@python=; for candidate in $(CANDIDATES); do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        python=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "optprune needs Python 3.11 or newer; none of these is one: $(CANDIDATES)." >&2; \
	    echo "Install it, or name it: make run PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Creating $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "$$python cannot create a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	    exit 1; \
	}

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing optprune into $(VENV) (some minutes the first time)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing optprune and its development tools into $(VENV) (some minutes the first time)"
	@$(PIP_INSTALL) --editable ".[dev]"
	@touch $(VENV)/.installed $@
