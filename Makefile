PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --progress-bar off --constraint constraints.txt
DEMO := output/demo

.PHONY: demo demo-photos test test-all numerics faults check docs clean-demo

# Trains three small anchors on handwritten digits, stitches them, evaluates every stitch, and switches between them.
demo: export OMP_NUM_THREADS := 1  # the networks are too small to gain from more threads
demo: $(VENV)/demo clean-demo
	$(BIN)/python examples/digits.py $(DEMO)
	$(BIN)/python train.py --config configs/digits.yaml
	$(BIN)/python eval_stitches.py $(DEMO)/run/net --plugin examples/digits.py --data-dir $(DEMO)/images --workers 0
	$(BIN)/python examples/budgets.py $(DEMO)/run/net --plugin examples/digits.py

# Stitches three installed ImageNet networks on photographs, and names what these show under three latency budgets.
# More photographs: make demo-photos PHOTOS=FOLDER
demo-photos: $(VENV)/photos
	$(BIN)/python examples/photos.py output/photos $(PHOTOS)

clean-demo:
	rm -rf $(DEMO)

# The fast suite: a few minutes on two cores.
test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 -m 'not slow'

# The slow tests too, other processors' arithmetic, and every fault.
test-all: $(VENV)/dev
	$(BIN)/python -m pytest -n 2
	$(MAKE) numerics
	$(MAKE) faults

# Tests with a tolerance, with the vector instructions of other processors and with other numbers of threads.
# Two workers of two threads each share two cores: threads that wait must not spin.
numerics: export OMP_WAIT_POLICY := passive
numerics: numerics-default-1 numerics-default-2 numerics-avx2-1 numerics-avx2-2 numerics-native-2

numerics-%: $(VENV)/dev
	$(if $(findstring native,$*),,ATEN_CPU_CAPABILITY=$(firstword $(subst -, ,$*))) \
	OMP_NUM_THREADS=$(lastword $(subst -, ,$*)) $(BIN)/python -m pytest -n 2 -m 'tolerance and not slow'

# Every known fault, once, into tiny runs: kills, signals, damaged files, full disks, bad images and numbers.
faults: export OMP_NUM_THREADS := 1
faults: $(VENV)/dev
	$(BIN)/python -m tools.faults

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in output/site. Warnings are errors (`strict` in mkdocs.yml).
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/docs
	$(BIN)/mkdocs build

# One stamp per extra: it is installed again when the metadata or the pinned versions change.
$(VENV)/%: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$*]'
	touch $@
