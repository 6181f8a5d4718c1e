# Each target is a thin call of what a person could type; tools/install keeps .venv up to date and does nothing when it is.

python := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help install run test security e2e bench check fix lock demo-models clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: ## everything that the other targets need, into .venv
	@tools/install dev

run: ## the whole stack on this machine, without containers (MODELS=full for the real models)
	@tools/install run
	@$(python) tools/run_local.py

test: install ## all tests (ARGS="-k name" for some)
	$(python) -m pytest --numprocesses 2 --dist loadfile $(ARGS)

security: install ## the tests behind docs/security.md in their long form, about an hour, and that page (ARGS="-k name": some of them, no page)
	@mkdir -p data
	$(python) -m pytest -m security --thorough --junitxml=data/security.xml $(ARGS); status=$$?; \
	  $(python) tools/security_report.py data/security.xml $(if $(ARGS),,--page docs/security.md) && exit $$status

e2e: install ## build the images and test them as containers, with Docker (ARGS="-k name" for some)
	$(python) -m pytest tests/e2e -v -rs $(ARGS)

bench: install ## measure against bare models and peers; writes docs/performance.md (ARGS=--quick for a first look)
	PYTHONPATH=tools:yolo $(python) bench/run.py $(ARGS)

check: install ## style, types, locks, known weaknesses and documentation, changing nothing
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy
	set -e; for main in */main.py; do echo $(python) -m mypy $$main; $(python) -m mypy $$main; done
	$(python) tools/lock.py --check
	$(python) tools/audit.py
	$(python) -m pytest -q tests/test_tooling.py

fix: install ## what ruff can mend by itself
	$(python) -m ruff check --fix
	$(python) -m ruff format

lock: install ## requirements.txt from requirements.in (UPGRADE=1 for the newest versions)
	$(python) tools/lock.py $(if $(UPGRADE),--upgrade)

demo-models: ## train the bundled models anew
	@tools/install run
	$(python) demo/train.py

clean: ## remove .venv and caches; .env and data/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis common/visionstack.egg-info common/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
