# pyHV's commands; `make` lists them. Everything that they make is in .venv, target and tests/artifacts.

PYTHON = python3
PORT = 9090
BENCH_ARGS =
COMPLIANCE_ARGS =
PYTEST_ARGS =
FUZZ_SECONDS = 30
MINUTES = 10

# Virtual environments have bin/ on Unix, and this file is for Unix.
BIN = .venv/bin
REQUIRE = PYTHON="$(PYTHON)" sh scripts/require.sh
# Always the same interpreter, or PyO3 would be compiled anew for each.
CARGO = PYO3_PYTHON="$$PWD/$(BIN)/python" cargo
# The benchmarks' load generator is a crate of its own.
LOAD = --manifest-path benchmarks/load/Cargo.toml
# So are the fuzz targets.
FUZZ = --manifest-path fuzz/Cargo.toml
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test build test-rust test-python lint format bench instructions compliance fuzz soak audit docs docs-serve smoke lock clean

help:
	@echo "make demo     run the chat of examples/chat on http://127.0.0.1:$(PORT) (PORT=...)"
	@echo "make test     set up and run everything: formatters, linters, type checks, the tests of Rust and Python"
	@echo "make build    the release build, installed into .venv (PYTHON=... is for a new .venv)"
	@echo "make lint     formatters in checking mode, clippy, ruff, mypy"
	@echo "make format   let cargo fmt and ruff format the code"
	@echo "make test-rust, make test-python   one half of the tests (PYTEST_ARGS='-k echo')"
	@echo "make bench    run the benchmarks and write docs/benchmarks.md, half an hour (BENCH_ARGS=--quick: a trial of minutes)"
	@echo "make instructions   count the instructions per message anew, and record them for make test to compare with"
	@echo "make compliance   all cases of the conformance suite, both sides (COMPLIANCE_ARGS='--side client --cases 9.*')"
	@echo "make fuzz     each fuzz target for FUZZ_SECONDS=$(FUZZ_SECONDS)"
	@echo "make soak     a server under mixed load for MINUTES=$(MINUTES)"
	@echo "make audit    licences, sources and known faults of what pyHV is built from; the first time it builds cargo-deny"
	@echo "make docs     the documentation as a website in target/docs; warnings are errors"
	@echo "make docs-serve   the same, and serve it on http://127.0.0.1:$(PORT)"
	@echo "make smoke    pip install . into an environment of its own and try it (PYTHON=python3.12)"
	@echo "make lock     write requirements-dev.lock anew from pyproject.toml"
	@echo "make clean    remove what the others have made"

demo:
	@$(REQUIRE) python rust linker
	@$(MAKE) --no-print-directory build
	@# exec: Ctrl-C reaches the server, which stops cleanly and exits with 0.
	@exec $(BIN)/python examples/chat/server.py --port $(PORT)

# One recipe, so that the order holds under -j too; pytest's closing line is the last.
test:
	@$(REQUIRE) python rust rust-tools linker browser
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory test-rust
	@$(MAKE) --no-print-directory test-python

build: .venv/.build-tools
	@echo "== release build"
	@VIRTUAL_ENV="$$PWD/.venv"; export VIRTUAL_ENV; \
		said=$$($(BIN)/maturin develop --quiet --release --locked 2>&1) || { echo "$$said"; exit 1; }

lint: .venv/.dev-tools
	@echo "== cargo fmt --check"
	@cargo fmt --all --check
	@cargo fmt --check $(LOAD)
	@cargo fmt --check $(FUZZ)
	@echo "== clippy"
	@$(CARGO) clippy --quiet --locked --workspace --all-targets -- -D warnings
	@cargo clippy --quiet --locked $(LOAD) --target-dir target/load --all-targets -- -D warnings
	@# With a path set libFuzzer is not compiled, which takes a C++ compiler and longer than all the rest; nothing is linked.
	@CUSTOM_LIBFUZZER_PATH=target/none/libfuzzer.a cargo clippy --quiet --locked $(FUZZ) --target-dir target/fuzz \
		--all-targets -- -D warnings
	@echo "== ruff check"
	@$(BIN)/ruff check
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check
	@echo "== mypy --strict"
	@$(BIN)/mypy

test-rust:
	@$(REQUIRE) rust linker
	@if cargo nextest --version >/dev/null 2>&1; then \
		echo "== cargo nextest run"; cargo nextest run --locked --cargo-quiet --status-level fail --no-fail-fast; \
	else \
		echo "== cargo test"; cargo test --locked --quiet --lib --bins --tests; \
	fi
	@echo "== cargo test --doc"
	@cargo test --locked --quiet --doc
	@echo "== cargo test, benchmarks/load"
	@cargo test --locked --quiet $(LOAD) --target-dir target/load

test-python: build .venv/.dev-tools
	@echo "== pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

format: .venv/.dev-tools
	cargo fmt --all
	cargo fmt $(LOAD)
	cargo fmt $(FUZZ)
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench:
	@$(REQUIRE) python rust linker
	@PYTHON="$(PYTHON)" sh benchmarks/bench.sh $(BENCH_ARGS)

# make test compares with what this records, by tests/test_instructions.py.
instructions: build
	@echo "== instructions per message"
	@exec $(BIN)/python benchmarks/instructions.py --runs 3 --record

# make test runs the fast form of it, by tests/test_compliance.py.
compliance: build
	@echo "== conformance suite"
	@exec $(BIN)/python -m compliance.run $(COMPLIANCE_ARGS)

# RUSTC_BOOTSTRAP: sanitizers are for nightly Rust, but the stable one brings them along. A crate of its own, with tools of
# its own. What a fuzzer adds to fuzz/corpus is replayed by the next `make fuzz`, with the seeds.
fuzz: fuzz/.cache/bin/cargo-fuzz
	@echo "== seeds"
	@cargo test --quiet --locked $(FUZZ)
	@for target in decode recut handshake deflate; do \
		echo "== $$target, $(FUZZ_SECONDS) s"; mkdir -p fuzz/corpus/$$target; \
		RUSTC_BOOTSTRAP=1 PATH="$$PWD/fuzz/.cache/bin:$$PATH" cargo fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target \
			-- -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -print_final_stats=1 >fuzz/.cache/$$target.log 2>&1 \
			|| { tail -60 fuzz/.cache/$$target.log; exit 1; }; \
		grep -E "^#[0-9]+.*DONE" fuzz/.cache/$$target.log; \
	done

fuzz/.cache/bin/cargo-fuzz:
	@$(REQUIRE) rust linker
	cargo install --quiet --locked --version 0.13.2 --root fuzz/.cache cargo-fuzz

soak: build
	@exec $(BIN)/python scripts/soak.py --minutes $(MINUTES) --svg target/soak.svg

# Not a part of make test: building cargo-deny takes minutes, and what is known of others' code changes without ours.
audit: .cache/bin/cargo-deny .cache/audit/bin/pip-audit
	@sh scripts/audit.sh $(PYTHON)

.cache/bin/cargo-deny:
	@$(REQUIRE) rust linker
	@echo "== cargo-deny"
	@cargo install --quiet --locked --version 0.20.2 --root .cache cargo-deny

.cache/audit/bin/pip-audit:
	@$(REQUIRE) python
	@$(PYTHON) -m venv .cache/audit
	@.cache/audit/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.10,<3"

# A test does the same in a folder of its own. Afresh, because what was read before is not warned of again.
docs: build .venv/.dev-tools
	@echo "== sphinx"
	@rm -rf target/docs
	@$(BIN)/python -m sphinx -q -W --keep-going -b html -d target/docs/.doctrees docs target/docs
	@echo "target/docs/index.html"

docs-serve: docs
	@exec $(BIN)/python scripts/serve_docs.py --port $(PORT)

# Elsewhere than the development build: another interpreter compiles PyO3 anew.
smoke:
	@$(REQUIRE) python rust linker
	@rm -rf target/smoke/venv
	@$(PYTHON) -m venv target/smoke/venv
	@CARGO_TARGET_DIR="$$PWD/target/smoke/target" target/smoke/venv/bin/python -m pip install --quiet \
		--disable-pip-version-check .
	@target/smoke/venv/bin/python -I -W error scripts/smoke.py

lock: .venv/.build-tools
	@$(PIP) "uv>=0.9,<1"
	@{ echo "# Made by \`make lock\` from the group \"development\" of pyproject.toml, for Python 3.10 and later on every platform."; \
		$(BIN)/uv pip compile --quiet --upgrade --no-header --universal --python-version 3.10 --group development; \
	} >requirements-dev.lock.new
	@mv requirements-dev.lock.new requirements-dev.lock

clean:
	rm -rf .venv target tests/artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf fuzz/.cache fuzz/target fuzz/corpus fuzz/artifacts
	rm -rf .cache benchmarks/.cache compliance/.cache
	rm -f python/pyhv/_native.*.so
	find python tests examples benchmarks compliance scripts -name __pycache__ -prune -exec rm -rf {} +

# Virtual environment. The marks tell make what is installed in it.

.venv/bin/python:
	@$(REQUIRE) python
	@echo "== .venv, of $(PYTHON)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/.build-tools: .venv/bin/python requirements-dev.lock
	@$(PIP) --constraint requirements-dev.lock maturin
	@touch $@

.venv/.dev-tools: .venv/.build-tools
	@echo "== development tools"
	@$(PIP) --requirement requirements-dev.lock
	@touch $@
