# Each target makes its own environment on a fresh machine. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow coverage lint docs bench clean

demo: $(READY)
	$(BIN)/laconic demo -o demo

test: $(READY)
	$(BIN)/pytest --numprocesses auto --dist worksteal -m "not slow" --durations=20

# Fresh processes, exports to other runtimes, whole grids and real models.
test-slow: $(READY)
	$(BIN)/pytest --numprocesses auto --dist worksteal -m slow --durations=20

# All tests, and the lines of each module that none of them runs.
coverage: $(READY)
	$(BIN)/pytest --numprocesses auto --dist worksteal --cov=laconic --cov-report=term-missing:skip-covered

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# The site, into site/. A broken link or anchor, a page in no navigation or a public name without a docstring stops it.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv demo site

# torch goes first and alone, so that a build chosen by hand (CPU, CUDA) is kept by what needs it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,docs,onnx,openvino,test,train]'
	touch $@
