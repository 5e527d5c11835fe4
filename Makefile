# Everything a newcomer needs: `make demo` shows what Tidelock does, `make test` checks all of it.
# Both install what is missing on a fresh Debian or Ubuntu machine that has Rust, and say so.

CARGO ?= cargo

.PHONY: help setup setup-build demo test test-matrix bench fuzz

help:
	@echo "make demo   two live sides, one log: a private PostgreSQL, the sandbox org, edits and conflicts on both"
	@echo "make test   the whole check: format, clippy, unit, property, integration and doc tests"
	@echo "make test-matrix  the tests that need PostgreSQL, against real servers of 14 to 18, which it downloads (MATRIX=17: one of them)"
	@echo "make bench  the benchmarks of docs/benchmarks.md (release build)"
	@echo "make fuzz   a minute of fuzzing for each decoder of outside bytes (FUZZ_SECONDS=60; needs cargo-fuzz, which it installs)"
	@echo "make setup  only install what the build and the tests need"

setup:
	@scripts/setup test

setup-build:
	@scripts/setup build

demo: setup-build
	@scripts/say "Building tidelock (the first build compiles RocksDB and takes 10 to 20 minutes on 2 cores)"
	$(CARGO) build --locked --bin tidelock
	@scripts/run-built tidelock demo

# Strategies for every kind of entry take more stack than a test's thread has by default, where little is optimised.
test test-matrix: export RUST_MIN_STACK := 8388608

test: setup
	@scripts/say "Format"
	$(CARGO) fmt --all --check
	@scripts/say "Clippy"
	@CARGO="$(CARGO)" scripts/lint
	@scripts/say "Unit, property and integration tests"
	$(CARGO) test --locked --lib --bins --test it
	@scripts/say "Doc tests"
	$(CARGO) test --locked --doc

MATRIX ?= 14 15 16 17 18
# What needs no PostgreSQL server: the same whatever its version is, and long.
MATRIX_SKIP = properties:: architecture:: clients:: setup:: sf_target:: salesforce:: sandbox::tests:: log:: causality::

test-matrix: setup
	@$(CARGO) test --locked --no-run --lib --bins --test it
	@failed=; for version in $(MATRIX); do \
		bin=$$(scripts/postgres "$$version") || exit 1; \
		scripts/say "The tests that need PostgreSQL, with $$("$$bin/postgres" --version)"; \
		TIDELOCK_POSTGRES_BIN="$$bin" $(CARGO) test --locked --no-fail-fast --lib --bins --test it -- $(MATRIX_SKIP:%=--skip %) || failed="$$failed $$version"; \
	done; \
	if [ -n "$$failed" ]; then echo "PostgreSQL:$$failed: tests failed" >&2; exit 1; fi

bench: setup-build
	@scripts/say "Benchmarks (release build; compiles RocksDB once more)"
	$(CARGO) bench --locked

FUZZ_SECONDS ?= 60
FUZZ_TARGETS = pgoutput entry record_state change_event event_schema values settings

# Without a sanitizer the stable compiler will do; all that is fuzzed is safe Rust.
fuzz: setup
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { scripts/say "Installing cargo-fuzz"; $(CARGO) install --locked cargo-fuzz; }
	@for target in $(FUZZ_TARGETS); do \
		scripts/say "Fuzzing $$target"; \
		$(CARGO) fuzz run --sanitizer none --fuzz-dir tests/fuzz $$target -- -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; \
	done
