# make demo    train, evaluate and film a small latent scene (about 6 minutes on 2 cores after the install)
# make demo-prior    a scene from three photos with the prior that the package carries (a minute)
# make test    lint, types and tests; the same as .ci/run
# make test-lowest    tests with the oldest packages that pyproject.toml allows, in an environment of their own
# make docs    the documents and the API reference, to outputs/site/index.html
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: demo demo-prior test test-lowest lint docs clean

demo: $(VENV)/installed
	$(BIN)/python scripts/demo.py

demo-prior: $(VENV)/installed
	$(BIN)/python scripts/demo_prior.py

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[docs]'
	$(BIN)/mkdocs build --strict

test-lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest tests/autoencoder tests/data tests/models tests/pipelines \
		tests/test_registration.py

$(LOWEST)/installed: RESOLUTION = --resolution lowest-direct

# uv installs Nerfstudio's 200 packages in a minute; pip needs five. Compiled once, they are imported in a third of the
# time where Python may write no bytecode.
%/installed: pyproject.toml
	test -x $*/bin/python || $(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --upgrade uv
	$*/bin/uv pip install --compile-bytecode --python $*/bin/python $(RESOLUTION) --editable '.[dev,demo]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) outputs
