# `make demo` and `make test` need nothing but Python >= 3.11 and make. TORCH_INDEX may name a wheel index for torch.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PARTS  := -e '.[transformers,report]' -e 'integrations/langchain-entropy-chains[agents]' -e integrations/llama-index-llms-entropy-chains

.PHONY: demo test check docs test-servers test-slow bench figures clean

demo: $(VENV)/.run
	$(BIN)/entropy-chains demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy -p langchain_entropy_chains
	$(BIN)/mypy -p llama_index.llms.entropy_chains

test-servers: $(VENV)/.dev
	scripts/install_vllm.sh
	scripts/install_llama_server.sh
	scripts/install_phoenix.sh
	$(BIN)/python scripts/install_tokenizers.py
	CI=1 $(BIN)/python -m pytest -m servers

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

# Every figure of README and docs.
figures: demo $(VENV)/.dev
	$(BIN)/python scripts/readme.py
	$(BIN)/python scripts/results.py --write-docs
	$(BIN)/python scripts/side_by_side.py --questions 50 --write-docs
	$(BIN)/python benchmarks/run.py --write-docs

docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_docs.py

# Only what running needs; torch first and alone, so that nothing else picks a build of several GB.
$(VENV)/.run: pyproject.toml constraints.txt integrations/*/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) $(PARTS)
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
