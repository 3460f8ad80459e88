# Everything is built into build/. `make help` lists what there is.
GO     ?= go
PYTHON ?= python3
PREFIX ?= /usr/local
SEED   ?=

LIB     := build/libmatrixrtc.so
VENV    := build/venv
JSPEER  := tests/e2e/jspeer/node_modules/.package-lock.json
NODE_UP := bindings/node/node_modules/.package-lock.json
GOTAGS  := -tags=goolm
GOFILES := $(shell find core capi -name '*.go' -o -name '*.c' -o -name '*.h' -o -name '*.map') include/matrixrtc.h go.mod go.sum

.PHONY: all help lib test test-fast test-go test-python test-e2e bench lint clean

all: lib

help:
	@sed -n 's/^## /  /p' Makefile

## lib         build/libmatrixrtc.so
lib: $(LIB)

$(LIB): $(GOFILES) capi/build.sh
	sh capi/build.sh $@

$(VENV)/.ready: tests/e2e/requirements.txt $(wildcard bindings/python/requirements-dev.txt)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q $(foreach r,$^,-r $(r))
	touch $@

$(JSPEER): tests/e2e/jspeer/package-lock.json
	cd tests/e2e/jspeer && npm ci --no-audit --no-fund
	touch $@

## test-fast   the developer's loop: unit, scenario and property tests of the core (seconds)
test-fast:
	$(GO) vet $(GOTAGS) ./...
	$(GO) test $(GOTAGS) ./core/...

## test        every test, on a real Synapse with a real matrix-js-sdk peer
test: lint test-go test-python test-e2e

## lint        gofmt, go vet, ruff, mypy
lint: $(VENV)/.ready
	@unformatted=$$(git ls-files '*.go' | xargs gofmt -l); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet $(GOTAGS) ./...
	$(VENV)/bin/ruff check bindings/python
	cd bindings/python && $(CURDIR)/$(VENV)/bin/mypy --strict src

test-go:
	$(GO) test $(GOTAGS) -race ./...

test-e2e: $(LIB) $(VENV)/.ready $(JSPEER)
	$(VENV)/bin/python -m pytest tests/e2e -q

test-python: $(LIB) $(VENV)/.ready
	$(VENV)/bin/python tests/e2e/with_synapse.py $(VENV)/bin/python -m pytest -q -c bindings/python/pyproject.toml bindings/python/tests

## bench       speed and memory, beside matrix-js-sdk; writes build/bench.json
bench: $(LIB) $(VENV)/.ready $(JSPEER)
	$(VENV)/bin/python bench/bench.py

clean:
	rm -rf build
