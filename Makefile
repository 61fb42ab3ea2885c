# `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .tools/bin
PROTOS := $(shell find protos -name '*.proto')
export PYTHONPATH := .:gen
# Hundreds of processes start here; each would compile the code again.
unexport PYTHONDONTWRITEBYTECODE
T ?=
N ?=
PHOTOS ?=
FACTS ?=
PROVIDER ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo '  make test T=tests/assets            the tests of a folder, a file or a name'
	@echo '  make demo PHOTOS="a.jpg b.jpg" FACTS=facts.yaml'
	@echo '  make demo PROVIDER=gemini           with a model; its key is in the environment'

.PHONY: setup
setup: $(VENV)/run.stamp gen/atelier.binpb ## Virtual environment with locked requirements, and the stubs

# pip is the last thing that venv makes: without it an interrupted run is begun anew.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'atelier needs Python 3.11 or later: make PYTHON=python3.12'; exit 2; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo 'python3 -m venv failed; on Debian: apt-get install python3-venv'; exit 2; }

# pyvips comes as source only; its binary part is pyvips-binary. What builds it is installed first, with hashes too.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes

$(VENV)/build.stamp: requirements/build.txt | $(VENV)/bin/pip
	@$(INSTALL) --only-binary :all: -r requirements/build.txt
	@touch $@

$(VENV)/run.stamp: requirements/run.txt $(VENV)/build.stamp
	@echo 'Installing what the services need (once, about half a minute) ...'
	@$(INSTALL) --no-build-isolation -r requirements/run.txt
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/build.stamp
	@echo 'Installing what the tests need (once) ...'
	@$(INSTALL) --no-build-isolation -r requirements/dev.txt
	@touch $@ $(VENV)/run.stamp

# Optional: what reads labels, 390 MB. The services notice by themselves that it is there.
$(VENV)/reading.stamp: requirements/reading.txt $(VENV)/run.stamp
	@echo 'Installing what reads labels (once, 390 MB) ...'
	@$(INSTALL) --only-binary :all: -r requirements/reading.txt
	@touch $@

.PHONY: reading
reading: setup $(VENV)/reading.stamp ## Install what reads labels in photographs (optional, 390 MB)

gen/atelier.binpb: $(PROTOS) tools/stubs.py $(VENV)/run.stamp
	@$(BIN)/python tools/stubs.py

.PHONY: stubs
stubs: gen/atelier.binpb ## Python stubs and the descriptor set from protos/

.PHONY: protos
protos: gen/atelier.binpb ## dist/: the contract for clients in other languages
	@$(BIN)/python -m tools.protos

.PHONY: demo
demo: setup ## From photographs to a tech pack, with everything it needs
	@./atelier demo $(PHOTOS) $(if $(FACTS),--facts $(FACTS)) $(if $(PROVIDER),--provider $(PROVIDER))

.PHONY: up
up: setup ## Keep the suite running; prints endpoints and calls to paste
	@./atelier up

.PHONY: dev
dev: setup $(VENV)/dev.stamp ## The suite with restart on change; logs in this terminal
	@./atelier dev

.PHONY: test
test: setup $(VENV)/dev.stamp | $(TOOLS)/versitygw $(TOOLS)/grpcurl ## All tests that take a moment each; with T= also the long ones there
	@tools/test.sh test $(T)

.PHONY: long
long: setup $(VENV)/dev.stamp | $(TOOLS)/versitygw $(TOOLS)/grpcurl ## The tests that take seconds each
	@tools/test.sh long $(T)

# Of these files the tests that name the noun, and those that look at every noun at once.
GUARDS := tests/test_schema.py tests/test_statements.py tests/test_row_security.py \
	tests/test_tenancy.py tests/test_pages.py tests/test_answers.py tests/test_any_bytes.py \
	tests/test_erasure.py \
	tests/contract tests/webhooks/test_endpoints.py tests/docs tests/assets tests/conversions \
	tests/pipeline tests/techfiles
EVERY := test_schema or test_comments or test_options or test_contributing or every_table \
	or every_subject or every_rpc_has or every_rpc_with or names_every_type or every_page_is
.PHONY: guards
guards: setup $(VENV)/dev.stamp | $(TOOLS)/versitygw $(TOOLS)/grpcurl ## The tests that guard one noun, such as N=fabric, in a minute or two
	@[ -n "$(N)" ] || { echo 'Which noun? make guards N=fabric'; exit 2; }
	@tools/test.sh test -k '$(N) or $(subst _,,$(N)) or $(EVERY)' $(GUARDS)

.PHONY: docs
docs: setup $(VENV)/dev.stamp | $(TOOLS)/versitygw ## Run every command of the documents, as it stands
	@tools/test.sh docs $(T)

.PHONY: examples
examples: setup $(VENV)/dev.stamp ## Build and run the clients in Go, TypeScript, Java and Rust (minutes at first)
	@tools/test.sh examples $(T)

.PHONY: faults
faults: setup $(VENV)/dev.stamp | $(TOOLS)/versitygw ## Kill, freeze and cut real processes (up to 20 minutes)
	@tools/test.sh faults $(T)

# The models' folder: .tools/vision, or the one that the setting names.
VISION := $(or $(ATELIER_VISION_MODELS),.tools/vision)

.PHONY: vision
vision: setup ## The models by which `local` finds persons and faces (optional; 140 MB)
	@$(INSTALL) --only-binary :all: -r requirements/vision.txt
	@$(BIN)/python -m tools.vision_models $(VISION)
	@echo 'Set ATELIER_VISION_MODELS=$(abspath $(VISION)) for the workers of conversions.'

# The fonts' folder.
FONTS := .tools/fonts

.PHONY: fonts
fonts: setup ## Open fonts for documents in Chinese, Japanese, Korean, Arabic, Hebrew, Thai, Hindi (optional; 50 MB)
	@$(BIN)/python -m tools.print_fonts $(FONTS)
	@echo 'Set ATELIER_FONTS=$(abspath $(FONTS)) for the workers.'

.PHONY: lint
lint: setup $(VENV)/dev.stamp ## Style, types, contract and import rules: what check does without running code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy services shared web cli tools tests bench examples --any-exprs-report .mypy_cache/any
	@$(BIN)/python tools/any_share.py .mypy_cache/any
	@$(BIN)/buf lint gen/atelier.binpb
	@tools/breaking.sh
	@$(BIN)/lint-imports --no-cache

.PHONY: check
check: setup $(VENV)/dev.stamp | $(TOOLS)/promtool ## Style, types, contract, import and alert rules, tests, documents
	@$(MAKE) --no-print-directory lint
	@if [ -x $(TOOLS)/promtool ]; then cd ops && ../$(TOOLS)/promtool check rules prometheus-rules.yml && \
	../$(TOOLS)/promtool test rules prometheus-rules-test.yml; else echo 'left out (needs Go): promtool on the alert rules'; fi
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory long
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory examples
	@$(MAKE) --no-print-directory reading
	@tools/test.sh reading

.PHONY: bench
bench: setup $(VENV)/dev.stamp ## Speeds as ratios to a reference of the same run
	@$(BIN)/python -m bench

.PHONY: bench-count
bench-count: setup $(VENV)/dev.stamp ## Instructions per call of B1 and B3 (needs valgrind): 3 % can be seen
	@$(BIN)/python -m bench.count

# versitygw is a real S3 server for the storage tests. Where Go is missing, those tests are left out by name.
$(TOOLS)/versitygw:
	@if command -v go >/dev/null; then echo 'Building versitygw, a real S3 server for the tests (once) ...'; \
	GOBIN=$(CURDIR)/$(TOOLS) go install github.com/versity/versitygw/cmd/versitygw@v1.7.0; fi

# grpcurl is the client that people ask a server with; its tests are left out likewise.
$(TOOLS)/grpcurl:
	@if command -v go >/dev/null; then echo 'Building grpcurl, a client for the tests (once, a minute) ...'; \
	GOBIN=$(CURDIR)/$(TOOLS) go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3; fi

# promtool checks the alert rules and runs their tests. Its module can't be installed by name, since it excludes versions
# of others; as a requirement of an empty module it can.
$(TOOLS)/promtool:
	@if command -v go >/dev/null; then echo 'Building promtool, which checks the alert rules (once, some minutes) ...'; \
	mkdir -p $(TOOLS) && rm -rf $(TOOLS)/promtool.build && mkdir $(TOOLS)/promtool.build && cd $(TOOLS)/promtool.build && \
	go mod init tools 2>/dev/null && go get github.com/prometheus/prometheus/cmd/promtool@v0.308.0 2>/dev/null && \
	go build -o ../promtool github.com/prometheus/prometheus/cmd/promtool && cd .. && rm -rf promtool.build; fi

.PHONY: lock
lock: $(VENV)/dev.stamp ## Lock requirements/*.in again, with hashes
	@$(BIN)/pip install --quiet uv
	@for f in run reading vision dev build; do $(BIN)/uv pip compile -q --generate-hashes --python-version 3.11 --universal --no-header --no-emit-index-url --no-annotate requirements/$$f.in -o requirements/$$f.txt; done
	@cd examples/model-server && $(CURDIR)/$(BIN)/uv pip compile -q --generate-hashes --python-version 3.11 --universal --no-header --no-emit-index-url --no-annotate -c ../../requirements/run.txt requirements.in -o requirements.txt

.PHONY: clean
clean: ## Remove what was built here; state in .atelier/ stays
	rm -rf $(VENV) gen dist .mypy_cache .ruff_cache
