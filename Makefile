# make demo    from a bare machine to the result table
# make test    the same environment, and every test this machine can run
# make test-oldest  the same with the oldest torch and numpy that pyproject.toml allows, in .venv-oldest
#              (Python 3.11 or 3.12; 5 GB); TESTS="tests/pretrain/losses" for some of the tests
# make test-bare  both README commands on a bare Debian (bookworm, trixie); root, debootstrap, 7 GB
# make bundle  with network, for a machine without: all wheels, in bundle/ (3.1 GB; see OPTIONS=--help);
#              OPTIONS="--python 3.12 --platform manylinux_2_28_aarch64 --without-torch"
# make test-bundle  bundle/ installed with the network closed, and a tiny pipeline run there (6 GB)
# make test-own-environment  the README's lines over a torch that is there already (0.5 GB)
# make test-containers  the images of containers/ linted, built, run; root, debootstrap, buildah, 13 GB
# make gpu-wheels  with network, for a machine without: what make gpu-check needs, in .whl
# make gpu-check  is this GPU machine sound, and how fast is it: one page, and JSON, in MINUTES (8)
# make lint type    what CI checks besides
# make docs    the documentation site, in build/docs
# make test-faults  the pipeline killed, starved and damaged, at length; CI runs a short form

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
TESTS ?=
MINUTES ?= 8
OPTIONS ?=

.PHONY: env demo test test-oldest test-bare bundle test-bundle test-own-environment test-containers
.PHONY: gpu-wheels gpu-check test-faults lint type check docs
.DELETE_ON_ERROR:

env: $(STAMP)

# The stamp is written last, so an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt tools/setup_env.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/setup_env.sh
	@touch $@

demo: env
	@$(BIN)/python tools/make_digits.py
	@$(BIN)/python tools/run_pipeline.py run --config-file configs/pipeline/demo.yaml

# constraints.txt with the lower bounds of torch, torchvision and numpy in the place of their pins
$(OLDEST)/.installed: pyproject.toml constraints.txt tools/setup_env.sh
	@mkdir -p build
	@sed -nE 's/^ *"(torch|torchvision|numpy)>=([^",]+)".*/\1==\2/p' pyproject.toml >build/oldest.txt
	@grep -vE '^(torch|torchvision|numpy)==' constraints.txt >>build/oldest.txt
	@PYTHON="$(PYTHON)" VENV="$(OLDEST)" CONSTRAINTS=build/oldest.txt sh tools/setup_env.sh
	@touch $@

# One thread each: OpenMP's threads wait actively for each other. Two thousand processes read the code:
# compiled once, whatever the user's own setting is.
PYTEST := -m pytest -n auto --maxprocesses 4 --no-loadscope-reorder
ALONE := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

test: env
	@$(ALONE) $(BIN)/python $(PYTEST) $(TESTS)

test-oldest: $(OLDEST)/.installed
	@$(ALONE) $(OLDEST)/bin/python $(PYTEST) $(TESTS)

test-bare:
	@sh tools/test_bare.sh

bundle: env
	@$(BIN)/python tools/make_bundle.py $(OPTIONS)

test-bundle: env
	@PYTHON="$(BIN)/python" sh tools/test_bundle.sh

test-own-environment: env
	@PYTHON="$(BIN)/python" sh tools/test_own_environment.sh

test-containers:
	@PYTHON="$(PYTHON)" sh tools/test_containers.sh

gpu-wheels: env
	@sh benchmarks/gpu_check/prepare.sh

# Without `env`: it uses the environment that is there, or the machine's own torch and .whl
gpu-check:
	@bash benchmarks/gpu_check/check.sh --minutes "$(MINUTES)"

lint: env
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: env
	@$(BIN)/mypy

check: lint type test

docs: env
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

test-faults: env
	@FAULT_KILLS=20 $(BIN)/python -m pytest tests/faults
