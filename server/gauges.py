"""What the coordinator tells a Prometheus server on its own machine, from the files that it keeps anyway.

Guarantees:
  - Each applied round is counted once while this process lives; rounds from before it began are not counted again.
"""

import time

from sottovoce.common.monitoring import Metrics
from sottovoce.common.pki import peer_of, read_pem
from sottovoce.common.run_files import RoundFacts, read_rounds
from sottovoce.server.deployed_run import ROUNDS, DeployedRun
from sottovoce.server.home import CoordinatorHome
from sottovoce.server.registry import Registry

SEEN_SECONDS = 300.0
CERTIFICATE_SECONDS = 60.0  # so often certificates are looked at


class Gauges:
    """Counts and durations of a coordinator."""

    def __init__(self, home: CoordinatorHome, registry: Registry) -> None:
        self._home, self._registry = home, registry
        self.metrics = Metrics("coordinator")
        self._counted: dict[str, int] = {}
        self._next_certificates = 0.0

    def look(self, runs: list[DeployedRun]) -> None:
        """Brings every figure up to date."""
        members = [one for one in self._registry.sites() if one.role == "site" and one.revoked_at is None]
        self.metrics.number("sites_enrolled", len(members))
        self.metrics.number(
            "sites_seen", sum((one.last_seen or 0) > time.time() - SEEN_SECONDS for one in members)
        )
        self.metrics.number("studies_running", sum(not run.state.is_over for run in runs))
        for run in runs:
            self._count(run)
        if time.monotonic() > self._next_certificates:
            self._next_certificates = time.monotonic() + CERTIFICATE_SECONDS
            leaf = peer_of(read_pem(self._home.pki / "server.crt"))
            self.metrics.certificate("server", leaf.not_after - time.time())

    def _count(self, run: DeployedRun) -> None:
        name, state = run.plan.name, run.state
        before = self._counted.setdefault(name, state.round)
        if state.round <= before:
            return
        self._counted[name] = state.round
        rounds = {facts.round: facts for facts in read_rounds(run.folder / ROUNDS)}
        for number in range(before + 1, state.round + 1):
            self._count_round(rounds.get(number))

    def _count_round(self, facts: RoundFacts | None) -> None:
        if facts is None:
            return
        self.metrics.round("applied", seconds=facts.seconds)
        for _ in facts.refused:
            self.metrics.refused("contract")
