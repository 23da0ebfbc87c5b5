# make setup   .venv with everything the demo needs        make demo    the main job, on this machine
# make test    the tests                                   make lint    ruff
# make demo ENV=webshop|search|sciworld                    the same in another environment
# make test-slurm   jobs on a real Slurm of virtual nodes; needs root and Debian's slurmctld slurmd slurm-client munge
# make bench   the CPU benchmarks, raw JSON to docs/bench
PYTHON ?= python3
# The CPU build of torch lies on PyTorch's own index; where that is out of reach pip takes what the other indexes have.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
ENV ?= alfworld
DEMO ?=

.PHONY: setup demo test test-slurm lint bench clean
setup: .venv/.demo

.venv/.demo: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --retries 1 --extra-index-url $(TORCH_INDEX) -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

# The official ALFWorld is the tests' oracle; it compiles two packages (gcc, make).
.venv/.test: .venv/.demo
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,alfworld,webshop,search,sciworld,server]'
	touch $@

# The demo's ALFWorld is the native one, which needs no extra.
.venv/.demo-alfworld: .venv/.demo
	touch $@

.venv/.demo-%: .venv/.demo
	$(BIN)/pip install -q -c constraints.txt -e '.[$*]'
	touch $@

demo: .venv/.demo-$(ENV)
	$(BIN)/python -m tools.demo --env $(ENV) $(DEMO)

test: .venv/.test
	$(BIN)/python -m pytest -q

test-slurm: .venv/.test
	$(BIN)/python -m pytest -q -m slurm -n 2 --dist loadfile tests/slurm

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/.test
	$(BIN)/python -m tools.bench_alfworld --out docs/bench/alfworld.json
	$(BIN)/python -m tools.bench_local_engine --json docs/bench/local_engine.json

clean:
	rm -rf .venv runs
