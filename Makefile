PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
FULL := LOSSBOOK_FULL=1
# notebooks run side by side, one thread each
ONE := OMP_NUM_THREADS=1
export MPLBACKEND := agg

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

tools:
	@command -v $(PYTHON) >/dev/null || { echo "lossbook needs Python 3.10 or newer: $(PYTHON) was not found"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10))' || { echo "lossbook needs Python 3.10 or newer, got $$($(PYTHON) -V)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "lossbook needs Python's venv module (Debian: the package python3-venv)"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "lossbook needs a C++ compiler (c++ or g++): its tests run torch.compile"; exit 1; }

# torch first and from constraints.txt: otherwise the resolver may take a newer build, with several GB of CUDA
.venv/ready: constraints.txt settings.ini pyproject.toml setup.py | tools
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing the pinned dependencies into .venv"
	@$(PY) -m pip install -q "$$(grep '^torch==' constraints.txt)"
	@$(PY) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

# the peers: kornia and MONAI have rows in the table of chapter 01 and in the benchmark
.venv/bench: .venv/ready
	@$(PY) -m pip install -q -c constraints.txt -e '.[bench]'
	@touch $@

book: .venv/ready ## export, run the quickstart, render the site to docs/
	@$(BIN)/nbdev-export
	@$(PY) tools/docs.py quickstart
	@$(PY) tools/docs.py build

docs: .venv/ready ## render the site to docs/ and write README.md
	@$(BIN)/nbdev-export
	@$(PY) tools/docs.py build

PARTS := notebooks contract style fresh
test: .venv/ready ## every notebook, the contract, the style, the freshness of what is generated
	@for part in $(PARTS); do \
	  echo "== $$part"; $(MAKE) --no-print-directory check-$$part || failed="$$failed $$part"; \
	done; \
	if [ -z "$$failed" ]; then echo "make test: all parts passed: $(PARTS)"; \
	else echo "make test: FAILED:$$failed"; exit 1; fi

check-notebooks:
	@$(ONE) $(BIN)/nbdev-test && echo "$$(ls nbs/*.ipynb nbs/tutorials/*.ipynb 2>/dev/null | wc -l) notebooks passed"
check-contract:
	@$(PY) -m pytest
check-style:
	@$(BIN)/chkstyle nbs tools tests setup.py
check-fresh:
	@$(PY) tools/docs.py fresh

evidence: .venv/ready ## run every long experiment in full and save its outputs
	@cd nbs && $(FULL) ../$(BIN)/nbdev-test --save --n-workers 1 tutorials
	@$(BIN)/nbdev-clean

bench: .venv/bench ## time the losses against their peers and save the outputs
	@$(FULL) $(BIN)/nbdev-test --save nbs/benchmarks.ipynb
	@$(BIN)/nbdev-clean

save: .venv/bench ## export, then run every notebook and save its outputs
	@$(BIN)/nbdev-export
	@$(ONE) $(BIN)/nbdev-test --save
	@$(BIN)/nbdev-clean

clean: ## remove the environment and everything that is built, but not docs/
	@rm -rf .venv _proc build dist *.egg-info quickstart.png .pytest_cache .hypothesis

.PHONY: help tools book docs test check-notebooks check-contract check-style check-fresh evidence bench save clean
