"""One-run auditing: canary patients through the whole of a study's path, and what an onlooker can prove afterwards.

    found = one_run(study, n_canaries=1000, seed=0)
    found.points[0].lower_bound, found.points[0].claim, found.points[0].largest

The path is the production one: a message to the ClientApp, reserve in the ledger, private training, commit, the reply
through the server's contract into the round. The onlooker is on the wire (`wire.py`), knows the study and every canary,
and does not know which canaries are in, nor the site's coins and noise.

Guarantees:
  - The claim is the accountant's figure for `plan.events` of the study: the one in every report, stamp and ledger.
  - Scores use what left a site and what is public, and nothing else.
  - Shares of guesses and the correction for having several are fixed here, before any audit.
  - A site that refuses, or a reply that is turned away, is an error and never an audit of nothing.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.common import models
from sottovoce.common.errors import PrivacyError
from sottovoce.common.flower import Node, load_app
from sottovoce.common.privacy import accountant, plan
from sottovoce.common.privacy_specs import USUAL_DELTA, LocalPrivacy
from sottovoce.common.progress import OnEvent, Step, silent
from sottovoce.common.study import Study
from sottovoce.common.weights import from_state_dict
from sottovoce.server.exchange import GridExchange
from sottovoce.server.rounds import ALL_SPEAKERS, Cell, run
from sottovoce.simulations import site_ledgers
from sottovoce.simulations.audit.bound import Guesses, Verdict, judge
from sottovoce.simulations.audit.canaries import CLASSES, STREAM, Canaries, audit_study, enrol, write_sites
from sottovoce.simulations.audit.wire import Seen, TappedGrid
from sottovoce.simulations.engines import CLIENT_APP

SHARES = (0.1, 0.3, 0.8)  # of the canaries that are guessed; from the others the auditor abstains
ERROR = 0.05
N_CANARIES = 1000
WEIGHT, BIAS = "head.weight", "head.bias"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One figure of the claim, (epsilon, delta), and what the audit proves against it."""

    delta: float
    claim: float
    lower_bound: float
    largest: float
    guesses: tuple[Guesses, ...]

    @property
    def alarm(self) -> bool:
        """Says whether the audit disproves the claim."""
        return self.lower_bound > self.claim

    @property
    def powerless(self) -> bool:
        """Says whether no outcome at all could have disproved it."""
        return self.largest <= self.claim


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """What came of an audit: the claim's own delta first, then the usual one."""

    study: str
    seed: int
    n_canaries: int
    n_present: int
    n_sites: int
    n_rounds: int
    n_steps: int
    noise: str
    points: tuple[Point, ...]
    scores: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]

    @property
    def alarm(self) -> bool:
        """Says whether any figure is disproved."""
        return any(point.alarm for point in self.points)


def one_run(
    study: Study,
    *,
    n_canaries: int = N_CANARIES,
    seed: int = 0,
    folder: Path | None = None,
    on_event: OnEvent = silent,
) -> OneRun:
    """Audits a study's privacy. Everything that it writes is in `folder`, or in one that is removed afterwards.

    Raises:
        PrivacyError: the study's mode promises nothing that could be audited.
        QuorumError: a site refused.
    """
    spec = study.privacy
    if not isinstance(spec, LocalPrivacy):
        raise PrivacyError(
            f"Expected a study of mode local; mode {spec.mode!r} claims nothing to be audited."
        )
    canaries = enrol(spec, n_canaries, seed)
    audited, text = audit_study(study, spec, canaries)
    with tempfile.TemporaryDirectory(prefix="sottovoce-audit-") as scratch:
        seen = _federation(audited, text, canaries, spec, folder or Path(scratch), seed, on_event)
    scores = score(seen, canaries)
    return OneRun(
        study=study.digest(),
        seed=seed,
        n_canaries=len(canaries),
        n_present=int(canaries.present.sum()),
        n_sites=len(canaries.sites),
        n_rounds=study.federation.rounds,
        n_steps=study.federation.rounds * spec.steps_per_round,
        noise="seeded" if spec.seeded_noise else "secret",
        points=_points(study, spec, scores, canaries.present),
        scores=scores,
        present=canaries.present,
    )


def score(seen: Iterable[Seen], canaries: Canaries) -> npt.NDArray[np.float64]:
    """Returns for each canary how far its site's updates went down its own gradient, over all rounds."""
    scores = np.zeros(len(canaries))
    numbers = {name: index for index, name in enumerate(canaries.sites)}
    for one in seen:
        mine = np.flatnonzero(canaries.site == numbers[one.site])
        gradient, length = _gradients(one, canaries, mine)
        along = canaries.reach * one.change(WEIGHT)[:, canaries.dimension[mine]] + one.change(BIAS)[:, None]
        scores[mine] -= (gradient * along).sum(axis=0) / length
    return scores


def _gradients(
    one: Seen, canaries: Canaries, mine: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns d loss / d logits of softmax regression, (classes, canaries), and the whole gradient's norm.

    By hand and not by the sites' own kernels: an error in those must not be in the auditor's too.
    """
    weight, bias = one.sent[WEIGHT].astype(np.float64), one.sent[BIAS].astype(np.float64)
    logits = canaries.reach * weight[:, canaries.dimension[mine]] + bias[:, None]
    shares = np.exp(logits - logits.max(axis=0))
    shares /= shares.sum(axis=0)
    shares[canaries.label[mine], np.arange(len(mine))] -= 1.0
    return shares, np.sqrt((shares**2).sum(axis=0) * (canaries.reach**2 + 1.0)) + np.finfo(float).tiny


def _federation(
    study: Study,
    text: str,
    canaries: Canaries,
    spec: LocalPrivacy,
    folder: Path,
    seed: int,
    on_event: OnEvent,
) -> list[Seen]:
    study_file = folder / "study.toml"
    study_file.write_text(text, encoding="utf-8")
    places = write_sites(folder / "sites", canaries, spec)
    site_ledgers.open_all(folder / "ledgers", study, places)
    settings = {"study-file": str(study_file), "ledgers-folder": str(folder / "ledgers")}
    nodes = [Node(site=name, config={"site-folder": str(place)}) for name, place in places.items()]
    grid = TappedGrid(load_app(CLIENT_APP), nodes, settings)
    model = models.build(study.model, {STREAM: canaries.width}, len(CLASSES), seed=0)
    start = {name: np.zeros_like(array) for name, array in from_state_dict(model.state_dict()).items()}
    rounds = study.federation.rounds
    run(
        GridExchange(grid, grid.sites),
        study,
        cell=Cell(seed=seed, fold=ALL_SPEAKERS, arm="federated"),
        weights=start,
        on_round=lambda record: on_event(Step(stage="canaries", done=record.round, total=rounds)),
    )
    return grid.seen


def _points(
    study: Study, spec: LocalPrivacy, scores: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]
) -> tuple[Point, ...]:
    events = plan.events(spec, study.federation.rounds, n_counts=study.n_evaluations)
    claims = {
        delta: accountant.epsilon(events, delta) for delta in (spec.delta, min(spec.delta, USUAL_DELTA))
    }
    # Every figure that the study prints is tried, and the error is shared among them.
    tried = [
        (delta, claim, judge(scores, present, shares=SHARES, delta=delta, error=ERROR / len(claims)))
        for delta, claim in claims.items()
    ]
    return tuple(_point(delta, claim, verdict) for delta, claim, verdict in tried)


def _point(delta: float, claim: float, verdict: Verdict) -> Point:
    return Point(
        delta=delta,
        claim=claim,
        lower_bound=verdict.lower_bound,
        largest=verdict.largest,
        guesses=verdict.guesses,
    )
