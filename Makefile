# Everything is built into build/. `make help` lists what there is.
GO     ?= go
PYTHON ?= python3
PREFIX ?= /usr/local
SEED   ?=

LIB     := build/libmatrixrtc.so
VENV    := build/venv
JSPEER  := tests/e2e/jspeer/node_modules/.package-lock.json
NODE    := bindings/node/dist/.built
GOTAGS  := -tags=goolm
HOMEFILES := $(shell find internal/homeserver -name '*.go') go.mod go.sum
GOFILES := $(shell find core capi -name '*.go' -o -name '*.c' -o -name '*.h' -o -name '*.map') include/matrixrtc.h go.mod go.sum

.PHONY: all help lib homeserver demo demo-voice test test-fast test-go test-homeserver test-python test-node test-c test-docs test-e2e test-dist bench sim lint dist install clean

all: lib

help:
	@sed -n 's/^## /  /p' Makefile

## lib         build/libmatrixrtc.so
lib: $(LIB)

$(LIB): $(GOFILES) capi/build.sh
	sh capi/build.sh $@

AUTHSERVICE := $(shell find internal/authservice -name '*.go') internal/authservice/go.mod internal/authservice/go.sum

# A module of its own: what it needs of LiveKit's never becomes the library's.
build/authservice: $(AUTHSERVICE)
	$(GO) build -C internal/authservice -o $(CURDIR)/$@ ./cmd/authservice

build/homeserver: $(HOMEFILES)
	$(GO) build $(GOTAGS) -o $@ ./internal/homeserver/cmd/homeserver

# The SFU of the voice tests.
build/livekit-server:
	GOBIN=$(CURDIR)/build/livekit $(GO) install github.com/livekit/livekit-server/cmd/server@v1.9.12
	mv build/livekit/server $@

$(VENV)/.ready: tests/e2e/requirements.txt $(wildcard bindings/python/requirements-dev.txt)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q $(foreach r,$^,-r $(r))
	touch $@

$(JSPEER): tests/e2e/jspeer/package-lock.json
	cd tests/e2e/jspeer && npm ci --no-audit --no-fund --loglevel=error
	touch $@

$(NODE): bindings/node/package-lock.json $(wildcard bindings/node/src/*.ts bindings/node/test/*.ts)
	cd bindings/node && npm ci --no-audit --no-fund --loglevel=error && npm run --silent build
	touch $@

## homeserver  the embedded homeserver with an account and a room, to try things by hand
homeserver: build/homeserver
	@build/homeserver -account

## demo        a Python, a Node and a C++ program in one call on the embedded homeserver
demo: $(LIB) build/homeserver $(NODE)
	sh demo/build.sh build
	$(PYTHON) demo/demo.py

## demo-voice  a Python program plays a chord in an encrypted call and a Node one records it, through LiveKit
demo-voice: $(LIB) build/homeserver build/livekit-server build/authservice $(VENV)/.ready $(NODE)
	$(VENV)/bin/python demo/voice.py

## test-fast   the developer's loop: unit, scenario and property tests of the core (within a minute)
test-fast:
	$(GO) vet $(GOTAGS) ./...
	$(GO) test $(GOTAGS) -short -parallel 8 ./core/... # they wait more than they work

## test        every test, on a real Synapse with a real matrix-js-sdk peer
test: lint test-go test-homeserver test-python test-node test-c test-docs test-e2e test-dist

## lint        gofmt, go vet, staticcheck, ruff, mypy
lint: $(VENV)/.ready
	@unformatted=$$(git ls-files '*.go' | xargs gofmt -l); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet $(GOTAGS) ./...
	$(GO) vet $(GOTAGS),mrtc_panic ./capi ./core/client
	cd internal/authservice && $(GO) vet ./... && $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.7.0 ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.7.0 $(GOTAGS) ./...
	$(VENV)/bin/ruff check bindings/python bench tests/e2e
	$(VENV)/bin/ruff check --config bindings/python/pyproject.toml dist tests/dist tests/c tests/cpp tests/docs tests/checks.py demo examples
	cd bindings/python && $(CURDIR)/$(VENV)/bin/mypy --strict src

test-go:
	$(GO) test $(GOTAGS) -race -timeout 30m $$($(GO) list $(GOTAGS) ./... | grep -v core/sim)
	$(GO) test $(GOTAGS) -timeout 30m ./core/sim/...

test-homeserver: $(VENV)/.ready
	$(GO) test -C internal/authservice -race -timeout 30m ./...
	$(VENV)/bin/python tests/e2e/with_synapse.py $(GO) test $(GOTAGS) -count=1 -timeout 30m ./internal/homeserver/...

test-node: $(LIB) build/homeserver $(NODE)
	cd bindings/node && npm test

test-c: $(LIB) build/homeserver $(NODE)
	sh tests/c/run.sh
	sh tests/cpp/run.sh

# The code of README.md and docs/.
test-docs: $(LIB) build/homeserver build/livekit-server build/authservice $(VENV)/.ready
	$(VENV)/bin/python tests/docs/run.py build

test-e2e: $(LIB) $(VENV)/.ready $(JSPEER) $(NODE) build/livekit-server build/authservice
	$(VENV)/bin/python -m pytest tests/e2e -q

test-dist: dist build/homeserver $(VENV)/.ready
	$(VENV)/bin/python -m pytest -q tests/dist

test-python: $(LIB) build/homeserver $(VENV)/.ready
	$(VENV)/bin/python -m pytest -q -c bindings/python/pyproject.toml bindings/python/tests
	$(VENV)/bin/python tests/e2e/with_synapse.py $(VENV)/bin/python -m pytest -q -c bindings/python/pyproject.toml bindings/python/tests

## sim         10,000 seeds of the simulator; SEED=n replays one
sim:
	$(GO) build $(GOTAGS) -o build/sim ./core/sim/cmd/sim
	build/sim $(if $(SEED),-seed $(SEED))

## bench       speed and memory, beside matrix-js-sdk; writes build/bench.json
bench: $(LIB) $(VENV)/.ready $(JSPEER)
	$(VENV)/bin/python bench/bench.py

## dist        build/dist: a wheel, an npm tarball and a C/C++ archive, with their sums and bill of materials
dist: $(LIB) $(NODE) build/dist-venv/.ready
	rm -rf build/dist
	build/dist-venv/bin/python dist/dist.py build/dist

build/dist-venv/.ready: dist/requirements.txt
	$(PYTHON) -m venv build/dist-venv
	build/dist-venv/bin/pip install -q -r $<
	touch $@

## install     library, headers, pkg-config and CMake files into PREFIX (/usr/local), below DESTDIR
install: $(LIB)
	sh dist/install.sh "$(DESTDIR)$(PREFIX)"

clean:
	rm -rf build
