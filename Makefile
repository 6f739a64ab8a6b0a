# The interface of the project: `make all` and `make test` on a fresh machine, nothing to install by hand.

PROFILE     ?= quick
DATA_SOURCE ?= auto
VENV        ?= 1
PYTHON      ?= python3

# A task is a folder that holds a percent script of its own name.
TASKS := $(sort $(foreach d,$(wildcard *task*),$(if $(wildcard $(d)/$(d).py),$(d))))

ifeq ($(VENV),0)
  PY    := $(PYTHON)
  READY :=
else
  PY    := .venv/bin/python
  READY := .venv/ready
endif

# Idle Dask processes profile themselves up to a hundred times per second (8 % of a core); these two make it 2 %.
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED := False
export DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL := 1s
# A machine that slept for some minutes has not lost its workers.
export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL := 1 day
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
FLAGS := --profile $(PROFILE) --data-source $(DATA_SOURCE) $(if $(DATA),--data "$(DATA)")

.DEFAULT_GOAL := help
.PHONY: help all test data pdf site score independent results badges publish reword check bench colab-check clean distclean $(TASKS)

help:  ## this text
	@echo "usage: make <target> [PROFILE=smoke|quick|standard|full] [DATA_SOURCE=auto|official|standin]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  <task>      one task: data, executed notebook, weights and PDF in build/PROFILE/<task>/"
	@for task in $(TASKS); do echo "                $$task"; done
	@echo
	@echo "  PROFILE      smoke (seconds, for tests), quick (CPU, minutes), standard (CPU, minutes to hours"
	@echo "               per task), full (every event of the official files, one GPU)"
	@echo "  DATA_SOURCE  auto: official files if they are on disk, else simulated stand-in events;"
	@echo "               official: fetch what the profile needs; standin: simulate"
	@echo "  VENV=0 PYTHON=python3   use an interpreter that already has the packages"

all: $(READY)  ## environment, data, every notebook executed, weights, PDFs, book.pdf (build/PROFILE/)
	@$(PY) -m tools.regenerate $(FLAGS)

test: $(READY) check  ## the test suite, after make check
	@$(PY) -m pytest -n auto --no-loadscope-reorder

data: $(READY)  ## only the data of every task
	@$(PY) -m tools.regenerate $(FLAGS) --stage data

$(TASKS): $(READY)
	@$(PY) -m tools.regenerate $(FLAGS) $@

pdf: $(READY)  ## write the PDFs of the executed notebooks again
	@$(PY) -m tools.regenerate $(FLAGS) --stage pdf

site: $(READY)  ## the published notebooks as a static site, to read in a browser: build/site/index.html
	@$(PY) -m tools.site

score: $(READY)  ## score an independent sample: TASK=common_task1 DATA=a.hdf5[,b.hdf5] [MODEL=...] [OUT=...]
	@$(PY) -m tools.score $(TASK) --data "$(DATA)" $(if $(MODEL),--model $(MODEL)) $(if $(OUT),--out "$(OUT)") $(if $(filter-out 0,$(PREDICTIONS_ONLY)),--predictions-only)

publish: $(READY)  ## promote complete runs of PROFILE into the task folders and weights/ [TASK=...]
	@$(PY) -m tools.publish --profile $(PROFILE) $(TASK)

reword: $(READY)  ## today's texts into published notebooks whose code is the same [TASK=...]
	@$(PY) -m tools.reword $(TASK)

independent: $(READY)  ## published models on newly simulated events of another seed [TASK=...] [PROFILE=...]
	@$(PY) -m tools.independent $(TASK) $(if $(filter-out file,$(origin PROFILE)),--profile $(PROFILE))

results: $(READY)  ## results table of README.md and model cards, from weights/*/metrics.json
	@$(PY) -m tools.results_table

badges: $(READY)  ## Colab badges in the results table of README.md: REPO=owner/name
	@$(PY) -m tools.badges "$(REPO)"

check: $(READY)  ## published notebooks, weights, tables fit together; code style [STRICT=1: nothing stale]
	@$(PY) -m tools.check_notebooks $(if $(filter-out 0,$(STRICT)),--strict)

bench: $(READY)  ## speed ratios: simulation, loading, training, inference
	@$(PY) -m benchmarks

colab-check: $(READY)  ## every notebook alone, with Colab's packages (3 GB): PYTHON=python3.13 [TASK=...]
	@$(PY) -m tools.colab_check $(if $(filter command environment,$(origin PYTHON)),--python $(PYTHON)) $(TASK)

clean:  ## remove build/ (unpublished runs and training states, too) and caches; keeps downloads and .venv
	@test ! -d build || find build -mindepth 1 -maxdepth 1 -not -name engines -not -name colab-env -exec rm -rf {} +
	@test ! -d data/files/cache || find data/files/cache -mindepth 1 -maxdepth 1 -not -name given -exec rm -rf {} +
	@rm -rf .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove build/, data/files (every download) and .venv; E2E_DATA_DIR stays
	@rm -rf build data/files .venv *.egg-info

# Made anew only when the requirements change; a broken attempt leaves no `ready` behind. One without pip, as where
# Debian's python3-venv was missing, is begun again.
.venv/ready: requirements.txt requirements-simulation.txt pyproject.toml
	@echo "setting up .venv (some minutes, once) ..."
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "error: CPython 3.11, 3.12 or 3.13 is needed, found " + sys.version.split()[0] + "; name one with PYTHON=...")'
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
