PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --progress-bar off --constraint constraints.txt
DEMO := output/demo

.PHONY: demo test check faults clean-demo

# Trains three small anchors on handwritten digits, stitches them, evaluates every stitch, and switches between them.
demo: export OMP_NUM_THREADS := 1  # the networks are too small to gain from more threads
demo: $(VENV)/demo clean-demo
	$(BIN)/python examples/digits.py $(DEMO)
	$(BIN)/python train.py --config configs/digits.yaml
	$(BIN)/python eval_stitches.py $(DEMO)/run/net --plugin examples/digits.py --data-dir $(DEMO)/images --workers 0
	$(BIN)/python examples/budgets.py $(DEMO)/run/net --plugin examples/digits.py

clean-demo:
	rm -rf $(DEMO)

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every known fault, once, into tiny runs: kills, signals, damaged files, full disks, bad images and numbers.
faults: export OMP_NUM_THREADS := 1
faults: $(VENV)/dev
	$(BIN)/python -m tools.faults

# One stamp an extra: installed again when the metadata or the pinned versions change.
$(VENV)/%: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$*]'
	touch $@
