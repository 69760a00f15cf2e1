PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
FULL := export LOSSBOOK_FULL=1;
# what is long runs in full under `make evidence` and `make bench`, and is saved there
LONG = nbs/benchmarks.ipynb nbs/tutorials/%
CHAPTERS = $(filter-out $(LONG),$(wildcard nbs/*.ipynb))
run := $(PY) tools/notebooks.py
write_lib = $(BIN)/nbdev-export && $(PY) tools/stubs.py
export MPLBACKEND := agg
# what was compiled for other instructions must not be found
ifdef ATEN_CPU_CAPABILITY
export TORCHINDUCTOR_CACHE_DIR ?= $(CURDIR)/.venv/inductor-$(ATEN_CPU_CAPABILITY)
endif

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

tools:
	@command -v $(PYTHON) >/dev/null || { echo "building the book needs Python 3.11 or newer: $(PYTHON) was not found"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,11))' || { echo "building the book needs Python 3.11 or newer, got $$($(PYTHON) -V)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "building the book needs Python's venv module (Debian: the package python3-venv)"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "building the book needs a C++ compiler (c++ or g++): its tests run torch.compile"; exit 1; }

# torch first and from constraints.txt: otherwise the resolver may take a newer build, with several GB of CUDA
.venv/ready: constraints.txt settings.ini pyproject.toml setup.py | tools
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing the pinned dependencies into .venv"
	@$(PY) -m pip install -q "$$(grep '^torch==' constraints.txt)"
	@$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

# the peers: kornia and MONAI have rows in the table of the check chapter and in the benchmark; the trainers have a page
.venv/bench: .venv/ready
	@$(PY) -m pip install -q -c constraints.txt -e '.[bench,trainers]'
	@touch $@

book: .venv/bench ## export, run the quickstart, render the site to docs/
	@$(write_lib)
	@$(PY) tools/docs.py quickstart
	@$(PY) tools/docs.py build

docs: .venv/bench ## render the site to docs/ and write README.md
	@$(write_lib)
	@$(PY) tools/docs.py build

PARTS := notebooks contract style fresh
test: .venv/bench ## every notebook, the contract, the style, the freshness of what is generated
	@for part in $(PARTS); do \
	  echo "== $$part"; start=$$(date +%s); \
	  $(MAKE) --no-print-directory check-$$part || failed="$$failed $$part"; \
	  echo "== $$part took $$(( $$(date +%s) - start )) s"; \
	done; \
	if [ -z "$$failed" ]; then echo "make test: all parts passed: $(PARTS)"; \
	else echo "make test: FAILED:$$failed"; exit 1; fi

test-quick: PARTS := quick style fresh
test-quick: test ## for the daily change: core, one loss of each task, one notebook, style, freshness

test-portable: .venv/bench ## every notebook as other machines and other seeds would run it; all cells that fail
	@$(run) --portable

check-notebooks:
	@$(run)
check-contract:
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2
# one loss of each task through the whole contract
QUICK := CrossEntropyLoss BinaryFocalLoss MSELoss TripletMarginLoss InfoNCE SpanLoss
empty :=
space := $(empty) $(empty)
check-quick:
	@$(run) nbs/13_focal.ipynb
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 tests/test_core.py tests/test_blocks.py tests/test_check.py tests/test_all.py tests/test_settings.py
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 tests/test_contract.py tests/test_matrix.py -k "$(subst $(space), or ,$(QUICK:%=[%))"
check-style:
	@$(PY) tools/style.py nbs tools tests setup.py
check-fresh:
	@$(PY) tools/docs.py fresh

.venv/site: .venv/ready
	@$(PY) -m pip install -q -c constraints.txt -e '.[site]'
	@cd .venv && npm pack --silent axe-core@4.10.3 >/dev/null && mkdir -p axe && tar xzf axe-core-4.10.3.tgz -C axe
	@touch $@

site-test: ## the rendered site in Chromium: nothing cut, accessible, offline, links land
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null && command -v npm >/dev/null; then \
	  $(MAKE) --no-print-directory .venv/site && AXE=.venv/axe/package/axe.min.js $(PY) -m pytest -n 2 $(wildcard tests/browser*.py); \
	else echo "make site-test: left out, since chromium, chromedriver or npm was not found"; fi

# the versions that settings.ini names as the oldest; FLOORS='torch==2.9.1 ...' tries others, FLOOR_PIP goes to pip
FLOOR ?= .venv-floor
FLOOR_PYTHON ?= python3.10
FLOORS ?= $(shell sed -n 's/^\(fastai_\|plot_\|\)requirements = //p' settings.ini | sed 's/>=/==/g')
FLOOR_TESTS = $(filter-out tests/test_pages.py tests/test_types.py,$(wildcard tests/test_*.py))

$(FLOOR)/ready: settings.ini
	@$(FLOOR_PYTHON) -m venv $(FLOOR)
	@echo "installing $(FLOORS) into $(FLOOR); PyTorch for CUDA is several GB"
	@$(FLOOR)/bin/python -m pip install -q --upgrade pip
	@$(FLOOR)/bin/python -m pip install -q $(FLOOR_PIP) $(FLOORS) build pytest hypothesis
	@touch $@

test-floor: $(FLOOR)/ready ## the wheel and the tests of its modules with the oldest versions allowed
	@rm -rf $(FLOOR)/dist build
	@$(FLOOR)/bin/python -m build --outdir $(FLOOR)/dist . >/dev/null
	@$(FLOOR)/bin/python -m pip install -q --no-deps --force-reinstall $(FLOOR)/dist/*.whl
	@cd $(FLOOR) && OMP_NUM_THREADS=1 bin/python -m pytest -W ignore --show-capture=no -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(FLOOR_TESTS:%=$(CURDIR)/%)

evidence: .venv/bench ## run every long experiment in full and save its outputs
	@$(FULL) $(run) --save $(wildcard nbs/tutorials/*.ipynb)
	@$(run) --save nbs/evidence.ipynb
	@$(BIN)/nbdev-clean

bench: .venv/bench ## time the losses against their peers and save the outputs
	@$(FULL) $(run) --save nbs/benchmarks.ipynb
	@$(BIN)/nbdev-clean

save: .venv/bench ## export, then run every notebook and save its outputs
	@$(write_lib)
	@$(run) --save $(CHAPTERS)
	@$(BIN)/nbdev-clean

clean: ## remove the environments and everything that is built, but not docs/
	@rm -rf .venv .venv-floor _proc build dist *.egg-info quickstart.png .pytest_cache .mypy_cache .hypothesis

.PHONY: help tools book docs test test-quick test-portable site-test test-floor check-notebooks check-contract check-quick check-style check-fresh evidence bench save clean
