# Every command here is the one CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help lab lab-down test check bench venv lock protos

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

venv: $(VENV)/.installed ## the virtual environment with all that is needed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: Isthmus needs Python 3.11 or later; hint: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

lab: venv ## three clusters become one mesh, the demo story runs, the lab stays up
	$(BIN)/isthmus lab up --detach
	$(BIN)/isthmus lab demo

lab-down: venv ## end the lab
	$(BIN)/isthmus lab down

check: venv ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## check and all tests: four files at once, but those that break or load a whole mesh by themselves
	$(BIN)/pytest --numprocesses 4 --dist loadfile --ignore tests/faults --ignore tests/system
	$(BIN)/pytest tests/faults tests/system

bench: venv ## 50 members with 1,000 exported services on this machine: what they cost, how fast they are (8 minutes, idle machine)
	$(BIN)/python -m tests.benchmarks simulation

lock: ## renew requirements.lock from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

protos: venv ## regenerate federation/etcd/api from its .proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. federation/etcd/api/etcd_kv.proto federation/etcd/api/etcd_rpc.proto
