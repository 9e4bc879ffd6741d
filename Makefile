# Every target works from a fresh clone: `env` makes .venv from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: help env demo serve test lint bench-local bench-engines bench-cache bench-frontier bench-report soak clean

help:           ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 18

env: $(STAMP)   ## the environment: .venv

# Without a GPU the CPU build of torch is taken wherever this machine's pip can find one; elsewhere pip takes the
# default build, which on Linux brings CUDA along.
$(STAMP): pyproject.toml constraints.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then \
	  echo "GPU found: installing torch $(TORCH) with CUDA (several GB), then about 120 other packages"; \
	  $(BIN)/pip install -q -c constraints.txt torch==$(TORCH); \
	elif echo "no GPU: installing the CPU build of torch $(TORCH) (192 MB), then about 120 other packages; .venv takes 2 GB"; \
	  $(BIN)/pip install -q torch==$(TORCH)+cpu 2>$(VENV)/torch.log; then :; \
	elif ! grep -q "No matching distribution" $(VENV)/torch.log; then \
	  cat $(VENV)/torch.log; exit 1; \
	else \
	  echo "this machine's pip finds no CPU build of torch $(TORCH): installing the default build (on Linux several GB"; \
	  echo "with CUDA; to avoid that, point PIP_EXTRA_INDEX_URL at an index of CPU builds and start again)"; \
	  $(BIN)/pip install -q -c constraints.txt torch==$(TORCH); \
	fi
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: env       ## see all of it work; exits 0 (or: crossover demo --keep)
	@$(BIN)/crossover demo

serve: env      ## the service, with ./crossover.toml
	@$(BIN)/crossover serve

test: env       ## the test suite
	$(BIN)/python -m pytest

lint: env       ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.bench: $(STAMP)
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev,bench]'
	@touch $@

# Infinity needs transformers before 5 and numpy before 2. Where it can't be installed, the bench lists it as not run.
INFINITY := .bench-venvs/infinity
$(INFINITY)/.installed: constraints.txt
	@test -d $(INFINITY) || $(PYTHON) -m venv $(INFINITY)
	@{ $(INFINITY)/bin/pip install -q torch==$(TORCH)+cpu || $(INFINITY)/bin/pip install -q torch==$(TORCH); } 2>$(INFINITY)/pip.log \
	  && $(INFINITY)/bin/pip install -q 'infinity-emb[server,torch]==0.0.78' 2>>$(INFINITY)/pip.log \
	  || echo "infinity-emb could not be installed ($(INFINITY)/pip.log says why): it will be listed as not run"
	@touch $@

# CROSSOVER_BENCH_DATA=DIR names the folder with the data sets; what can't run without it is listed as such.
bench-local: $(VENV)/.bench $(INFINITY)/.installed  ## the local tier: int8's fidelity, served over offline, rivals, open-loop arrivals
	@failed=0; for part in fidelity serving rivals arrivals; do $(BIN)/python bench/$$part.py || failed=1; done; exit $$failed

# In a folder of their own, not in .venv: bench/engines.txt says why.
TRIED := .bench-venvs/engines
$(TRIED)/.installed: $(VENV)/.bench bench/engines.txt
	@$(BIN)/pip install -q -c constraints.txt --target $(TRIED) -r bench/engines.txt
	@touch $@

bench-engines: $(TRIED)/.installed  ## every engine tried in one table; the usual advice, measured
	@failed=0; PYTHONPATH=$(TRIED) $(BIN)/python bench/engines.py || failed=1; \
	  for part in article hugepages; do $(BIN)/python bench/$$part.py || failed=1; done; exit $$failed

# LiteLLM brings about 115 packages of its own. Where it can't be installed, the bench lists it as not run.
LITELLM := .bench-venvs/litellm
$(LITELLM)/.installed:
	@test -d $(LITELLM) || $(PYTHON) -m venv $(LITELLM)
	@$(LITELLM)/bin/pip install -q 'litellm[proxy]==1.106.2' 2>$(LITELLM)/pip.log \
	  || echo "litellm could not be installed ($(LITELLM)/pip.log says why): it will be listed as not run"
	@touch $@

bench-cache: $(VENV)/.bench $(LITELLM)/.installed  ## cache hits beside an empty endpoint; Redis broken; three times too much, a flood
	@failed=0; for part in hits outages overload; do $(BIN)/python bench/$$part.py || failed=1; done; exit $$failed

soak: $(VENV)/.bench            ## 30 minutes of random lengths: is memory flat?
	$(BIN)/python bench/soak.py

bench-frontier: $(VENV)/.bench $(LITELLM)/.installed  ## recorded GPT-4 answers; hanging providers, stages, attacks; LiteLLM
	@failed=0; for part in recorded frontier compatibility; do $(BIN)/python bench/$$part.py || failed=1; done; exit $$failed

# headless Chromium for the page; where it can't be installed, that part is listed as not run.
bench-report: $(VENV)/.bench  ## the books: 200 kills, what the ledger costs, a report over 3 million rows, its intervals and page
	@failed=0; for part in kills ledger_cost report intervals browser; do $(BIN)/python bench/$$part.py || failed=1; done; exit $$failed

clean:
	rm -rf $(VENV) .bench-venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/out crossover-demo
