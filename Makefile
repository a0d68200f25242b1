# Weir from a fresh clone: Python 3.11 or newer and make are enough. `make help` lists the targets.
# Everything is installed below this directory (.uv, .venv) except the system packages of `make test`.

.DEFAULT_GOAL := help
.PHONY: help demo test check bench chaos proto setup
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

# Arguments for weir dev, pytest and the benches: make demo ARGS="--headless --for 60"
ARGS ?=
# The first python3 that is new enough; name another with make PYTHON=...
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $$p && break; done)

# uv and the interpreter it shall use, found or fetched once per call of make
define WITH_UV
	@if [ -z "$(PYTHON)" ]; then \
	  echo "make: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	uv=$$("$(PYTHON)" scripts/bootstrap_uv.py) || exit 1; \
	UV_PYTHON=$$("$(PYTHON)" scripts/bootstrap_uv.py --python) || exit 1; \
	UV_PYTHON_DOWNLOADS=never; \
	export UV_PYTHON UV_PYTHON_DOWNLOADS;
endef

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | sort | \
	  while IFS='	' read -r name what; do printf '  make %-8s %s\n' "$$name" "$$what"; done

demo: ## three regions on this machine, payments through Envoy, a live view; Ctrl-C stops everything
	$(WITH_UV) exec "$$uv" run --locked --no-group dev weir dev $(ARGS)

setup: ## install what the tests need (system packages through apt where it may)
	@scripts/test_setup.sh
	$(WITH_UV) "$$uv" sync --locked

test: setup ## install what the tests need and run the whole suite, three files at a time
	$(WITH_UV) exec "$$uv" run --quiet --locked pytest --numprocesses 3 --dist loadfile $(ARGS)

check: ## format, lint, types, import contracts, generated code, API: seconds
	$(WITH_UV) run="$$uv run --quiet --locked"; \
	  $$run ruff format --check . && $$run ruff check . && $$run mypy && $$run lint-imports || exit 1; \
	  for generator in scripts/gen_*.py scripts/sync_*.py; do \
	    $$run python $$generator --check || exit 1; \
	  done; \
	  $$run buf lint

proto: ## generate controlplane/v1 from proto/
	$(WITH_UV) exec "$$uv" run --quiet --locked python scripts/gen_proto.py

bench: ## every measurement in bench/, each prints a table
	$(WITH_UV) for bench in bench/*.py; do \
	  echo "== $$bench"; "$$uv" run --quiet --locked python "$$bench" $(ARGS) || exit 1; \
	done

chaos: ## the failover laboratory, every scenario (needs root; ARGS="region-killed --runs 20")
	$(WITH_UV) exec "$$uv" run --quiet --locked python -m tests.fabric $(ARGS)
