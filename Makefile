# Everyday commands. `make demo` and `make test` need nothing but Python 3.11: they make .venv themselves.
PYTHON ?= python3
BIN = .venv/bin
PARTS = export runtime calibration benchmarks

.PHONY: demo test check format lint types tests clean

demo: .venv/ready
	$(BIN)/nnet-edge demo --out demo --force

test: tests
tests: .venv/ready
	$(BIN)/pytest

check: format lint types tests

format: .venv/ready
	$(BIN)/ruff format --check .

lint: .venv/ready
	$(BIN)/ruff check .

types: .venv/ready
	rm -rf build/types && mkdir -p build/types && cp -rs $(CURDIR)/nnet_edge build/types/
	ln -s $(addprefix $(CURDIR)/,$(PARTS)) build/types/nnet_edge/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p nnet_edge

# torch first and alone: its CPU build satisfies what every later package asks for
.venv/ready: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $@

clean:
	rm -rf .venv build dist demo *.egg-info
