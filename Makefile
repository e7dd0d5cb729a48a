# `make demo` installs and trains on simulated cancers; `make test` installs and runs the tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-torch test-slurm test-image lint docs clean

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"error: Python 3.11 or newer is needed, {sys.executable} is {v[0]}.{v[1]}; run make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/installed-torch: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[bench]'
	touch $@

demo: $(VENV)/installed
	$(RUN) scripts/demo.py

test: $(VENV)/installed
	$(RUN) -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not torch and not slurm and not image"

test-torch: $(VENV)/installed-torch
	$(RUN) -m pytest -q -m torch

test-slurm: $(VENV)/installed
	$(RUN) -m pytest -q -rs -m slurm tests/jobs

test-image: $(VENV)/installed
	$(RUN) -m pytest -q -rs tests/test_images.py

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/installed
	$(RUN) -m sphinx -W -q -b html docs build/docs

clean:
	rm -rf $(VENV) demo_output
