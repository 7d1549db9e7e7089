# Everything runs in .venv, which the targets create and keep up to date themselves.

# Left out, the newest of the tested Pythons is taken: 3.12 and later have a faster jax than 3.11.
PYTHON ?=
VENV ?= .venv
# Processes that run tests. Each uses several threads while it compiles and about 1 GB.
PYTEST_WORKERS ?= 2
# More arguments for the program behind a target: make test ARGS="-k stack -x"
ARGS ?=
# What `make bench` measures: a file of bench/.
BENCH ?= stack_overhead
CONFIG ?= configs/digits_wrn16_4_x4.py
WORKDIR ?= runs/digits

candidates := $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3)
venv_python := $(VENV)/bin/python
pip := $(venv_python) -m pip --disable-pip-version-check
inputs := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-all lint format bench clean

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12] [VENV=.venv] [ARGS=...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
	  printf '  %-11s %s\n' "$$name" "$$text"; done

quickstart: $(VENV)/.installed ## install, train four small networks on handwritten digits, report
	$(venv_python) main.py --config="$(CONFIG)" --workdir="$(WORKDIR)" $(ARGS)
	@echo
	$(venv_python) main.py --mode=report --workdir="$(WORKDIR)"
	@echo
	@echo "The run lies in $(WORKDIR):"
	@echo "  report    $(WORKDIR)/report.html, to open in a browser"
	@echo "  numbers   $(WORKDIR)/metrics.jsonl"
	@echo "  curves    $(venv_python) -m tensorboard.main --logdir '$(WORKDIR)'"
	@echo "  evaluate  $(venv_python) main.py --mode=eval --workdir='$(WORKDIR)'"

test: $(VENV)/.installed-test ## run the tests, without the slow ones
	$(venv_python) -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(VENV)/.installed-test ## run every test
	$(venv_python) -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder -m "" $(ARGS)

lint: $(VENV)/.installed-test ## check style, format and types
	$(venv_python) -m ruff check $(ARGS)
	$(venv_python) -m ruff format --check
	$(venv_python) -m pyrefly check --python-interpreter-path $(venv_python)

format: $(VENV)/.installed-test ## repair style and format
	$(venv_python) -m ruff check --fix $(ARGS)
	$(venv_python) -m ruff format

bench: $(VENV)/.installed ## measure: BENCH=peers, train_step, device, tpu, compiler_options, stack_overhead ...
	$(venv_python) -m bench.$(BENCH) $(ARGS)

clean: ## remove the environment and what tests and tools left; runs/ stays
	rm -rf .venv .venv-* .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `python` of the environment, not the folder: it is missing where a creation broke off. A candidate
# that cannot start, or cannot make environments, is skipped; pyenv's start where they are asked for.
probe := import ensurepip, sys, venv; \
  print(sys.version_info[0] * 100 + sys.version_info[1], sys.executable)
$(venv_python):
	@found=; newest=; all=$$(pyenv versions --bare 2>/dev/null | paste -sd: -); \
	for p in $(candidates); do \
	  v=$$("$$p" -c '$(probe)' 2>/dev/null) \
	    || v=$$(PYENV_VERSION="$$all" "$$p" -c '$(probe)' 2>/dev/null) || continue; \
	  path=$${v#* }; v=$${v%% *}; \
	  if [ "$$v" -ge 314 ]; then newest=$${newest:-$$path}; \
	  elif [ "$$v" -ge 311 ]; then found=$$path; break; fi; \
	done; \
	if [ -z "$$found" ] && [ -n "$$newest" ]; then found=$$newest; \
	  echo "note: $$newest is newer than the tested 3.11 to 3.13 and has no TensorFlow"; fi; \
	if [ -z "$$found" ]; then \
	  echo "jaxsplit needs Python 3.11 or newer that can make environments, found none as:" \
	    $(candidates) "(make PYTHON=... names another)" >&2; exit 1; fi; \
	echo "Creating $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv --clear "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }

$(VENV)/.installed: $(inputs) | $(venv_python)
	@echo "Installing jaxsplit and its dependencies into $(VENV): some minutes and about 3 GB"
	@$(pip) install --quiet --editable . --constraint constraints.txt
	@touch $@

$(VENV)/.installed-test: $(inputs) | $(venv_python)
	@echo "Installing jaxsplit, its dependencies and the test tools into $(VENV): some minutes and about 3 GB"
	@$(pip) install --quiet --editable '.[test]' --constraint constraints.txt
	@touch $(VENV)/.installed $@
