# Everything a person does here by hand. `make` lists it. CARGO_TARGET_DIR is honoured throughout.
.DEFAULT_GOAL := help
.PHONY: help demo test long bench chaos fuzz lint fmt golden compose

shell_scripts := scripts/* config/container-entrypoint .ci/run tests/it/support/rabbitmq-node tests/it/support/shared-server tests/peer/celery/install tests/peer/girder/install tests/peer/girder/start bench/peers/install bench/peers/leash
nextest_profile := $(if $(CI),ci,default)

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## install what is missing, build, and run a container task through the queue
	@scripts/c-compiler
	@scripts/docker-engine
	@scripts/busybox-image
	cargo build --release
	@scripts/demo

test: ## install what the tests need and run all of them on real servers
	@scripts/test-servers
	cargo nextest run --profile $(nextest_profile)

long: ## run the tests that wait for minutes
	@scripts/test-servers
	cargo nextest run --profile long

bench: ## measure against the machine's limits and the Python worker; bench/README.md tells how to read it
	@scripts/c-compiler
	@scripts/docker-engine
	@scripts/busybox-image
	cargo bench --bench figures

chaos: ## every fault on every broker: CHAOS_TASKS (1000), CHAOS_SEEDS (3), CHAOS_OUTAGE (30 s), CHAOS_CONTAINERS (100); ends with a table
	@scripts/test-servers
	@scripts/chaos

fuzz: ## feed every decoder rubbish, each for FUZZ_SECONDS (1200); needs a nightly compiler
	@scripts/c-compiler
	@scripts/fuzz

golden: ## keep what this version writes below tests/golden, once, before it is released
	@scripts/test-servers
	LONGSHORE_GOLDEN=1 cargo nextest run -E 'test(what_this_version_writes)'

compose: ## bring docker-compose.yml up, run a task through each broker, take it down
	@scripts/c-compiler
	@scripts/docker-engine
	@scripts/apt-install docker-compose nats-server redis-server rabbitmq-server
	cargo build --release
	@scripts/compose-proof

lint: ## formatting, clippy, shellcheck and cargo-deny (the last two where they are installed)
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck $(shell_scripts); else echo "shellcheck is not installed: scripts not checked"; fi
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo "cargo-deny is not installed: dependencies not checked"; fi

fmt: ## format the code
	cargo fmt
