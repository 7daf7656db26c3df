# serve, test, check and bench each set up what they need in .venv; nothing else on the machine is touched.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
HOST   ?= 127.0.0.1
PORT   ?= 8000
JOBS   ?= 2
MODEL  ?=
# The CPU build of PyTorch, unless the machine has an NVIDIA GPU or TORCH says otherwise.
TORCH  ?= torch==2.13.0

# Triton for the kernels' tests on machines without a GPU: beside the environment, because an install there has none.
TRITON ?= triton>=3.4

.PHONY: install serve test test-slow test-triton check bench bench-peers clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml CMakeLists.txt $(wildcard csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.11" "nanobind>=2.9" "cmake>=3.20" ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

serve: install
	$(BIN)/octavo serve $(MODEL) --host $(HOST) --port $(PORT)

test: check
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

test-triton: install build/triton/installed
	PYTHONPATH=build/triton $(BIN)/python -m pytest -m "slow or not slow" tests/kernels/test_triton.py

build/triton/installed:
	$(BIN)/python -m pip install --quiet --no-deps --target build/triton "$(TRITON)"
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benches.serving.workloads

bench-peers: install
	$(BIN)/python -m benches.peers.environments
	-$(BIN)/python -m benches.peers.models
	$(BIN)/python -m benches.peers.rounds

clean:
	rm -rf $(VENV) build
