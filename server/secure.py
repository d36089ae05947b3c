"""Rounds through secure sums: the coordinator asks in five phases, and sees nothing of a site but its masked vector.

    exchange = SecureExchange(grid_exchange, study, roster=roster, key=key, record=ledger)
    outcome = rounds.run(exchange, study, ...)

Guarantees:
  - What a round uses is the exact integer sum of the survivors' vectors, decoded once. Of one attempt no single vector
    is ever known. In modes `none` and `local` a site masks the same vector in each attempt at a round, so that two
    attempts with other survivors tell what they differ in: in `local` an update that is private already, in `none` the
    update itself. In `distributed` every attempt has coins and noise of its own, and is charged.
  - An attempt is in the federation's ledger before its first message, and marked as spent before the first message
    that may be answered with a vector. A number of an attempt is never used twice, after a crash either.
  - A site that answers late, wrongly or not at all is lost to the attempt, with its reason. What survivors, signatures
    and complaints there were is recorded.
  - A site that was caught dealing shares of no secret is not invited again while enough others are there.
  - Weights, bounds, grid and divisor are the study's public constants.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sottovoce.common import counted
from sottovoce.common.errors import PrivacyError, RunError, SecureSumError
from sottovoce.common.federation_ledger import FederationLedger
from sottovoce.common.groups import Tables
from sottovoce.common.keys import SigningKey
from sottovoce.common.privacy.distributed import decoded
from sottovoce.common.privacy.distributed_accountant import DistributedEvent
from sottovoce.common.privacy.distributed_plan import for_survivors
from sottovoce.common.privacy_specs import DistributedPrivacy
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.secagg.complaint import Phase
from sottovoce.common.secagg.coordinator import Coordinator, SecureSum
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.secagg.session import MIN_SITES, Roster, session_for
from sottovoce.common.study import Study
from sottovoce.common.sums import (
    COUNTS,
    EVALUATION_ATTEMPTS,
    UPDATE,
    Terms,
    What,
    codec_of,
    mechanism_of,
    public_weights,
    run_name,
    terms_of,
)
from sottovoce.server.exchange import Call, Collected, Evaluated, GridExchange, Share

_KINDS: Mapping[What, str] = {UPDATE: "train", COUNTS: "evaluate"}


@dataclass(kw_only=True)
class _Attempt:
    """What is known of one attempt; `total` is None where it came to no sum."""

    total: SecureSum | None = None
    refused: dict[str, str] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    complaints: list[bytes] = field(default_factory=list)
    n_bytes_up: int = 0
    n_bytes_down: int = 0


class SecureExchange:
    """The `Exchange` of a study with secure sums."""

    def __init__(
        self, phases: GridExchange, study: Study, *, roster: Roster, key: SigningKey, record: FederationLedger
    ) -> None:
        self._phases, self._study = phases, study
        self._roster, self._key, self._record = roster, key, record
        self._caught: dict[str, str] = {}  # sites, and what of

    @property
    def sites(self) -> Sequence[str]:
        """Returns the sites that can be asked."""
        return self._phases.sites

    def train(self, call: Call, cohort: Sequence[Share]) -> Collected:
        """Returns the sum of a cohort's updates; without sites where the attempt came to none."""
        terms = terms_of(self._study, UPDATE, n_parameters=call.layout.size)
        if call.beside is not None:  # what one site is told of its last round, all are told, and agree on
            told = counted.told(call.beside.counted, [member.site for member in self._roster.members])
            call = replace(call, config={**call.config, counted.TOLD: told})
        attempt = self._attempt(UPDATE, call, [share.site for share in cohort], terms)
        collected = Collected(
            total=np.zeros(call.layout.size),
            loss=None,
            refused=attempt.refused,
            checkpoints=attempt.checkpoints,
            n_bytes_up=attempt.n_bytes_up,
            n_bytes_down=attempt.n_bytes_down + call.n_bytes * len(cohort),
        )
        if attempt.total is None:
            return collected
        total, weight = self._decoded(call, attempt.total)
        if not self._is_bounded(call, total, weight):
            collected.refused |= dict.fromkeys(
                attempt.total.survivors, "the sum is longer than all bounds together"
            )
            return collected
        collected.total, collected.weight = total, weight
        collected.sites = list(attempt.total.survivors)
        return collected

    def evaluate(self, call: Call, sites: Sequence[str], tables: Tables) -> Evaluated:
        """Returns the sum of all sites' counts; without counts where no attempt came to a sum."""
        terms = terms_of(self._study, COUNTS, n_parameters=call.layout.size)
        evaluated = Evaluated(counts=None)
        for _ in range(EVALUATION_ATTEMPTS):
            attempt = self._attempt(COUNTS, call, sites, terms)
            evaluated.checkpoints |= attempt.checkpoints
            evaluated.n_bytes_up += attempt.n_bytes_up
            evaluated.n_bytes_down += attempt.n_bytes_down + call.weights.nbytes * len(sites)
            evaluated.refused |= attempt.refused
            if attempt.total is not None:
                evaluated.counts = self._counts(attempt.total).reshape(tables.shape)
                evaluated.n_sites, evaluated.refused = len(attempt.total.survivors), attempt.refused
                break
        return evaluated

    def _attempt(self, what: What, call: Call, sites: Sequence[str], terms: Terms) -> _Attempt:
        """Makes one attempt, from the opening to the sum or to its end without one."""
        model = call.model
        agreement = terms.agreement(
            self._roster, run=self._run(what, call), round=call.round, model_digest=model
        )
        number = self._record.n_attempts(agreement.run, call.round) + 1
        sites = self._trusted(sites, terms)
        try:
            session = session_for(agreement, attempt=number, sites=sites)
        except SecureSumError as error:
            raise RunError(f"No secure sum of these sites: {error}") from None
        self._record.opened(session, what=what, event=self._event(what))
        coordinator, attempt = Coordinator(session, key=self._key), _Attempt()
        bodies = dict.fromkeys(sites, coordinator.opening())
        try:
            for phase in PHASES:
                if phase == "mask":
                    self._record.spent(session, dealers=tuple(bodies))
                self._phase(what, phase, call, model, bodies, coordinator, attempt)
                bodies = coordinator.advance()
            attempt.total = coordinator.finish()
        except SecureSumError as error:
            reason = f"{error.reason}: {error}"
            if error.reason == "share" and error.accused in sites:
                self._caught[error.accused] = f"left out: {error}"
            complaints = (*coordinator.complaints, *attempt.complaints)
            self._record.abandoned(session, phase=coordinator.phase, reason=reason, complaints=complaints)
            for site in sites:
                attempt.refused.setdefault(site, f"the attempt was abandoned: {reason}")
            return attempt
        self._record.summed(
            session,
            survivors=attempt.total.survivors,
            consents=attempt.total.consents,
            complaints=(*attempt.total.complaints, *attempt.complaints),
            sum_sha256=hashlib.sha256(attempt.total.values.astype("<i8").tobytes()).hexdigest(),
            n_bytes_up=attempt.n_bytes_up,
            n_bytes_down=attempt.n_bytes_down,
        )
        return attempt

    def _trusted(self, sites: Sequence[str], terms: Terms) -> Sequence[str]:
        """Returns the sites without those that were caught, where the others are enough for a sum."""
        others = [site for site in sites if site not in self._caught]
        return others if len(others) >= max(terms.n_min, MIN_SITES) else sites

    def _phase(
        self,
        what: What,
        phase: Phase,
        call: Call,
        model: str,
        bodies: Mapping[str, bytes],
        coordinator: Coordinator,
        attempt: _Attempt,
    ) -> None:
        """Sends a phase's messages and gives the machine what came back."""
        attempt.n_bytes_down += sum(map(len, bodies.values()))
        for site, said in self._phases.phase(_KINDS[what], phase, call, model, bodies):
            attempt.n_bytes_up += len(said.body) + len(said.complaint)
            if not said.body:
                attempt.refused[site] = said.error or f"refused in phase {phase}; its complaint is recorded"
                attempt.complaints += [said.complaint] if said.complaint else []
                continue
            try:
                coordinator.receive(site, said.body)
            except SecureSumError as error:  # its complaint is the machine's own
                attempt.refused[site] = f"{phase}: {error}"
            else:
                if said.checkpoint is not None:
                    attempt.checkpoints[site] = said.checkpoint

    def _decoded(self, call: Call, total: SecureSum) -> tuple[npt.NDArray[np.float64], float]:
        """Returns the sum of changes of weights, and the sum of the survivors' weights."""
        spec, n_summed = self._study.privacy, len(total.survivors)
        if isinstance(spec, DistributedPrivacy):
            mechanism = for_survivors(mechanism_of(self._study, spec, UPDATE), spec, n_summed)
            gradient = decoded(total.values, mechanism, n_summed=n_summed).values
            rate = learning_rate_at(self._study.training, call.round, call.rounds)
            return -rate * gradient.astype(np.float64), 1.0
        codec = codec_of(self._study, call.layout.size, seed=call.seed, round=call.round)
        weights = public_weights(self._study, self._roster)
        return codec.decode(total.values), sum(weights[site] for site in total.survivors)

    def _is_bounded(self, call: Call, total: npt.NDArray[np.float64], weight: float) -> bool:
        """Says whether sites that keep the study's bound can add up to this, rounding allowed for."""
        if isinstance(self._study.privacy, DistributedPrivacy):
            return True  # noise has no bound
        compression = self._study.federation.compression
        bound = call.max_update_norm if compression is None else 2 * compression.norm  # it rounds by coins
        return float(np.linalg.norm(total)) <= weight * bound * (1 + 1e-6) + 1e-3

    def _counts(self, total: SecureSum) -> npt.NDArray[np.int64]:
        spec = self._study.privacy
        if not isinstance(spec, DistributedPrivacy):
            return total.values
        mechanism = mechanism_of(self._study, spec, COUNTS)
        if len(total.survivors) < mechanism.n_min:
            raise PrivacyError("Expected the sum of at least n_min sites; came fewer.")
        counts: npt.NDArray[np.int64] = np.rint(total.values * mechanism.grid_step).astype(np.int64)
        return counts

    def _event(self, what: What) -> DistributedEvent | None:
        spec = self._study.privacy
        if not isinstance(spec, DistributedPrivacy):
            return None
        sampling_prob = spec.sampling_prob if what == UPDATE else 1.0
        mechanism = mechanism_of(self._study, spec, what)
        return mechanism.event(sampling_prob=sampling_prob, steps=1, n_patients=spec.n_patients_public)

    def _run(self, what: What, call: Call) -> str:
        return run_name(self._study, seed=call.seed, fold=call.fold, what=what)
