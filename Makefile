# Everything builds into build/. `make help` lists what there is.
GO      ?= go
GOFLAGS += -tags=goolm
export GOFLAGS

.PHONY: help test test-fast lint clean

help:
	@sed -n 's/^## //p' Makefile

## test-fast   unit, scenario and property tests of the core (seconds)
test-fast:
	$(GO) vet ./...
	$(GO) test ./core/...

## test        every test
test: lint
	$(GO) test -race ./...

## lint        gofmt, go vet
lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "gofmt: the files above need formatting"; exit 1; }
	$(GO) vet ./...

clean:
	rm -rf build
