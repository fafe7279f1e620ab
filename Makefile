# One environment for everything, made on first use. A plain torch requirement would bring the CUDA
# build and its libraries, so torch is installed first, by exact version, and the rest on top of it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help env env-swap demo native test fuzz test-native mutation test-slow test-swap test-matrix kernels lint format docs links wheel release-check bench evidence clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

env: $(READY) ## Make .venv with the pinned versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable '.[triton,native,train,onnx,bench,docs,test,lint]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt SRE-Conv GMR-Conv
	@touch $@

demo: $(READY) ## A pretrained network finds vessels at every angle; two others learn drawn ones (minutes)
	$(BIN)/sre-triton demo

# Memory that is read before it is written holds huge numbers (glibc), so such a fault shows in every run.
test fuzz: export MALLOC_PERTURB_ = 128
test: $(READY) ## The test suite, with the native kernel where it can be built
	-$(BIN)/sre-triton build-native
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -n auto $(if $(SEED),--seed $(SEED))

fuzz: SEED ?= $(shell date +%s)
fuzz: $(READY) ## Random networks, calls and shapes by the thousand; SEED=N repeats a run
	-$(BIN)/sre-triton build-native
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -n auto -m 'fuzz or hypothesis' --hypothesis-profile=fuzz --seed $(SEED)

# A target for each, which `make` builds and tests side by side. -O1 keeps AddressSanitizer's reports readable; leaks are those of
# the interpreter and PyTorch, which free nothing at exit.
NATIVE_VARIANTS := native-avx2 native-sse native-clang native-asan
NATIVE_TESTS := --capture=sys tests/backends/test_ringwise.py tests/test_functional.py tests/invariants/test_functions.py $(addprefix tests/backends/test_native.py::, test_threads_do_not_meet test_images_of_many_tiles test_residual_and_activation) -k native --threads 3

native-avx2: export SRE_TRITON_NATIVE_OPTIONS := -march=x86-64-v3
native-sse: export SRE_TRITON_NATIVE_OPTIONS := -march=x86-64-v2
native-clang: export CXX := clang++
native-asan: export SRE_TRITON_NATIVE_OPTIONS := -fsanitize=address -O1 -g1
native-asan: export ASAN_OPTIONS := detect_leaks=0
native-asan: PRELOADED = LD_PRELOAD="$(shell $(or $(CXX),c++) -print-file-name=libasan.so) $(shell $(or $(CXX),c++) -print-file-name=libstdc++.so)"

test-native: export SRE_TRITON_CACHE_DIR ?= $(CURDIR)/build/cache
test-native: $(READY) ## The native kernel with three threads: for AVX2, for SSE alone, by Clang, and under AddressSanitizer
	$(MAKE) --no-print-directory --jobs=$(shell nproc) --output-sync=target \
		$(or $(and $(shell command -v clang++),$(NATIVE_VARIANTS)), \
		$(info not tested with Clang: there is no clang++) $(filter-out native-clang,$(NATIVE_VARIANTS)))

$(NATIVE_VARIANTS): $(READY)
	@echo '$@: $(or $(CXX),c++) $(SRE_TRITON_NATIVE_OPTIONS)'
	$(PRELOADED) $(BIN)/sre-triton build-native
	$(PRELOADED) $(BIN)/python -m pytest -q $(NATIVE_TESTS)

MUTATION := build/mutation
AREA ?= geometry
SAMPLE ?= 60

mutation: $(READY) ## Faults put in at random, AREA=geometry, SAMPLE=60 of them: do the tests notice?
	rm -rf $(MUTATION)/tree && mkdir -p $(MUTATION)/tree
	git ls-files -z | xargs -0 cp --parents --target-directory $(MUTATION)/tree
	test -x $(MUTATION)/env/bin/cosmic-ray || { $(PYTHON) -m venv $(MUTATION)/env; \
		$(MUTATION)/env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cosmic-ray; }
	$(MUTATION)/env/bin/python tests/mutation.py $(MUTATION)/tree $(CURDIR)/$(BIN)/python $(AREA) \
		--sample $(SAMPLE) $(if $(SEED),--seed $(SEED))

test-slow: $(READY) ## What the test suite leaves out: timings and exhaustive sweeps
	$(BIN)/python -m pytest -m 'slow or exhaustive'

# Other packages' networks, in an environment of their own: torchvision's wheels break parts of a PyTorch
# without CUDA. torch comes first and by exact version, or theirs would bring another.
SWAP := .venv-swap
SWAP_READY := $(SWAP)/.ready

$(SWAP_READY): constraints-swap.txt
	$(PYTHON) -m venv $(SWAP)
	$(SWAP)/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' -c constraints.txt
	$(SWAP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-swap.txt
	@touch $@

env-swap: $(SWAP_READY) ## Make .venv-swap with the versions of constraints-swap.txt

test-swap: $(SWAP_READY) ## Convert, fold and export the networks of MONAI, torchvision, timm and others
	PYTHONPATH=. $(SWAP)/bin/python -m pytest -m swap -n auto tests/swap

test-matrix: $(READY) ## The suite on the oldest, the GPU machine's and the newest versions (15 GB, hours)
	$(BIN)/python -m tests.matrix

native: $(READY) ## Compile the optional CPU kernel for this machine
	$(BIN)/sre-triton build-native

kernels: $(READY) ## Compile the default kernels for four GPU architectures; needs no GPU
	$(BIN)/python -m bench.compile_report --check

lint: $(READY) ## ruff, mypy, import-linter, clang-format and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror sre_triton/backends/native/csrc/*
	$(BIN)/codespell

format: $(READY) ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i sre_triton/backends/native/csrc/*

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY) ## The documentation as static files: build/site/index.html
	$(BIN)/python -m mkdocs build --quiet
	@echo build/site/index.html

links: $(READY) ## Follow the links that lead out of the documentation (needs a way out)
	$(BIN)/python -m tests.docs.outside

wheel: $(READY) ## Build the wheel and import it in an environment of its own
	rm -rf dist build/wheel-env
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' -c constraints.txt
	build/wheel-env/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dist/sre_triton-*.whl
	build/wheel-env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt numpy
	cd build && wheel-env/bin/python -c "import torch, sre_triton as s; print(s.__version__, s.SREConv2d(3, 8, 5)(torch.rand(1, 3, 9, 9)).shape)"

release-check: $(READY) ## sdist and wheel in empty environments of Python 3.10 to 3.13, with their tests (10 GB, an hour)
	$(BIN)/python -m tests.release

bench: $(READY) ## Layers against nn.Conv, the reference packages and the floor: table, JSON and PNG
	$(BIN)/python -m bench

evidence: $(READY) ## The page of bench/results/evidence from its results; evidence-TABLE DATA=DIR makes those of a table
	$(BIN)/python -m bench.evidence tables

evidence-%: $(READY)
	$(BIN)/python -m bench.evidence run $* $(if $(DATA),--data $(DATA))

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(SWAP) .venv-matrix-* build dist .import_linter_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
