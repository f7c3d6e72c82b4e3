# Every target is listed by `make help`, from the text after `##`.
# Written for GNU Make 3.81 (macOS) and newer; targets may run in parallel (make -j).

PYTHON ?= python3
JUPYTER_PORT ?= 8888
JUPYTER_IP ?= 127.0.0.1
SERVE_IP ?= 127.0.0.1
SERVE_PORT ?= 8000
SMALL := contract or unit or hub or own
LARGE := browser or recipes
EVERYTHING := $(SMALL) or $(LARGE)
MARK ?= $(EVERYTHING)
# --held leaves out what a current record proves: for all tests together, or where it is asked for.
HELD ?=

# Paths mean what they mean in the shell that called make. `make -C` leaves its folder, which is in PWD until a
# recipe's shell sets that anew; without -C it is the current one, whatever PWD says (a program may have called).
CALL := $(shell { tr '\0' ' ' < /proc/$$PPID/cmdline || ps -o args= -p $$PPID; } 2>/dev/null)
FROM := $(or $(if $(filter -C% -%C --directory%,$(CALL)),$(value PWD)),$(CURDIR))
# A path with its spaces escaped, for functions that take several.
one = $(subst $(empty) ,\ ,$(1))
ifneq ($(FROM),$(CURDIR))
typed = $(if $(filter /% ~/%,$(firstword $(1))),$(subst ~/,$(HOME)/,$(1)),$(FROM)/$(1))
there = $(wildcard $(call one,$(typed)))
# What is there, seen from that shell; else it stays: a recipe's name, a Hub id, a command, or a mistake.
named = $(if $(1),$(if $(call there,$(1)),$(typed),$(1)))
placed = $(if $(1),$(typed))
quoted = '$(subst ','\'',$(1))'
inside = $(subst $(CURDIR)/,,$(shell cd $(call quoted,$(1)) 2>/dev/null && pwd -P))
override NB := $(call named,$(NB))
override FOLDER := $(if $(FOLDER),$(or $(call inside,$(call named,$(FOLDER))),$(FOLDER)))
override DATA := $(call named,$(DATA))
override RUN := $(call named,$(RUN))
override COOKBOOK_RUNS := $(call placed,$(COOKBOOK_RUNS))
override COOKBOOK_OFFLINE := $(call placed,$(COOKBOOK_OFFLINE))
override COOKBOOK_INSTALL := $(call placed,$(COOKBOOK_INSTALL))
override PIP_CONF := $(call placed,$(PIP_CONF))
override EXTRA_CA := $(call placed,$(EXTRA_CA))
override PYTHON := $(if $(findstring /,$(PYTHON)),$(call named,$(PYTHON)),$(PYTHON))
override POETRY := $(if $(findstring /,$(POETRY)),$(call named,$(POETRY)),$(POETRY))
endif

# Notebook folder -> the dependency group it needs.
FOLDERS := 01-Full-Fine-Tuning 02-PEFT 03-Instruction-Tuning 04-Reasoning-Tuning 05-Export-and-Serving \
	06-Preference-Tuning
GROUP_01-Full-Fine-Tuning := full-finetuning
GROUP_02-PEFT := peft
GROUP_03-Instruction-Tuning := instruction-tuning
GROUP_04-Reasoning-Tuning := reasoning
GROUP_05-Export-and-Serving := serving
GROUP_06-Preference-Tuning := preference
GROUPS := $(foreach folder,$(FOLDERS),$(GROUP_$(folder))) sweep dev

# One file per installed group; newer than the lock means that nothing is to be done.
# An image has `.venv` outside the working tree, which is mounted: in COOKBOOK_INSTALL.
VENV := $(if $(COOKBOOK_INSTALL),$(COOKBOOK_INSTALL)/).venv
STAMP := $(VENV)/.installed-
DEPENDENCIES := pyproject.toml poetry.lock
BIN := $(VENV)/bin
VENV_PYTHON := $(BIN)/python
NO_PYTHON = There is no $(PYTHON). Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=python3.12
RUN_POETRY = command -v "$(PYTHON)" >/dev/null || { echo "$(NO_PYTHON)" >&2; exit 2; }; \
	"$(PYTHON)" scripts/poetry.py
RUNS = $(or $(COOKBOOK_RUNS),runs)

# The groups that NB (a notebook) or FOLDER needs; core alone for a notebook elsewhere.
group_of = $(strip $(foreach folder,$(FOLDERS),$(if $(findstring $(folder)/,$(1)/),$(GROUP_$(folder)))))
# Comparing methods on a GPU searches their learning rates, as `make sweep` does.
SEARCHING = $(if $(findstring PEFT-Methods-Compared,$(NB)),$(STAMP)sweep)
NB_STAMP = $(SEARCHING) $(if $(NB),$(if $(wildcard $(call one,$(NB))),$(STAMP)$(or $(call group_of,$(NB)),core)))
FOLDER_STAMPS = $(if $(FOLDER),$(if $(call group_of,$(FOLDER)),$(STAMP)$(call group_of,$(FOLDER)) $(STAMP)dev),$(STAMP)all)

SOURCES := cookbook scripts tests
NOTEBOOKS = $(sort $(wildcard $(addsuffix /*.ipynb,$(FOLDERS))))

override FOLDER := $(patsubst %/,%,$(FOLDER))
export NB FOLDER MARK JUPYTER_PORT JUPYTER_IP RECIPE PROFILE STEPS WORK ROUNDS
export BUDGET
export DATA MODEL SET
export RUN FORMAT QUANT REPO PORT LOG SERVE_PORT
# Set on many servers and in many containers: Python would then compile torch, transformers and trl
# anew at every start, and each notebook would begin some seven seconds later.
unexport PYTHONDONTWRITEBYTECODE
# It leads a virtual environment's Python to another one's library, which ends it.
unexport PYTHONHOME
# Libraries read their own files without naming an encoding; cron and slim containers have no locale.
export PYTHONUTF8 := 1
export COOKBOOK_FROM := $(FROM)
# Only what was set: an empty one is none.
ifneq ($(FROM),$(CURDIR))
export COOKBOOK_RUNS COOKBOOK_OFFLINE COOKBOOK_INSTALL PIP_CONF EXTRA_CA POETRY
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-full-finetuning install-peft install-instruction-tuning \
	install-reasoning install-serving install-preference install-sweep install-dev install-all lock offline quickstart notebook notebooks sweep check-data chat export serve push test test-all stale \
	test-contract test-unit test-hub test-recipes lint format jupyter script record gallery gpu-check \
	audit bench docker-build docker-up docker-serve docker-down docker-shell docker-logs docker-test clean \
	check-notebook check-folder check-docker check-caches

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-28s %s\n", $$1, $$2 }' Makefile

# --- Installing: adds to .venv, removes nothing ---------------------------------------------

$(STAMP)core: $(DEPENDENCIES)
	@$(RUN_POETRY) install
	@touch $@

$(STAMP)all: $(DEPENDENCIES)
	@$(RUN_POETRY) install $(addprefix --with ,$(GROUPS))
	@touch $(addprefix $(STAMP),core $(GROUPS)) $@

$(STAMP)%: $(DEPENDENCIES)
	@$(RUN_POETRY) install --with $*
	@touch $(STAMP)core $@

install: $(STAMP)core ## Install the core packages into .venv
install-full-finetuning: $(STAMP)full-finetuning ## Install core and what 01-Full-Fine-Tuning needs
install-peft: $(STAMP)peft ## Install core and what 02-PEFT needs
install-instruction-tuning: $(STAMP)instruction-tuning ## Install core and what 03-Instruction-Tuning needs
install-reasoning: $(STAMP)reasoning ## Install core and what 04-Reasoning-Tuning needs
install-serving: $(STAMP)serving ## Install core and what 05-Export-and-Serving needs
install-preference: $(STAMP)preference ## Install core and what 06-Preference-Tuning needs
install-sweep: $(STAMP)sweep ## Install core and what `make sweep` needs beside a folder's group
install-dev: $(STAMP)dev ## Install core and the tools for tests and code style
install-all: $(STAMP)all ## Install core and every group

lock: ## Write poetry.lock anew from pyproject.toml
	@$(RUN_POETRY) lock

# --- Running --------------------------------------------------------------------------------

offline: $(STAMP)core ## Build the embedded models and data sets (once) into .offline/
	@$(VENV_PYTHON) -m cookbook.offline

quickstart: $(STAMP)peft ## Fine-tune a language model now and print how much better it got
	@$(VENV_PYTHON) -m cookbook.offline
	@$(VENV_PYTHON) -m cookbook.commands.run 02-PEFT/Falcon-7B-LoRA.ipynb

notebook: check-notebook $(NB_STAMP) ## Execute one notebook: make notebook NB=02-PEFT/Falcon-7B-LoRA.ipynb
	@$(VENV_PYTHON) -m cookbook.commands.run "$$NB"

# NB's group where one is named, else that of the recipe that is taken without.
check-data: $(if $(NB),check-notebook $(NB_STAMP),$(STAMP)peft) ## Look through data before training: make check-data DATA=my.jsonl (NB=, MODEL=)
	@$(VENV_PYTHON) -m cookbook.commands.doctor "$$DATA" --nb "$$NB" --model "$$MODEL"

notebooks: check-folder $(FOLDER_STAMPS) offline ## Execute and check all notebooks, or those of FOLDER=02-PEFT
	@$(VENV_PYTHON) -m pytest -m recipes tests/recipes $(if $(FOLDER),-k "$$FOLDER")

# --- Using a finished run (RUN=runs/02-PEFT/Falcon-7B-LoRA/cpu; without it the newest) ------

chat: $(STAMP)serving ## Talk to a finished run in the terminal (RUN=, else the newest)
	@$(VENV_PYTHON) -m cookbook.commands.chat "$$RUN"

export: $(STAMP)serving ## Merge, convert and check a run's model (RUN=, FORMAT=safetensors|gguf|adapter, QUANT=)
	@$(VENV_PYTHON) -m cookbook.commands.export "$$RUN" $(if $(FORMAT),--format "$$FORMAT") $(if $(QUANT),--quant "$$QUANT")

serve: $(STAMP)serving ## Serve runs with an OpenAI-compatible API on 127.0.0.1 (RUN=one,another, QUANT=, PORT=8000, LOG=)
	@exec $(VENV_PYTHON) -m cookbook.commands.serve "$$RUN" --host "$(SERVE_IP)" \
		$(if $(QUANT),--quant "$$QUANT") $(if $(PORT),--port "$$PORT") $(if $(LOG),--log "$$LOG")

push: $(STAMP)serving ## Upload a run's model to the Hub, private (RUN=, REPO=me/name, FORMAT=, PUBLIC=1)
	@$(VENV_PYTHON) -m cookbook.commands.push "$$RUN" --repo "$$REPO" $(if $(FORMAT),--format "$$FORMAT") \
		$(if $(QUANT),--quant "$$QUANT") $(if $(PUBLIC),--public)

sweep: check-notebook $(NB_STAMP) $(STAMP)sweep ## Try settings on rows that no score uses: make sweep NB=... SET="learning_rate=1e-4,3e-4"
	@$(VENV_PYTHON) -m cookbook.commands.sweep "$$NB" "$$SET"

script: check-notebook $(NB_STAMP) ## Write one notebook as a script: make script NB=02-PEFT/Falcon-7B-LoRA.ipynb
	@$(BIN)/jupyter nbconvert --to python --output-dir "$(RUNS)/scripts" "$$NB"

# JupyterLab looks for no update of itself: its version comes from the lock.
NO_UPDATES := jupyterlab.handlers.announcements.NeverCheckForUpdate
# Jupyter reads JUPYTER_TOKEN; where that is empty it makes a token and prints the URL with it.
jupyter: $(STAMP)core check-caches ## Open JupyterLab on 127.0.0.1 (JUPYTER_PORT, JUPYTER_TOKEN)
	@exec $(BIN)/jupyter lab --no-browser --ip="$$JUPYTER_IP" --port="$$JUPYTER_PORT" \
		--LabApp.check_for_updates_class=$(NO_UPDATES) \
		--ServerApp.root_dir="$(CURDIR)" $(if $(filter 0,$(shell id -u)),--allow-root)

record: $(STAMP)all offline ## Run the recipes over seeds and rewrite results/ and its tables
	@$(VENV_PYTHON) -m cookbook.commands.record

gallery: $(STAMP)core ## Render executed notebooks to HTML with an index page
	@$(VENV_PYTHON) -m scripts.gallery

# --- Containers -----------------------------------------------------------------------------

# The image's user gets the numbers of whoever builds it, so that files in the mounted tree are theirs.
USER_UID ?= $(or $(filter-out 0,$(shell id -u)),1000)
USER_GID ?= $(or $(filter-out 0,$(shell id -g)),1000)
# The service that reserves the GPUs starts only where Docker can hand them over.
SERVICE ?= $(if $(findstring nvidia,$(shell docker info --format '{{.Runtimes}}' 2>/dev/null)),jupyter,jupyter-cpu)
DOCKER_TARGETS := docker-build docker-up docker-serve docker-down docker-shell docker-logs docker-test
$(DOCKER_TARGETS): export USER_UID := $(USER_UID)
$(DOCKER_TARGETS): export USER_GID := $(USER_GID)

# pip's index goes into the build as a secret; PIP_CONF names another file, EXTRA_CA a certificate.
docker-build: check-docker ## Build the image (TARGET=prod, GROUP=peft, BASE_IMAGE=, USER_UID=)
	@umask 077; made=$$(mktemp); trap 'rm -f "$$made"' EXIT; \
		"$(PYTHON)" -m scripts.pip_conf > "$$made" && \
		EXTRA_CA_DIGEST="$${EXTRA_CA:+$$(cksum < "$$EXTRA_CA")}" && export EXTRA_CA_DIGEST && \
		PIP_CONF="$${PIP_CONF:-$$made}" docker compose build $(BUILD_OPTIONS) $(SERVICE)

docker-up: docker-build ## Start JupyterLab in a container and print its URL (JUPYTER_PORT, JUPYTER_TOKEN)
	@docker compose up --detach --wait $(SERVICE) || { docker compose logs --tail 20 $(SERVICE); exit 1; }
	@port=$$(docker compose port $(SERVICE) 8888) && docker compose exec -T $(SERVICE) jupyter server list \
		| sed -n "s#^http://[^ ]*?token=\([^ ]*\).*#JupyterLab: http://$$port/lab?token=\1#p"

# Without COOKBOOK_API_KEY the server makes a key, and says it in its log.
docker-serve: docker-build ## Serve a finished run from a container, on 127.0.0.1 (RUN=, QUANT=, SERVE_PORT=)
	@docker compose --profile serve up --detach --wait serve || { docker compose logs --tail 20 serve; exit 1; }
	@docker compose logs --no-log-prefix serve | grep '^Key' | tail -1
	@echo "API: http://127.0.0.1:$(SERVE_PORT)/v1"

docker-down: check-docker ## Stop the containers; keeps the volume with downloaded models
	@docker compose --profile cpu --profile serve down

docker-shell: check-docker ## Open a shell in the running container
	@docker compose exec $(SERVICE) bash

docker-logs: check-docker ## Follow the container's log
	@docker compose logs --follow $(SERVICE)

docker-test: $(STAMP)all offline check-docker ## Build the images and use them for real, a browser included
	@$(VENV_PYTHON) -m pytest -m containers tests/containers

# --- Checking -------------------------------------------------------------------------------

# Two at a time where each test uses little, each on one core: threads of two that share the cores wait
# for each other, many times as long as they compute. A recipe uses all cores.
SMALL_TESTS = OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 -m "$(SMALL)"
# What a current record proves is left out; one current recipe is executed all the same.
test: $(STAMP)all offline ## Run the tests of all that changed since it was recorded (MARK= picks markers)
ifeq ($(MARK),$(EVERYTHING))
	@$(SMALL_TESTS) --held
	@$(VENV_PYTHON) -m pytest -m "$(LARGE)" --held
else
	@$(VENV_PYTHON) -m pytest -m "$$MARK" $(HELD)
endif

test-all: $(STAMP)all offline ## Run everything there is, whatever records hold (hours)
	@$(SMALL_TESTS)
	@$(VENV_PYTHON) -m pytest -m "$(LARGE) or slow or containers or gpu"

stale: $(STAMP)core ## List what changed since each recipe, image and kill was recorded
	@$(VENV_PYTHON) -m tests.proofs

test-contract: $(STAMP)all ## Check the rules for notebooks, lock, docs and package (seconds)
	@$(VENV_PYTHON) -m pytest -n 2 -m "contract and not unit" tests/contract tests/install

test-unit: $(STAMP)all offline ## Test the cookbook package
	@$(VENV_PYTHON) -m pytest -m unit

test-hub: $(STAMP)all offline ## Walk through the GPU profiles on the CPU, against a loopback Hub
	@$(VENV_PYTHON) -m pytest -m hub

test-recipes: notebooks ## The same as make notebooks

# Where nothing can be installed: python3 -m tests.gpu.check, with any Python that has the packages.
gpu-check: $(STAMP)all ## Measure the recipes at full size on this machine's GPU (RECIPE=, PROFILE=, BUDGET=)
	@$(VENV_PYTHON) -m tests.gpu.check $(if $(RECIPE),--recipe $$RECIPE) \
		$(if $(PROFILE),--profile $$PROFILE) $(if $(STEPS),--steps "$$STEPS") \
		$(if $(BUDGET),--budget "$$BUDGET")

bench: $(STAMP)all offline ## Time our training against defaults and peers, side by side (WORK=, ROUNDS=)
	@$(VENV_PYTHON) -m tests.bench $$WORK $(if $(ROUNDS),--rounds "$$ROUNDS")

AUDIT_OPTIONS ?=
audit: $(STAMP)dev ## Look up known vulnerabilities of what poetry.lock pins (asks PyPI's database)
	@made=$$(mktemp); trap 'rm -f "$$made"' EXIT; $(VENV_PYTHON) scripts/locked.py > "$$made" && \
		$(BIN)/pip-audit --no-deps --disable-pip $(AUDIT_OPTIONS) -r "$$made"

lint: $(STAMP)all ## Check style and types of Python files and notebooks
	@$(BIN)/black --check $(SOURCES)
	@$(BIN)/isort --check $(SOURCES)
	@$(BIN)/flake8 $(SOURCES)
	@$(BIN)/mypy $(SOURCES)
ifneq ($(NOTEBOOKS),)
	@$(BIN)/nbqa black --check $(NOTEBOOKS)
	@$(BIN)/nbqa isort --check $(NOTEBOOKS)
	@$(BIN)/nbqa flake8 $(NOTEBOOKS)
	@$(BIN)/nbstripout --verify $(NOTEBOOKS)
endif

format: $(STAMP)all ## Rewrite Python files and notebooks in the house style
	@$(BIN)/isort $(SOURCES)
	@$(BIN)/black $(SOURCES)
ifneq ($(NOTEBOOKS),)
	@$(BIN)/nbqa isort $(NOTEBOOKS)
	@$(BIN)/nbqa black $(NOTEBOOKS)
	@$(BIN)/nbstripout $(NOTEBOOKS)
endif

clean: ## Remove caches (keeps .venv, .offline and runs)
	@rm -rf .mypy_cache .pytest_cache dist *.egg-info
	@find $(SOURCES) $(FOLDERS) \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune \
		-exec rm -rf {} +

check-notebook:
	@test -n "$$NB" || { echo "Name a notebook: make $(firstword $(MAKECMDGOALS)) NB=02-PEFT/Falcon-7B-LoRA.ipynb" >&2; exit 2; }
	@test -f "$$NB" || { echo "There is no notebook $$NB. Here are: $(NOTEBOOKS)" >&2; exit 2; }

check-docker:
	@docker compose version >/dev/null 2>&1 || { echo "Docker with the compose plugin (v2.24 or newer) is needed; install it: https://docs.docker.com/engine/install" >&2; exit 2; }
	@docker info >/dev/null 2>&1 || { echo "Docker's engine does not answer. Start it (systemctl start docker), or join the group docker." >&2; exit 2; }

check-caches: $(STAMP)core
	@$(VENV_PYTHON) -m cookbook.paths

check-folder:
ifneq ($(FOLDER),)
	@test -n "$(wildcard $(FOLDER)/*.ipynb)" || { echo "There is no notebook in FOLDER=$$FOLDER. Folders: $(FOLDERS)" >&2; exit 2; }
endif
