# Two commands on a fresh machine: `make train` and `make test`. Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
LOWER = $(VENV)/lower
RUN = $(VENV)/bin/python

.PHONY: help setup train test test-lower lint types doctest docs clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing sam_gym, torch, Stable-Baselines3 and the developers' tools into $(VENV) (5 GB, some minutes)"
	$(RUN) -m pip install -e ".[dev]"
	@touch $@

setup: $(VENV)/installed  ## the virtual environment .venv

train: setup  ## train the default agent on SamPrompt-ISBI-v0 and print how it does on held-out sections
	$(RUN) agents/train_ppo.py $(ARGS)

# One compute thread per test process: two processes with two threads each on two cores wait for each other.
test: setup  ## all tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

# An environment of its own that holds the oldest Gymnasium and RLlib, which pins just that one, and finds all else in the
# other one.
$(LOWER)/installed: $(VENV)/installed
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip install --no-deps "$$(sed -n 's/^ *"\(gymnasium\)>=\(.*\)",/\1==\2/p' pyproject.toml)"
	$(RUN) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > "$$($(LOWER)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth"
	$(LOWER)/bin/python -m pip install "$$(sed -n 's/^rllib = .*"\(ray[^"]*\)".*/\1/p' pyproject.toml)"
	@touch $@

test-lower: $(LOWER)/installed  ## environments, SamVecEnv and RLlib with the oldest Gymnasium that is allowed
	OMP_NUM_THREADS=1 $(LOWER)/bin/python -m pytest -n 2 --dist loadfile -m "not weights" tests/envs tests/sb3/test_vec_env.py tests/rllib $(ARGS)

lint: setup  ## ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: setup  ## mypy on the package
	$(RUN) -m mypy

doctest: setup  ## the examples in docstrings
	$(RUN) -m pytest --doctest-modules sam_gym --ignore=sam_gym/trainers/rllib.py -q

docs: setup  ## the documentation as a site, in site/
	$(RUN) -m mkdocs build --strict

clean:  ## remove the virtual environment and caches, keep runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build site *.egg-info
