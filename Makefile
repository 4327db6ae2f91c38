# Everything runs in .venv, made on first use by scripts/environment.sh with Python 3.11, 3.12 or 3.13; PYTHON=python3.13
# names one. Targets: setup generate test fuzz golden swift-test lint nightly mac-wheels verify-mac clean

PROMPT ?= a large red circle on the left and a small blue square on the right on a white background
SEED ?= 0
OUT ?= out
PYTEST_ARGS ?=
FUZZ_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
MODEL := $(OUT)/shapes64-mlx
PICTURE := $(OUT)/shapes64.png
SWIFT_LOG := $(OUT)/swift-test.log
FAST := scripts/fast_blas.py
QUICK := not slow and not nightly
AS_GPU := --device reported-gpu tests/mlx_moddit tests/parity tests/test_readme.py
IS_MAC := test "$$(uname -s)" = Darwin
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup generate test fuzz golden swift-test lint nightly mac-wheels verify-mac clean
.NOTPARALLEL:

# The pinned development environment, and on Linux the libraries for a fast BLAS under MLX where they can be had.
setup:
	@sh scripts/environment.sh setup

# The embedded checkpoint, converted, and a picture of PROMPT, in an environment of what that takes and nothing else.
generate:
	@sh scripts/environment.sh generate
	$(PY) -m convert --from hf-checkpoint --to mlx --out $(MODEL) --overwrite
	$(PY) $(FAST) run mlx_moddit generate --model $(MODEL) --prompt '$(PROMPT)' --seed $(SEED) --output $(PICTURE) --overwrite
	@echo "The picture of \"$(PROMPT)\" is $(PICTURE)"

# All that this machine can check in minutes; `make nightly` adds the rest. The second run of pytest takes a Mac's path,
# which is that of whoever computes on a GPU: MLX says that it does. On a Mac the first run takes it. Both have two workers.
# Meanwhile the Swift package is built and tested; what that prints comes last.
test: setup
	@mkdir -p $(OUT); \
	$(MAKE) --no-print-directory swift-test >$(SWIFT_LOG) 2>&1 & swift=$$!; \
	trap 'kill $$swift 2>/dev/null' INT TERM; \
	$(PY) -m pytest -n 2 -m "$(QUICK)" $(PYTEST_ARGS) && \
		{ $(IS_MAC) || $(PY) -m pytest -n 2 -m "$(QUICK)" $(AS_GPU) $(PYTEST_ARGS); }; python=$$?; \
	wait $$swift; swift=$$?; cat $(SWIFT_LOG); \
	test $$python = 0 && test $$swift = 0

# Thousands of damaged inputs, drawn by chance; `make test` has a sample. FUZZ_ARGS="--seed 1" draws others.
fuzz: setup
	@$(IS_MAC) && echo 'Nothing was run: it forks a process that has loaded frameworks, which only Linux can' || \
		$(PY) -m tests.fuzz $(FUZZ_ARGS)

nightly: setup mac-wheels fuzz
	$(PY) -m pytest $(PYTEST_ARGS)
	$(IS_MAC) || $(PY) -m pytest $(AS_GPU) $(PYTEST_ARGS)
	$(MAKE) --no-print-directory swift-test

# The files that the Swift package is tested against, its bounds, and the schema in docs/, from the Python core.
golden: setup
	$(PY) -m scripts.golden
	$(PY) -m scripts.schema
	$(PY) -m scripts.swift_bounds

# The Swift package, with a Swift that is installed first where there is none; skipped where it cannot be (status 77).
swift-test:
	@scripts/swift_linux.sh test -j 1 || { status=$$?; test $$status = 77 || exit $$status; \
		echo 'The Swift package was not tested, for the reason above'; }

# Without ruff's cache: it keeps old verdicts on the order of imports when a module is added. Types also as a Mac has them.
lint: setup
	$(VENV)/bin/ruff check --no-cache .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --platform darwin --cache-dir .mypy_cache/darwin

# That each pin has a wheel for a Mac, for every Python; asks the package index, and needs no Mac.
mac-wheels: setup
	$(PY) -m scripts.mac_wheels

# What needs a Mac: MLX on Metal. Runs the tests of MLX with the thresholds they have on Linux, and those marked "mac".
verify-mac:
	@$(IS_MAC) || { echo 'verify-mac runs on macOS only' >&2; exit 2; }
	$(MAKE) --no-print-directory setup
	$(PY) -m pytest tests/mlx_moddit tests/parity $(PYTEST_ARGS)
	$(PY) -m pytest -m mac $(PYTEST_ARGS)

clean:
	rm -rf $(OUT) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
