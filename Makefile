# `make bench` and `make test` set up .venv by themselves: with uv where it is present, else with python3 -m venv.

PYTHON := python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

ifneq ($(UV),)
create = $(UV) venv --quiet --clear --python $(PYTHON) $(VENV)
install = $(UV) pip install --quiet --python $(BIN)/python
else
create = $(PYTHON) -m venv --clear $(VENV)
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: bench test reference clean

bench: $(VENV)/.core
	@$(BIN)/epbench run --suite main

reference: $(VENV)/.core
	@mkdir -p results/reference
	@$(BIN)/epbench run --suite reference --json results/reference/h800.json

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamps name what is installed; a change of pyproject.toml installs again.
$(VENV)/.created:
	@echo "setting up $(VENV)"
	@$(create)
	@touch $@

$(VENV)/.core: pyproject.toml | $(VENV)/.created
	@$(install) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.created
	@$(install) -e '.[dev]'
	@touch $@ $(VENV)/.core
