# `make bench` and `make test` set up .venv by themselves: with uv where it is present, else with python3 -m venv.

PYTHON := python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
# The MPI that is installed beside epbench: mpi (Open MPI's wheel), mpich, or nothing where the machine brings its own.
MPI := mpi
COMMA := ,

ifneq ($(UV),)
create = $(UV) venv --quiet --clear --seed --python $(PYTHON) $(VENV)
install = $(UV) pip install --quiet --python $(BIN)/python
else
create = $(PYTHON) -m venv --clear $(VENV)
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: bench test types tests reference family clean

bench: $(VENV)/.core-$(MPI)
	@$(BIN)/epbench run --suite main

reference: $(VENV)/.core-$(MPI)
	@mkdir -p results/reference
	@$(BIN)/epbench run --suite reference --json results/reference/h800.json

family: $(VENV)/.core-$(MPI)
	@mkdir -p results/reference
	@$(BIN)/epbench run --suite family --json results/reference/family.json
	@$(BIN)/epbench run --suite family-ep64 --json results/reference/family-ep64.json

test: $(VENV)/.dev-$(MPI)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 2 types tests

types:
	$(BIN)/mypy

tests:
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamps name what is installed; a change of pyproject.toml installs again.
$(VENV)/.created:
	@echo "setting up $(VENV)"
	@$(create)
	@touch $@

$(VENV)/.core-$(MPI): pyproject.toml | $(VENV)/.created
	@$(install) -e '.[$(MPI)]'
	@touch $@

$(VENV)/.dev-$(MPI): pyproject.toml | $(VENV)/.created
	@$(install) -e '.[dev,cuda-compile$(addprefix $(COMMA),$(MPI))]'
	@touch $@ $(VENV)/.core-$(MPI)
