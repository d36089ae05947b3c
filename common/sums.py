"""What both ends of a study's secure sums know before the first message: derived from the study, told by nobody.

    terms = terms_of(study, UPDATE, n_parameters=136)
    run = run_name(study, seed=0, fold=1, what=UPDATE)
    agreement = terms.agreement(roster, run=run, round=3, model_digest=digest)

| mode          | an update is                                     | evaluation counts are                      |
|---------------|--------------------------------------------------|--------------------------------------------|
| `distributed` | the sum of clipped gradients and a share of noise | counts and a share of noise, in 2^-k steps |
| `local`       | the private change of weights, rounded            | whole recordings, noised                   |
| `none`        | the change of weights, rounded                    | whole recordings                           |

Guarantees:
  - Site and coordinator compute the same terms from the same study; a session with others is refused by the site.
  - Every sum keeps inside the ring whatever honest sites send.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

from sottovoce.common.compression import Codec, FixedPoint
from sottovoce.common.errors import RunError
from sottovoce.common.privacy import distributed_plan
from sottovoce.common.privacy.distributed import DistributedMechanism
from sottovoce.common.privacy_specs import DistributedPrivacy, NoPrivacy, counts_norm
from sottovoce.common.secagg.session import MAX_SUM, MIN_SITES, RING_BITS, Agreement, Roster
from sottovoce.common.study import Study

What = Literal["update", "evaluation_counts"]
UPDATE: What = "update"
COUNTS: What = "evaluation_counts"
ATTEMPTS = 3  # at the updates of a round, by a coordinator that does not start anew
EVALUATION_ATTEMPTS = 2  # at a secure sum of counts; the second is paid for from the spare ones


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The public constants of one kind of sum."""

    length: int
    value_bound: int
    ring_bits: int
    n_min: int

    def agreement(self, roster: Roster, *, run: str, round: int, model_digest: str) -> Agreement:
        """Returns what a site compares a session with."""
        return Agreement(
            roster=roster,
            run=run,
            round=round,
            n_min=self.n_min,
            length=self.length,
            value_bound=self.value_bound,
            model_digest=model_digest,
            ring_bits=self.ring_bits,
        )


def terms_of(study: Study, what: What, *, n_parameters: int) -> Terms:
    """Returns the terms of a study's sums.

    Raises:
        RunError: the study states another number of parameters than the model has.
    """
    if isinstance(study.privacy, DistributedPrivacy):
        mechanism = mechanism_of(study, study.privacy, what)
        if what == UPDATE and mechanism.n_parameters != n_parameters:
            raise RunError(
                f"Expected privacy.n_parameters = {n_parameters}, as many as the model has; the study says "
                f"{mechanism.n_parameters}. Mend the study."
            )
        return _terms(study, mechanism.n_parameters, mechanism.largest_entry, RING_BITS)
    if what == COUNTS:  # of all sites, whoever trained in the round
        n_sites = study.federation.n_sites
        length, bound = study.tables.n_cells, MAX_SUM // n_sites
        return Terms(length=length, value_bound=bound, ring_bits=RING_BITS, n_min=least_of(study, n_sites))
    codec = codec_of(study, n_parameters, seed=0, round=0)
    return _terms(study, codec.length, codec.value_bound, codec.ring_bits)


def mechanism_of(study: Study, spec: DistributedPrivacy, what: What) -> DistributedMechanism:
    """Returns the mechanism behind a sum of mode `distributed`."""
    n_sites = study.federation.n_sites
    if what == UPDATE:
        return distributed_plan.update_mechanism(spec, n_sites=n_sites)
    return distributed_plan.counts_mechanism(spec, n_sites=n_sites, tables=study.tables)


def counts_deviation(study: Study, n_summed: int) -> float:
    """Returns the deviation, in recordings, of the noise on each count in a sum over so many sites: a public figure."""
    spec = study.privacy
    if isinstance(spec, NoPrivacy):
        return 0.0
    if isinstance(spec, DistributedPrivacy):
        mechanism = mechanism_of(study, spec, COUNTS)
        return math.sqrt(mechanism.share_variance * n_summed) * mechanism.grid_step
    norm = counts_norm(spec.counts_utterances, study.tables.per_recording)
    return (spec.counts_noise_multiplier or 0.0) * norm * math.sqrt(n_summed)


def codec_of(study: Study, n_parameters: int, *, seed: int, round: int) -> Codec | FixedPoint:
    """Returns how changes of weights become whole numbers in modes `none` and `local`, and a mean again."""
    federation = study.federation
    if federation.compression is None:
        return FixedPoint(length=n_parameters, n_sites=study.cohort_size, largest=federation.largest_change)
    return Codec(
        size=n_parameters,
        ring_bits=federation.compression.bits,
        n_sites=study.cohort_size,
        norm=federation.compression.norm,
        seed=seed,
        round=round,
    )


def least_of(study: Study, n_asked: int) -> int:
    """Returns how many of so many sites a sum needs at least: the noise was sized for them, or the study's quorum."""
    return max(MIN_SITES, quorum_of(study, n_asked))


def quorum_of(study: Study, n_asked: int) -> int:
    """Returns how many updates a round needs: the study's number, or more than half of those who are asked.

    In mode `distributed` as many as the noise was sized for.
    """
    if isinstance(study.privacy, DistributedPrivacy):
        return study.privacy.n_min
    return study.federation.quorum or n_asked // 2 + 1


def public_weights(study: Study, roster: Roster) -> dict[str, float]:
    """Returns each site's public weight over the largest: what its update is multiplied with before it is rounded.

    `site_weights` are in the order of the sites' names.
    """
    sites = sorted(member.site for member in roster.members)
    weights = study.federation.site_weights or (1.0,) * len(sites)
    return {site: weight / max(weights) for site, weight in zip(sites, weights, strict=True)}


def run_name(study: Study, *, seed: int, fold: int, what: What) -> str:
    """Returns the name of a run of sums: in one of them every (round, attempt) is answered once."""
    return f"{study.digest()[:32]}/{seed}/{fold}/{what}"


def roster_digest(roster: Roster) -> str:
    """Returns what a site's approver signs for: these sites, under these keys, and this coordinator."""
    from sottovoce.common.config import canonical

    return hashlib.sha256(b"sottovoce/roster/1\n" + canonical(roster).encode()).hexdigest()


def _terms(study: Study, length: int, value_bound: int, ring_bits: int) -> Terms:
    return Terms(
        length=length, value_bound=value_bound, ring_bits=ring_bits, n_min=least_of(study, study.cohort_size)
    )
