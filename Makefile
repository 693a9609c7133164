# PYTHON, 3.11 or newer, creates the virtual environment. ARGS are passed to the recipe or to pytest.
PYTHON ?= python3
ARGS ?=
VENV := .venv
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# All settings are given, because the launcher warns about each one that is not; and its default is one CPU thread.
LAUNCH := $(VENV)/bin/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(CORES)

.PHONY: help quickstart test test-oldest test-newest faults check types docs dist

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/installed-quickstart  ## train a small BERT on the shipped sample; ARGS='--seed 1 --output_dir runs/second'
	$(LAUNCH) recipes/train_multitask.py quickstart.yaml $(ARGS)

test: $(VENV)/installed-test  ## run the tests, in two processes with one thread each; ARGS='-k schedule'
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

test-oldest: .venv-oldest/installed  ## run the tests with the oldest versions that setup.cfg allows
test-newest: .venv-newest/installed  ## run the tests with the newest versions that setup.cfg allows
test-oldest test-newest: test-%:
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

faults: $(VENV)/installed-test  ## kill runs, damage inputs, fill disks; over an hour; ARGS='--kills 300 --soak 60 -k kills'
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/faults -m faults -s $(ARGS)

check: $(VENV)/installed-dev  ## check style and formatting, as pre-commit does
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/installed-dev  ## check the types of the public names, as a user's type checker does
	$(VENV)/bin/mypy

docs: $(VENV)/installed-docs  ## build the documentation site, site/index.html
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo 'The site is in site/; open site/index.html in a browser.'

dist: $(VENV)/installed-dev  ## build the wheel and the source distribution, and check them; uploads nothing
	rm -rf build dist
	$(VENV)/bin/python -m build
	$(VENV)/bin/twine check --strict dist/*

$(VENV)/installed-%: setup.cfg pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

# uv reads the lowest versions from setup.cfg, so there is no second list of versions to maintain.
.venv-oldest/installed: RESOLUTION := lowest-direct
.venv-newest/installed: RESOLUTION := highest
.venv-%/installed: setup.cfg pyproject.toml
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet uv
	.venv-$*/bin/uv pip install --quiet --python .venv-$* --resolution $(RESOLUTION) --editable '.[test,demo,ray,benchmark]'
	touch $@
