# Everything runs in .venv, which the targets create and keep up to date themselves.

# Python 3.11 or newer. Left out, python3 is taken, or a later name of `candidates` where it
# is too old.
PYTHON ?= python3
# Processes that run tests. Each uses several threads while it compiles and about 1 GB.
PYTEST_WORKERS ?= 2
# More arguments for the program behind a target: make test ARGS="-k stack -x"
ARGS ?=
# What `make bench` measures: a file of bench/.
BENCH ?= stack_overhead
CONFIG ?= configs/digits_wrn16_4_x4.py
WORKDIR ?= runs/digits

ifeq ($(origin PYTHON),file)
candidates := $(PYTHON) python3.13 python3.12 python3.11
else
candidates := "$(PYTHON)"
endif
venv_python := .venv/bin/python
pip := $(venv_python) -m pip --disable-pip-version-check
inputs := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-all lint format bench clean

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12] [ARGS=...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
	  printf '  %-11s %s\n' "$$name" "$$text"; done

quickstart: .venv/.installed ## install, then train four small networks on handwritten digits
	$(venv_python) main.py --config="$(CONFIG)" --workdir="$(WORKDIR)" $(ARGS)
	@echo
	@echo "The run lies in $(WORKDIR):"
	@echo "  numbers   $(WORKDIR)/metrics.jsonl"
	@echo "  curves    $(venv_python) -m tensorboard.main --logdir '$(WORKDIR)'"
	@echo "  evaluate  $(venv_python) main.py --mode=eval --workdir='$(WORKDIR)'"

test: .venv/.installed-test ## run the tests, without the slow ones
	$(venv_python) -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: .venv/.installed-test ## run every test
	$(venv_python) -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder -m "" $(ARGS)

lint: .venv/.installed-test ## check style and format
	$(venv_python) -m ruff check $(ARGS)
	$(venv_python) -m ruff format --check

format: .venv/.installed-test ## repair style and format
	$(venv_python) -m ruff check --fix $(ARGS)
	$(venv_python) -m ruff format

bench: .venv/.installed ## measure: BENCH=stack_overhead, augment, data, remat, scaling, chaos, compile_cache
	$(venv_python) -m bench.$(BENCH) $(ARGS)

clean: ## remove the environment and what tests and tools left; runs/ stays
	rm -rf .venv .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `python` of the environment, not the folder: it is missing where a creation broke off.
$(venv_python):
	@found=; newest=; for p in $(candidates); do \
	  v=$$("$$p" -c 'import sys; print(sys.version_info[0] * 100 + sys.version_info[1])' 2>/dev/null) \
	    || continue; \
	  if [ "$$v" -ge 314 ]; then newest=$${newest:-$$p}; \
	  elif [ "$$v" -ge 311 ]; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ] && [ -n "$$newest" ]; then found=$$newest; \
	  echo "note: $$newest is newer than the tested 3.11 to 3.13 and has no TensorFlow"; fi; \
	if [ -z "$$found" ]; then \
	  echo "jaxsplit needs Python 3.11 or newer, found none as:" $(candidates) \
	    "(make PYTHON=... names another)" >&2; exit 1; fi; \
	echo "Creating .venv with $$("$$found" --version)"; \
	"$$found" -m venv --clear .venv || { rm -rf .venv; exit 1; }

.venv/.installed: $(inputs) | $(venv_python)
	@echo "Installing jaxsplit and its dependencies into .venv: some minutes and about 3 GB"
	@$(pip) install --quiet --editable . --constraint constraints.txt
	@touch $@

.venv/.installed-test: $(inputs) | $(venv_python)
	@echo "Installing jaxsplit, its dependencies and the test tools into .venv: some minutes and about 3 GB"
	@$(pip) install --quiet --editable '.[test]' --constraint constraints.txt
	@touch .venv/.installed $@
