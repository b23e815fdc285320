# Verbs: each works alone; the first one builds .venv from PyPI, and the first one that tests or measures
# adds what only that needs; later ones start at once.

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# Python compiles what it imports; most of what is installed is never imported.
INSTALL := $(PIP) install -q --no-compile
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools
ARGS ?=
PEERS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test check bench bench-cpu test-gpu bench-gpu

help:  ## show the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*##/ { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY)  ## start a server and stream one prompt per adapter, all in one batch
	@$(PY) scripts/demo.py $(ARGS)

serve: $(READY)  ## start a server; ARGS="--model-id … --lora-adapters …", else the demo model
	@$(PY) scripts/serve.py $(ARGS)

test: $(TOOLS)  ## run every test that needs no GPU
	$(PY) -m pytest -m "not gpu" -n 2 --dist loadgroup $(ARGS)

check: $(TOOLS)  ## lint, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m basedpyright

bench: $(TOOLS)  ## measure the life of adapters, 10 minutes on quiet cores; ARGS="--quick"
	@$(PY) scripts/bench_adapters.py $(ARGS)

bench-cpu: $(READY)  ## measure decoding on quiet cores, 12 minutes; PEERS=folder-with-bench_peers.py
	@$(PY) scripts/bench_cpu.py --peers "$(PEERS)" $(ARGS)

# The GPU verbs install nothing, so that they run where PyTorch is there and the network is not: a
# GPU machine need not have tritonclient. Without a GPU there is nothing to do, nor a need of PyTorch.
define find_gpu
py=$(PY); test -x $$py || py="$(or $(PYTHON),python3)"; \
"$$py" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 77)' 2>/dev/null; \
case $$? in 0) ;; 77) echo "$@: PyTorch sees no GPU here; nothing to run."; exit 0;; \
	*) if ls /dev/nvidia* >/dev/null 2>&1; then "$$py" -c 'import torch'; exit 1; fi; \
	echo "$@: no GPU and no PyTorch here; nothing to run."; exit 0;; esac
endef

test-gpu:  ## run the tests that need a GPU, on all cores, with .venv or else with PYTHON
	@$(find_gpu); cores=; if "$$py" -c 'import xdist' 2>/dev/null; then \
		cores="-n $$(($$(nproc) > 16 ? 16 : $$(nproc))) --dist worksteal"; fi; \
	"$$py" -m pytest -m gpu $$cores --continue-on-collection-errors \
		$(addprefix --ignore=tests/,browser client docker e2e gateway scripts text) $(ARGS)

bench-gpu:  ## measure kernels and a whole model on a GPU, 9 minutes; PEERS=folder-with-peers_api
	@$(find_gpu); "$$py" scripts/bench_gpu.py --peers "$(PEERS)" $(ARGS)

# What serves. nvidia-pytriton carries tritonserver, whose Python backend needs numpy 1 and so Python
# 3.12 at most; what else it depends on is for writing one's own servers.
$(READY): pyproject.toml Makefile
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(SUPPORTED)' || { echo \
		"make: Python 3.11 or 3.12 is needed; name one: make VERB PYTHON=/path/to/python3.12" \
		>&2; exit 1; }
	@rm -f $@
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@$(INSTALL) -e '.[server]' numpy==1.26.4
	@$(INSTALL) --no-deps nvidia-pytriton==0.7.0
	@touch $@

# What tests, checks and measures. The CPU build of torch brings no OpenAI Triton, whose interpreter and
# compiler the kernel tests use. Of the clients, those of TGI and LoRAX ask for a huggingface_hub, and
# instructor for a jiter, older than the one they work with here, and lm_eval for what reads its data;
# what else they need comes with the others. The page's tests drive a browser and are skipped without
# one: only root on Debian, as in a container of CI, can get it here.
$(TOOLS): $(READY)
	@rm -f $@
	@echo "Installing what only tests, checks and benchmarks need; the first time takes some minutes."
	@$(INSTALL) -e '.[dev]' numpy==1.26.4 \
		$$($(PY) -c 'import triton' 2>/dev/null || echo triton==3.6.0)
	@$(INSTALL) --no-deps text-generation==0.7.0 lorax-client==0.6.3 instructor==1.17.0 \
		lm_eval==0.4.13
	@command -v chromedriver >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium \
			chromium-driver; } >/dev/null || echo "No browser could be installed."
	@touch $@
