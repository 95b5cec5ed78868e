.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
LOCK ?= requirements.lock
RUN ?= default
WITH ?= quick
SCRATCH := build/test-reports
LITERT := build/litert
ARM := build/arm
PY := $(VENV)/bin/python
export PATH := $(abspath $(VENV))/bin:$(PATH)

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.edgeopt  ## make the virtual environment and install the pinned packages

# All cores compile what pip would with one; a file of torch is for newer Pythons.
$(VENV)/.edgeopt: pyproject.toml requirements.lock
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-compile --no-deps --require-hashes --requirement $(LOCK)
	$(PY) -m pip install --quiet --no-compile --editable '.[distributed,executorch,litert,openvino,dev]'
	$(PY) -m compileall -q -j 0 -x '/tests?/|py312_intrinsics' $(VENV)/lib
	touch $@

litert: setup $(LITERT)/.edgeopt  ## install the converter of the runtime litert, in an environment of its own

$(LITERT)/.edgeopt: Makefile
	test -x $(LITERT)/bin/python || $(PYTHON) -m venv $(LITERT)
	$(LITERT)/bin/python -m pip install --quiet torch==2.13.0 torchao==0.18.0 \
		litert-torch==0.10.0 ai-edge-quantizer==0.10.0 ai-edge-litert==2.3.0
	touch $@

report: setup  ## run params/$(RUN).yaml into reports/$(RUN)/index.html
	$(PY) -m edgeopt report --params params/$(RUN).yaml

check: setup  ## check params/$(RUN).yaml and all that it names, and train nothing
	$(PY) -m edgeopt check --params params/$(RUN).yaml

test: export EDGEOPT_REPORTS = $(abspath $(SCRATCH))
# Several processes share the cores: more threads than cores wait for each other.
test: export OMP_NUM_THREADS = 1
test: setup  ## run everything CI runs
	rm -rf $(SCRATCH)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(MAKE) --jobs=2 --output-sync=target test-code test-notebooks

test-code: setup
	$(PY) -m pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder

# Chapter 8 searches, which the quick run does not.
test-notebooks: export JUPYTER_DEFAULT_PROVISIONER_NAME = edgeopt-forked
test-notebooks: setup
	$(PY) -m pytest --nbval --nbval-sanitize-with tests/nbval.cfg notebooks/0[!8]*.ipynb

lock:  ## resolve pyproject.toml anew into requirements.lock, with a hash for every file
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet pip-tools
	build/lock/bin/pip-compile --quiet --generate-hashes --all-extras --strip-extras --no-annotate \
		--no-header --no-emit-index-url --no-emit-find-links --unsafe-package torch \
		--unsafe-package torchvision --output-file requirements.lock pyproject.toml
	sed -i '/^# The following packages/,$$d' requirements.lock

audit: setup  ## known vulnerabilities and the licences of the pinned packages, as a report
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit pip-licenses
	-build/audit/bin/pip-audit --no-deps --disable-pip --requirement requirements.lock
	build/audit/bin/pip-licenses --python $(PY) --from mixed --order license | grep '^ [A-Za-z0-9]' | cut -c -110

chaos: setup  ## faults on purpose, hundreds: what is lost, left behind, or told badly?
	$(PY) -m tests.chaos

mutants: setup  ## change the core in one place at a time: which changes do tests notice?
	$(PY) -m tests.mutants

test-slow: setup  ## run the simulations and long trainings too
	$(PY) -m pytest -m slow

test-arm: setup $(ARM)/.edgeopt  ## run the agent on an emulated ARM machine; needs Debian
	$(PY) -m pytest -m arm tests/arm

$(ARM)/.edgeopt: pyproject.toml tests/arm/emulator.py
	$(PY) -m tests.arm.emulator
	touch $@

bench: setup  ## measure speed, memory and quality, as ratios
	$(PY) -m benchmarks

lab: setup  ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

lint: setup  ## format and lint the code
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

notebooks: setup  ## execute the quick run in place, so that the committed outputs are fresh
	$(PY) -m jupytext --quiet --update --to ipynb notebooks/*.py
	$(PY) -m edgeopt report --params params/quick.yaml --write-back

verify: setup  ## recompute the checksums of reports/$(RUN)
	$(PY) -m edgeopt verify --run $(RUN)

bundle: setup  ## write reports/$(RUN)/bundle.pyz, which measures the run on a device without a network
	$(PY) -m edgeopt bundle --run $(RUN)

results: setup  ## take the results.json of a bundle into the run: make results RUN=x FROM=results.json
	$(PY) -m edgeopt results --run $(RUN) --from $(FROM)

compare: setup  ## compare the runs $(RUN) and $(WITH); FAIL=1: exit with 1 when the pick got worse
	$(PY) -m edgeopt compare $(RUN) $(WITH) $(if $(FAIL),--fail)

docs: setup  ## build the documentation into build/docs; warnings are errors
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs

readme: setup  ## write the results of reports/$(RUN) into README.md
	$(PY) -m edgeopt readme --run $(RUN)

clean:  ## remove the reports
	git clean -fdXq reports

.PHONY: help docs setup litert report check test test-code test-notebooks lock audit chaos mutants test-slow test-arm bench lab lint notebooks verify bundle results compare readme clean
