TARGET = $(or $(CARGO_TARGET_DIR),target)
TEST  = cargo test --workspace --locked
CLIPPY = cargo clippy --workspace --all-targets --features pinhole-agent/profile --locked -- -D warnings
LAB   = cargo run --quiet --locked --package pinhole-e2e --bin pinhole-lab --
CRDS  = cargo run --quiet --locked --package pinhole-crds --bin crdgen --
SIM   = cargo run --quiet --release --locked --package pinhole-sim -- --set all
CACHE = $(or $(PINHOLE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pinhole)
DENY  = $(CACHE)/cargo-deny-0.20.2
NFPM  = $(CACHE)/nfpm-2.43.0
PEERS = $(CACHE)/boringtun-cli-0.7.1 $(CACHE)/gotatun-cli-0.10.2
ADVISORY_DB  = https://github.com/RustSec/advisory-db
# Another copy of that database, as git takes it.
ADVISORIES   = $(ADVISORY_DB)
ADVISED      = GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=url.$(ADVISORIES).insteadOf GIT_CONFIG_VALUE_0=$(ADVISORY_DB)
ADVISED_DIR  = $(or $(CARGO_HOME),$(HOME)/.cargo)/advisory-dbs
ADVISED_DAYS = 60
BENCH = cargo run --quiet --locked --package pinhole-e2e --bin pinhole-bench --

.PHONY: demo test test-lab test-waiting soak bench-mobility bench bench-crowd bench-flood bench-strangers bench-ready bench-peers bench-nat bench-wakes bench-reach profile lab-ready lab-up lab-down sim check lint crds packages deny advisories

demo:       ; @$(LAB) demo
# The lab's tool as `cargo test` builds it: with any other set of crates most would be compiled twice.
lab-ready:
	@$(TEST) --no-run && $(TARGET)/debug/pinhole-lab setup
	@$(MAKE) --no-print-directory $(NFPM) || echo "tests of the packages will be skipped"
# What keeps the processor busy, or minds when others do, runs alone, with the units. What waits for NATs to forget runs beside the
# lab, which waits for a cluster. Units before, too: some make namespaces by names of the lab's, which it sweeps away when it starts.
ALONE   = tunnel wg service client_routes clocks gateway_and_client kernel panics
WAITING = nat resolver session chart papers rooms lenient validation words written fleet worlds
test: lab-ready
	@$(TEST) --no-fail-fast --lib --bins $(ALONE:%=--test %); alone=$$?; \
	$(MAKE) --no-print-directory --keep-going --jobs=2 test-lab test-waiting && exit $$alone
test-lab:     ; @$(TEST) --test lab
test-waiting: ; @$(TEST) --no-fail-fast $(WAITING:%=--test %); waiting=$$?; $(TEST) --doc && exit $$waiting
# Tunnels saturated for ten minutes up, down and both ways; about half an hour.
soak: lab-ready ; @PINHOLE_SOAK_SECONDS=600 $(TEST) --test lab -- saturating
# Fifty switches of each kind from network to network, with what was lost meanwhile and for how long nothing came; half an hour.
bench-mobility: lab-ready ; @PINHOLE_MOBILITY_TRIALS=50 $(TEST) --test lab -- mobility
# Real agents behind NATs with the timeouts of stock systems (30/120 s and the like), adaptive against a static
# keepalive of 25 s; about 25 minutes. `make bench-nat ARGS='--minutes 60 --wakes 3000 -o json'`
bench-nat:  ; @$(LAB) bench-nat $(ARGS)
# Clients asleep on their sessions, woken by real packets once every NAT has forgotten them; 45 minutes.
bench-wakes: lab-ready ; @$(LAB) bench-wakes $(ARGS)
lab-up:     ; @$(LAB) up
lab-down:   ; @$(LAB) down
sim:        ; @mkdir -p target && $(SIM) --svg target/sim.svg && echo && $(SIM) --loss 5 --svg target/sim-loss-5.svg
bench: bench-ready ; @$(BENCH) speed --svg target/bench.svg $(ARGS)
# A gateway with up to 10 000 peers, and one under attack. `make bench-crowd ARGS='--with pinhole --peers 10000'`
bench-crowd bench-flood: bench-%: bench-ready ; @$(BENCH) $* $(ARGS)
# What it costs that a gateway forwards to what pools name only; two minutes.
bench-reach: ; @cargo bench --quiet --locked -p pinhole-agent --bench reach
# Its second part, in a whole lab: strangers with half-sent calls at a gateway's session port and at the operator's link. Alone:
# `make bench-strangers ARGS='--connections 1000 --calls 16'`
bench-flood: bench-strangers
bench-strangers: ; @$(LAB) bench-strangers $(if $(filter bench-strangers,$(MAKECMDGOALS)),$(ARGS))
bench-ready:
	@cargo build --release --locked -p pinhole-agent --bin pinhole
	-@$(MAKE) --no-print-directory -k bench-peers
bench-peers: $(PEERS)
# Where the time goes (agent/src/tunnel/PROFILE.md). `make profile ARGS='--only udp-64'`
profile: ; @cargo build --profile profiling --locked -p pinhole-agent --bin pinhole --features profile && $(BENCH) profile $(ARGS)
# While one works: format, clippy, units and properties but for the long ones that are fed hostile input.
check:      ; @cargo fmt --all --check && $(CLIPPY) && $(TEST) --quiet --lib -- --skip hostile
lint:       ; cargo fmt --all --check && $(CLIPPY) && RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
crds:       ; $(CRDS) crds && $(CRDS) charts/pinhole/files/crds
# The agent as a .deb and an .rpm.
packages: $(NFPM)
	@cargo build --release --locked -p pinhole-agent --bin pinhole && packaging/build.sh $(NFPM)/nfpm $(TARGET)/release/pinhole $(TARGET)/packages
deny: $(DENY)
	@cargo fetch --locked && $(DENY)/bin/cargo-deny --offline check licenses bans sources
	@$(MAKE) --no-print-directory advisories
# Without a network the copy of the last time is asked; where there is none, or it is too old, that is said and is no failure.
advisories: $(DENY)
	@$(ADVISED) $(DENY)/bin/cargo-deny fetch db || true
	@if [ -z "$$(find $(ADVISED_DIR) -path '*/.git/*HEAD' -mtime -$(ADVISED_DAYS) 2>/dev/null)" ]; then \
	    echo "advisories NOT CHECKED: no copy of $(ADVISORY_DB) younger than $(ADVISED_DAYS) days can be had here;" \
	        "name another with \`make advisories ADVISORIES=FOLDER-OR-ADDRESS\`"; \
	else $(DENY)/bin/cargo-deny --offline check advisories; fi

$(NFPM): ; GOBIN=$@.part go install github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0 && mv $@.part $@
$(DENY) $(PEERS): ; cargo install $(subst -0,@0,$(@F)) --locked --root $@.part && mv $@.part $@
