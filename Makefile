# What a person types. Every target installs what it needs first and asks nothing.
GOLANGCI := 2.15.0
REDIS_URL ?= redis://127.0.0.1:6379
FUZZ_TIME ?= 5m

need := internal/tools/need
golangci = $(shell go env GOPATH)/bin/golangci-lint

.DEFAULT_GOAL := help
.PHONY: help demo top check test lint model mutants bench bench-quick longest chaos chaos-quick fuzz load golangci clients-matrix clients-matrix-python clients-matrix-node

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

demo: ## workers share a lock on a private redis-server, and one of them dies
	@$(need) go redis-server
	go run ./examples/demo

top: ## all locks of the server or cluster at REDIS_URL, live (ARGS="-json": see examples/top)
	@$(need) go
	@cd examples/top && REDIS_URL="$(REDIS_URL)" go run . $(ARGS)

check: ## build, vet and the fast tests, for the inner loop
	@$(need) go redis-server redis-cli faketime
	@internal/tools/check

test: clients/node/dist/index.js ## all tests with the race detector, and the coverage (ARGS="--focus=..." goes to ginkgo)
	@$(need) go gcc redis-server redis-cli faketime tmux python3-redis python3-pytest python3-pytest-asyncio python3-setuptools python3-wheel openssl node bats busybox ps valgrind
	@internal/tools/test $(ARGS)

clients/node/node_modules: clients/node/package-lock.json
	@$(need) node npm
	cd clients/node && npm ci --no-audit --no-fund --loglevel=error && touch node_modules

clients/node/dist/index.js: clients/node/node_modules $(wildcard clients/node/src/*) lua/lock.lua
	cd clients/node && npm run --silent build && touch dist/index.js

lint: golangci clients/node/node_modules ## gofmt, go vet, golangci-lint, luacheck, shellcheck
	@$(need) luacheck shellcheck
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "not gofmt'ed:"; echo "$$files"; exit 1; }
	for module in . bench chaos examples/top examples/otel lua/model; do (cd $$module && go vet ./... && $(golangci) run ./...) || exit 1; done
	luacheck lua
	cd clients/node && npm run --silent lint
	shellcheck clients/node/matrix clients/node/release
	shellcheck clients/shell/* lua/model/run bench/longest
	@$(need) python3-venv
	shellcheck clients/python/lint clients/python/matrix clients/python/release clients/python/venv
	clients/python/lint

# The packages of other languages with the oldest, a middle and the newest of their client libraries.
clients-matrix: clients-matrix-python clients-matrix-node

clients-matrix-python:
	@$(need) python3-venv redis-server openssl
	clients/python/matrix

clients-matrix-node: clients/node/dist/index.js
	@$(need) redis-server redis-cli
	clients/node/matrix

model: ## spin checks the model of the protocol, and that broken ones are caught (ARGS=last-first: how that one breaks)
	@$(need) spin gcc
	@lua/model/run $(ARGS)

mutants: ## one-line breaks of the client, each caught by the clients in virtual time (some minutes)
	@$(need) go
	go test -count=1 -v -timeout 40m -run '^TestMutants' ./internal/virtualtest

bench: ## the lock beside its peers, about 14 minutes, into bench/results (REDIS_URL: not a server of its own)
	@$(need) go redis-server valgrind
	cd bench && go run .

bench-quick: # less of everything, in a minute, into bench/results-quick
	@$(need) go redis-server valgrind
	cd bench && BENCH_QUICK=1 go run .

longest: # how long the costliest calls hold a server, a minute, see SECURITY.md
	@$(need) redis-server redis-cli
	bench/longest

chaos: ## faults and judges for CHAOS_MINUTES (2): CHAOS_SEED, CHAOS_TOPOLOGY, CHAOS_CONTROL
	@$(need) go redis-server redis-cli
	cd chaos && go run .

chaos-quick: # 30 s of that for each topology, as in make test
	@$(need) go redis-server redis-cli
	cd chaos && go test -count=1 -v -run TestFaults .

fuzz: ## any words and any keys into the functions, FUZZ_TIME (5m) each; what it finds is in lua/model/testdata
	@$(need) go redis-server
	cd lua/model && for f in FuzzGarbage FuzzCall; do \
		go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZ_TIME) -fuzzminimizetime 1s . || exit; done

load: ## load the function library into the server at REDIS_URL
	@$(need) redis-cli
	redis-cli -e -u "$(REDIS_URL)" -x FUNCTION LOAD REPLACE < lua/lock.lua

golangci:
	@$(need) go
	@$(golangci) version 2>/dev/null | grep -qw 'version v\?$(GOLANGCI)' || \
		GOBIN=$(dir $(golangci)) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI)
