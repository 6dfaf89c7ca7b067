# Everyday commands. `make demo` and `make test` need nothing but Python 3.11: they make .venv themselves.
PYTHON ?= python3
BIN = .venv/bin
PARTS = export runtime calibration benchmarks

GPU = build/gpu

.PHONY: demo test check format lint types tests docs gpu soak faults guard clean

demo: .venv/ready
	$(BIN)/nnet-edge demo --out demo --force

test: tests
# A worker a core and one more; `make test WORKERS=0` runs one test after another in one process, as `.venv/bin/pytest` does.
WORKERS ?= auto
tests: .venv/ready
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --durations 15

check: format lint types tests

format: .venv/ready
	$(BIN)/ruff format --check .

lint: .venv/ready
	$(BIN)/ruff check .

types: .venv/ready
	rm -rf build/types && mkdir -p build/types && cp -rs $(CURDIR)/nnet_edge build/types/
	ln -s $(addprefix $(CURDIR)/,$(PARTS)) build/types/nnet_edge/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p nnet_edge

# The documentation as a site, build/site/index.html; a warning is an error. It opens without a server and without a network.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Everything that needs a GPU, where there is one; first of all, whether TensorRT-RTX runs on it. A build that this GPU or
# TensorRT refuses does not end it: the report names it, and torch stands in for the engine where none is left. A test that
# fails does not keep the report from being written, and fails the target at the end.
gpu: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[gpu]' -c constraints.txt
	$(BIN)/python -m nnet_edge.benchmarks.gpu_question
	test -d $(GPU)/line || $(BIN)/python -c 'from pathlib import Path; from nnet_edge.data.example_parts import make_line; make_line(Path("$(GPU)/line"), 0)'
	test -d $(GPU)/bundle || $(BIN)/python -m nnet_edge.benchmarks.random_bundle $(GPU)/bundle --backbone wide_resnet50_2
	test -f $(GPU)/bundle/nnet.int8.onnx || $(BIN)/nnet-edge calibrate $(GPU)/bundle $(GPU)/line --frames 16 --accept
	-for precision in fp32 fp16 int8; do $(BIN)/nnet-edge build-engine $(GPU)/bundle --precision $$precision --accept; done
	$(BIN)/pytest -m gpu; tests=$$?; \
	$(BIN)/python -m nnet_edge.benchmarks.gpu $(GPU)/bundle --json benchmarks/results/gpu.json && exit $$tests

# Four cameras for half an hour; memory, threads, file handles and latency must not grow. SOAK=3 for three minutes.
SOAK ?= 30
soak: .venv/ready
	test -d build/soak/bundle || $(BIN)/python -m nnet_edge.benchmarks.random_bundle build/soak/bundle --backbone efficientnet_lite0
	$(BIN)/python -m nnet_edge.benchmarks.soak build/soak/bundle --minutes $(SOAK)

# Every fault of a line, caused once with the real component: captured, judged, dropped, lost. Three minutes.
faults: .venv/ready
	$(BIN)/python -m nnet_edge.benchmarks.faults

# Ratios of one run against benchmarks/guard.json: fails when runner, stream, export or import became slower. Two minutes.
guard: .venv/ready
	$(BIN)/nnet-edge bench guard

# torch first and alone: its CPU build satisfies what every later package asks for
.venv/ready: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $@

clean:
	rm -rf .venv build dist demo *.egg-info
