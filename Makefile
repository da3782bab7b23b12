# Two commands: `make demo` and `make test`. All targets set up what they need below this directory, once.
SHELL := /bin/bash
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup setup-gpu demo smollm2 test test-serve test-bfcl test-cluster fast lint format wheel clean venv-tf4 venv-serve venv-bfcl

help:
	@echo "make demo   the whole job on real text: tokenise, pack, three stages, export, evaluate"
	@echo "make test   linters, types and all tests"
	@echo "make smollm2  a real model from 8,192 to 163,840 tokens; run on two and on four GPUs (SMOLLM2_ARGS=--small: its path alone, on a laptop)"
	@echo "make test-serve  what exports are served with, in an environment of its own"
	@echo "make test-bfcl  our scorer of function calls against the benchmark's own, in an environment of its own"
	@echo "make test-cluster  runs through a SLURM of two nodes on this machine, and over two networks (root; apt: slurm-wlm munge)"
	@echo "make fast   the tests that start no processes and take no time: under a minute"
	@echo "make format let ruff mend what it can"
	@echo "make lint   linters and types"
	@echo "make wheel  the package as dist/alia_ctx-VERSION-py3-none-any.whl"
	@echo "make setup  only the virtual environment in .venv"
	@echo "make setup-gpu  the same with the releases that GPUs were measured with, and FlashAttention 4"
	@echo "make clean  remove what the demo made; .venv stays"

setup: .venv/ready

.venv/ready: scripts/setup.sh pyproject.toml constraints.txt launch/constraints-gpu.txt
	@bash scripts/setup.sh

setup-gpu:
	@grep -qsx gpu .venv/ready && $(MAKE) -s setup || bash scripts/setup.sh gpu

demo: setup
	@$(BIN)/python scripts/demo.py

# The weights are the hub's where it is within reach, unless the environment forbids it.
ifeq ($(origin HF_HUB_OFFLINE),file)
smollm2: export HF_HUB_OFFLINE := 0
endif
smollm2: setup
	@$(BIN)/python -m scripts.smollm2 $(SMOLLM2_ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# One wheel in dist/, so that `pip install dist/alia_ctx-*.whl` has no other to take.
wheel: setup
	@rm -rf build dist/alia_ctx-*.whl
	@$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps --no-index --wheel-dir dist .
	@ls dist/alia_ctx-*.whl

fast: setup
	@$(BIN)/python -m pytest --fast --ignore tests/gpu -q -n 2 --dist worksteal $(PYTEST_ARGS)

# Three on two cores: a test that starts processes often waits for them to start or to end.
test: setup lint
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(PYTEST_ARGS)

# Environments of other releases of transformers: for the tests that exported directories load
# in them as well, and for scripts/conversion_matrix.py. torch is that of .venv.
venv-tf4: setup
	@for v in 4.51 4.55 4.57; do \
		$(BIN)/python -m venv --clear --without-pip .venv-tf$$v && \
		$(BIN)/python -m pip --python .venv-tf$$v/bin/python install -q "transformers==$$v.*" && \
		for site in .venv-tf$$v/lib/python3.*/site-packages; do \
			echo $(CURDIR)/.venv/lib/$$(basename $$(dirname $$site))/site-packages > $$site/zz_torch.pth; \
		done || exit 1; done

# An environment with what `transformers serve` needs, an OpenAI client and llama.cpp's package
# beside all that .venv has: programs that the product does not depend on.
venv-serve: .venv-serve/ready

.venv-serve/ready: .venv/ready constraints.txt
	@$(BIN)/python -m venv --clear --without-pip .venv-serve
	@for site in .venv-serve/lib/python3.*/site-packages; do \
		echo "import site; site.addsitedir('$(CURDIR)/.venv/lib/$$(basename $$(dirname $$site))/site-packages')" \
			> $$site/zz_venv.pth; done
	@$(BIN)/python -m pip --python .venv-serve/bin/python install -q -c constraints.txt \
		"transformers[serving]" openai gguf
	@touch .venv-serve/ready

test-serve: venv-serve
	@.venv-serve/bin/python -m pytest -m serve tests/hf $(PYTEST_ARGS)

# A real queue, machines with networks of their own, and ranks that are lost: needs root.
test-cluster: setup
	@$(BIN)/python -m pytest -m cluster tests/cluster tests/train tests/cli $(PYTEST_ARGS)

# bfcl-eval: the original that our checker of function calls is compared with, and its
# multi-turn categories.
venv-bfcl: .venv-bfcl/ready

.venv-bfcl/ready: .venv/ready scripts/setup_bfcl.sh
	@bash scripts/setup_bfcl.sh
	@touch .venv-bfcl/ready

test-bfcl: venv-bfcl
	@$(BIN)/python -m pytest tests/evaluation/function_calling/test_agreement.py $(PYTEST_ARGS)

clean:
	rm -rf runs
