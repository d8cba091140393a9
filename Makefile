# Cairn. `make help` lists what there is. Needs: the Rust toolchain, make, and on a fresh machine
# root and apt, with which the rest is installed.

RELEASE := target/release

help:
	@echo 'make demo    a node in the foreground with disk files in ./demo, files served over NFSv3'
	@echo 'make test    unit tests, house rules, system tests with the real Linux client (25 minutes at most)'
	@echo 'make bench   our server beside its peers in one run; writes docs/performance.md'
	@echo 'make bench-check  fails when our server is less far ahead of its peers than tests/perf/levels.toml'
	@echo 'make soak    the system tests that find more the longer they run (SOAK_HOURS, default 8)'
	@echo 'make crash   the crash-point checker (CRASH_STATES, default 50000; CRASH="..." passes options)'
	@echo 'make mutants breaks the program on purpose and sees whether the tests notice'
	@echo 'make tsan    a node under ThreadSanitizer and many clients (TSAN_SECONDS, default 120)'
	@echo 'make fuzz    every decoder under the fuzzer (FUZZ_SECONDS for each, default 20)'
	@echo 'make lint    formatting and clippy'

# DEMO passes options: make demo DEMO='--disks 12 --raid raid4'
demo:
	cargo build --release --locked --bin cairn
	exec $(RELEASE)/cairn demo --dir demo $(DEMO)

test:
	@tests/run all

unit:
	@tests/run unit

system:
	@tests/run system

bench:
	@tests/perf/bench

bench-check:
	@tests/perf/check

soak:
	@tests/run soak

# CRASH passes options: make crash CRASH='--shape raid4 --workload write-block,point --state 95:all'
crash:
ifdef CRASH
	cargo run --profile crash --locked -p cairn-crash -- $(CRASH)
else
	@tests/run crash
endif

mutants:
	@tests/mutants/run

# TSAN_SECONDS says how long.
tsan:
	@tests/run tsan

fuzz:
	@tests/run fuzz

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked

.PHONY: help demo test unit system bench bench-check soak crash tsan fuzz mutants lint
