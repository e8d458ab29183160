# GPU Bazaar. `make` alone lists what there is; nothing needs a step before it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Modules of tests that run at a time; most wait more than they compute. `make test WORKERS=0`: one after another.
WORKERS ?= 4
AT_ONCE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo up test check bench lock docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## build .venv with the locked versions
	@:

demo: $(INSTALLED) ## a whole market on this machine: offer, run, result, bill; leaves nothing running
	@$(BIN)/python examples/demo.py

up: $(INSTALLED) ## start the embedded market and stay in the foreground
	@$(BIN)/bazaar-market up

test: $(INSTALLED) ## every test this machine can run; says what it skipped and why
	@$(BIN)/pytest -ra $(AT_ONCE)

check: $(INSTALLED) ## format, lint, types, fast tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pytest -q $(AT_ONCE) tests/test_architecture.py tests/unit tests/property

bench: $(INSTALLED) ## measure, and print a table with the sync setting of every figure
	@for file in $(filter-out benchmarks/own_targets.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

docs: $(INSTALLED) ## write the generated pages of docs/ again
	@$(BIN)/python docs/generate.py

lock: ## resolve the dependencies again (needs uv)
	uv lock --no-config --default-index https://pypi.org/simple --upgrade
	uv export --no-config --default-index https://pypi.org/simple --locked --no-header --no-annotate --format requirements-txt \
		--all-extras --all-groups --no-emit-project -q -o requirements.lock

# Debian's python3 comes without ensurepip, and often without pip. Then pip is taken from the index: the wheel
# that uv.lock names, checked against the hash that uv.lock holds.
define FETCH_PIP
import hashlib, pathlib, sys, tomllib, urllib.request
packages = tomllib.loads(pathlib.Path("uv.lock").read_text())["package"]
wheel = next(p for p in packages if p["name"] == "pip")["wheels"][0]
try:
    data = urllib.request.urlopen(wheel["url"], timeout=60).read()
except OSError as error:
    sys.exit(f"This python3 has no pip, and {wheel['url']} cannot be fetched: {error}. Try: apt-get install python3-venv")
if hashlib.sha256(data).hexdigest() != wheel["hash"].removeprefix("sha256:"):
    sys.exit(f"The file at {wheel['url']} is not the one that uv.lock names. Try: apt-get install python3-venv")
pathlib.Path(sys.argv[1]).write_bytes(data)
endef
export FETCH_PIP

$(INSTALLED): pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. GPU Bazaar needs Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V); GPU Bazaar needs Python 3.11 or newer. Try: make PYTHON=python3.12 install" >&2; exit 1; }
	@echo "Building $(VENV) (once; about 150 MB) ..." >&2
	@set -e; \
	if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); pip="$(BIN)/python -m pip"; \
	else \
		$(PYTHON) -m venv --without-pip $(VENV); \
		if $(PYTHON) -m pip --version >/dev/null 2>&1; then pip="$(PYTHON) -m pip --python $(BIN)/python"; \
		else $(PYTHON) -c "$$FETCH_PIP" $(VENV)/pip.whl; pip="$(BIN)/python $(VENV)/pip.whl/pip"; fi; \
	fi; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	$$pip install --quiet --require-hashes -r requirements.lock; \
	$$pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
