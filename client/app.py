"""What runs at a site: Flower's `ClientApp`, with handlers for train, evaluate and query.

A node finds its data and study in its own configuration, `site-folder` and `study-file`; or, where nodes have
none (Flower's simulation), in the run's: `sites-folder`, of whose subfolders, in order of name, it takes the
one that `partition-id` counts to from 0. In a private mode it works through its ledger, `ledger-folder` (or the
folder of the site's name in the run's `ledgers-folder`), and refuses where there is none. What it keeps of its own from
round to round, where a study asks for that, lies in `state-folder` (or by the site's name in `state-folders`), sealed
where `state-key` names a key.

Guarantees:
  - Equal messages to equal sites give equal replies, to the bit, in whatever process and in whatever order.
  - The speakers whom a fold withholds are worked out here, are never trained on, and are never sent.
  - A reply holds weights and counts; never a feature, a label, a key or a name other than the site's.
  - In a private mode a reply holds released bytes, a public number of steps and a signed checkpoint; nothing else.
  - Nothing in a message can turn privacy off: only the site's own configuration, `without-privacy`, for the twins of
    a simulation, and not at a site that has a ledger. Such a site also asks its ledger before mode `none`.
  - Where the study has secure sums, nothing leaves but under masks, in five phases (`client/secure.py`); a plain
    request for an update or counts is refused. An attempt's secrets are in `Context.state`: in memory alone.
  - After a withdrawal what a site trains of its own begins anew, from the next message on; what it had is removed.
  - What is cached in a process (opened sites without their pages, one model) is bounded.
"""

import functools
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from sottovoce.client import scaffold
from sottovoce.client.evaluate import confusion, mean_loss
from sottovoce.client.features_at_rest import key_named
from sottovoce.client.instruction import NOT_OF_THE_STUDY, is_of_study
from sottovoce.client.personal import RELEASED, PersonalState
from sottovoce.client.personalise import (
    Round,
    keep_head,
    keeps_head,
    scored_weights,
    started,
    train_in_turn,
    train_own,
    without_head,
)
from sottovoce.client.releases import (
    NOTHING_RELEASED,
    UNDER_MASKS_ONLY,
    Called,
    Refusal,
    release_confusion,
    release_openly,
    release_part,
    release_update,
)
from sottovoce.client.secure import Mask, answered
from sottovoce.client.secure_folder import SecureFolder
from sottovoce.client.site_ledger import SECURE, SiteLedger
from sottovoce.client.train import TrainResult
from sottovoce.client.train import train as train_locally
from sottovoce.client.train_private import check_units
from sottovoce.client.transferred import anchored, head_alone
from sottovoce.common import counted, group_weights, models
from sottovoce.common import study as studies
from sottovoce.common.dataset import SiteData
from sottovoce.common.errors import RunError, SecureSumError, SottovoceError
from sottovoce.common.flower import CONTROL, COUNTED, PERSONAL, array_record, read_weights
from sottovoce.common.folds import fold_of, leaking_random_fold, n_folds
from sottovoce.common.generative.added import with_made_rows
from sottovoce.common.personal_specs import Ditto, FedRep, Personalisation
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy, NoPrivacy
from sottovoce.common.schedule import learning_rate_at
from sottovoce.common.secagg.complaint import Phase
from sottovoce.common.secagg.journal import PHASES
from sottovoce.common.secagg.session import Agreement, Session
from sottovoce.common.study import HashFolds, QFedAvg, Scaffold, Study
from sottovoce.common.sums import COUNTS, UPDATE, What, codec_of, public_weights, run_name, terms_of
from sottovoce.common.weights import Array, Layout, ModelWeights, digest_beside

CACHE_SITES = 128  # each holds a file descriptor, of which a process has about a thousand

Metrics = Mapping[str, int | float | list[int]]
Keep = Callable[[Mapping[str, Array]], None]
_log = logging.getLogger(__name__)

app = ClientApp()


Handler = Callable[[Message, Context], Message]


def _guarded(handler: Handler) -> Handler:
    """At a site with a ledger nothing of an error leaves but a fixed text: errors name files, ids and counts."""

    @functools.wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Refusal:
            raise
        except Exception as error:
            if not _keeps_ledger(context):
                raise
            _log.error("nothing released: %s", error, exc_info=not isinstance(error, SottovoceError))
            raise Refusal(NOTHING_RELEASED) from None

    return guarded


@app.train()
@_guarded
def train(message: Message, context: Context) -> Message:
    """Trains the weights of the message on the speakers who are not withheld."""
    visit = _plain(_visit(message, context))
    sent = _sent(message, visit)
    metrics, weights, checkpoint = _updated(context, visit, visit.trainable, _called(visit, sent), sent)
    visit.data.release()
    content = RecordDict({"arrays": array_record(weights), "metrics": MetricRecord(dict(metrics))})
    return _reply(message, content, checkpoint)


@app.evaluate()
@_guarded
def evaluate(message: Message, context: Context) -> Message:
    """Counts (table, truth, predicted) over the speakers who are withheld, flat; noised in a private mode."""
    visit = _plain(_visit(message, context))
    sent = _sent(message, visit)
    called = _called(visit, sent)
    _write_scored(context, visit, sent)
    counts, checkpoint = _counted(context, visit, visit.counted_on, called)
    visit.data.release()
    content = RecordDict({"metrics": MetricRecord({"confusion": counts.reshape(-1).tolist()})})
    return _reply(message, content, checkpoint)


def _reply(message: Message, content: RecordDict, checkpoint: str) -> Message:
    """Returns a reply; with the signed checkpoint of the site's ledger, where something was released from it."""
    if checkpoint:
        content["ledger"] = ConfigRecord({"checkpoint": checkpoint})
    return Message(content, reply_to=message)


def _plain(visit: "_Visit") -> "_Visit":
    """Refuses a request for numbers in the clear where the study promised masks."""
    if visit.secure:
        raise Refusal(UNDER_MASKS_ONLY)
    return visit


def _phase(what: What, phase: Phase) -> Handler:
    """Returns the handler of one phase of a secure sum of updates or of counts."""

    @_guarded
    def answer(message: Message, context: Context) -> Message:
        visit = _visit(message, context)
        if not visit.secure:
            raise RunError("Expected a request for plain numbers: this study has no secure sums here.")
        _check_instruction(visit)
        place = SecureFolder(_secure_folder(context, visit.data.site))
        asked = message.content["secagg"]
        body, model = asked.get("body"), asked.get("model")
        if not isinstance(body, bytes) or not isinstance(model, str):
            raise RunError("Expected the bytes of a phase and the digest of a model; came others.")
        terms = terms_of(visit.study, what, n_parameters=visit.weights.layout.size)
        agreement = terms.agreement(
            place.roster(visit.study.digest()),
            run=run_name(visit.study, seed=visit.seed, fold=visit.fold, what=what),
            round=visit.round,
            model_digest=model,
        )
        key = f"secagg-{what}"
        held = _held(context, key)
        context.state[key] = ConfigRecord({"held": b""})  # whatever goes wrong from here, the attempt is lost
        said = answered(
            phase,
            body,
            agreement=agreement,
            site=visit.data.site,
            place=place,
            held=held,
            vector=lambda session, mask: _vector(what, message, context, visit, agreement, session, mask),
        )
        context.state[key] = ConfigRecord({"held": said.held})
        name, body = ("body", said.body) if said.body else ("complaint", said.complaint)
        return _reply(message, RecordDict({"secagg": ConfigRecord({name: body})}), said.checkpoint)

    return answer


for _name in PHASES:
    app.train(_name)(_phase(UPDATE, _name))
    app.evaluate(_name)(_phase(COUNTS, _name))


def _held(context: Context, key: str) -> bytes:
    """Returns what this site's last answer left in memory; nothing where there was none."""
    record = context.state.get(key)
    held = record["held"] if isinstance(record, ConfigRecord) else b""
    return held if isinstance(held, bytes) else b""


@app.query()
@_guarded
def query(message: Message, context: Context) -> Message:
    """Says the name of the site."""
    name = ConfigRecord({"site": _opened(_site_folder(context)).site})
    return Message(RecordDict({"config": name}), reply_to=message)


def _vector(
    what: What,
    message: Message,
    context: Context,
    visit: "_Visit",
    agreement: Agreement,
    session: Session,
    mask: Mask,
) -> tuple[bytes, str]:
    """Makes this site's vector for the weights in the message and has it masked; with its ledger's checkpoint."""
    sent = _sent(message, visit)
    called, study = _called(visit, sent), visit.study
    if called.model != session.model_digest:
        raise SecureSumError("model", "Expected the weights whose digest the session has; came others.")
    if what == UPDATE and visit.control is not None and not _agreed(visit, agreement):
        raise SecureSumError("model", "Expected each site's last round, the same for all; came others.")
    data = visit.counted_on if what == COUNTS else visit.trainable
    try:
        if isinstance(study.privacy, DistributedPrivacy):
            check_units(visit.data, study)  # of the whole site: features were standardised over all of it
            released = release_part(
                _ledger_folder(context, data.site),
                study,
                visit.model,
                data,
                called,
                what,
                attempt=session.attempt,
                mask=mask,
                group_weights=visit.group_weights,
                device=visit.device,
            )
            if what == UPDATE:
                _train_own(context, visit, data, sent)
            return released.data, released.checkpoint
        if what == COUNTS:
            _write_scored(context, visit, sent)
            counts, checkpoint = _counted(context, visit, data, called)
            return mask(counts.reshape(-1)), checkpoint
        _, after, checkpoint = _updated(context, visit, data, called, sent)
        layout = Layout.of(sent)
        change = layout.flatten(after).astype(np.float64) - layout.flatten(sent)
        if not np.linalg.norm(change) <= study.federation.max_update_norm:
            raise RunError("This site's update is longer than federation.max_update_norm; nothing was sent.")
        codec = codec_of(study, layout.size, seed=visit.seed, round=visit.round)
        weight = public_weights(study, agreement.roster)[data.site]
        return mask(codec.encode(change, site=data.site, weight=weight)), checkpoint
    finally:
        visit.data.release()


def _agreed(visit: "_Visit", agreement: Agreement) -> bool:
    """Says whether this site was told the same of its last round as all others were."""
    sites = [member.site for member in agreement.roster.members]
    return counted.says(
        visit.told_counted, sites, site=visit.data.site, counted=visit.counted, round=visit.round
    )


def _updated(
    context: Context, visit: "_Visit", data: SiteData, called: Called, sent: Mapping[str, Array]
) -> tuple[Metrics, Mapping[str, Array], str]:
    """Trains; returns metrics, weights and a checkpoint, if any. What the site keeps of it is then on its disk."""
    shared, spec = visit.control, visit.personal
    if keeps_head(spec):
        state, _ = _own(context, visit)
        visit.weights.write(started(state, sent, visit.round))
        metrics, trained, checkpoint = _plainly_updated(
            context, visit, data, called, sent, keep=lambda new: keep_head(state, new, visit.round)
        )
        _forget_what_was_overtaken(context, visit)
        return metrics, without_head(trained, sent), checkpoint
    if shared is None:
        said = _plainly_updated(context, visit, data, called, sent)
        _train_own(context, visit, data, sent)
        return said
    descent = _steps(visit) * learning_rate_at(visit.study.training, visit.round, visit.rounds)
    state, own = _controlled(context, visit, shared)
    corrected = replace(visit, correction=scaffold.correction(own, shared))

    def keep(trained: Mapping[str, Array]) -> None:
        after = scaffold.control_after(own, shared, sent=sent, trained=trained, descent=descent)
        state.write(visit.round, after, oldest=visit.counted)

    said = _plainly_updated(context, corrected, data, called, sent, keep=keep)
    _forget_what_was_overtaken(context, visit)
    return said


def _controlled(
    context: Context, visit: "_Visit", shared: Mapping[str, Array]
) -> tuple[PersonalState, Mapping[str, Array]]:
    """Returns where this site keeps its control, and the control that it has: of the round that counted last.

    In a private mode it is of released numbers alone, and outlives a withdrawal as the shared model does. Else it was
    computed from the recordings of those who have withdrawn, too: such a site begins anew with the shared control,
    which is a round without correction.
    """
    if visit.private:
        state = _kept(context, visit, RELEASED)
    else:
        state, _ = _own(context, visit)
        if visit.counted and state.begins_anew(visit.counted):
            return state, shared
    if not visit.counted:
        return state, {name: np.zeros_like(array) for name, array in shared.items()}
    return state, state.read(visit.counted)


def _train_own(context: Context, visit: "_Visit", data: SiteData, sent: Mapping[str, Array]) -> None:
    """Trains the model that this site has beside the shared one, if the study says so. Nothing of it leaves."""
    if isinstance(visit.personal, Ditto):
        state, gone = _own(context, visit)
        train_own(visit.model, _without(data, gone), visit.personal, state, sent, visit.here)
        _forget_what_was_overtaken(context, visit)
        visit.data.release()


def _without(data: SiteData, gone: frozenset[str]) -> SiteData:
    return (
        data.select(np.array([patient not in gone for patient in data.patients], np.bool_)) if gone else data
    )


def _write_scored(context: Context, visit: "_Visit", sent: Mapping[str, Array]) -> None:
    """Writes the weights that this site scores with into the model: its own, where what leaves may be of them.

    In a private mode counts are of the shared model if the site's own was trained without noise: they are paid for
    by who is scored, not by who was trained on.
    """
    spec = visit.personal
    if spec is None or (visit.private and not keeps_head(spec)):
        return
    state, gone = _own(context, visit)
    trainable = _without(visit.trainable, gone)
    visit.weights.write(scored_weights(visit.model, trainable, spec, state, sent, visit.here))


def _steps(visit: "_Visit") -> int:
    """Returns how many steps every site takes in a round."""
    study = visit.study
    steps = study.steps_per_round if visit.private else study.training.steps_per_round
    if steps is None:
        raise RunError("Expected training.steps_per_round in a study with SCAFFOLD; it has none.")
    return steps


def _own(context: Context, visit: "_Visit") -> tuple[PersonalState, frozenset[str]]:
    """Returns where this site keeps what it trains of its own, and the patients who withdrew, of one moment.

    After each withdrawal that is another, empty place, and what was kept before is removed.
    """
    if not _keeps_ledger(context):
        return _kept(context, visit, ""), frozenset()
    with SiteLedger.open(_ledger_folder(context, visit.data.site)) as ledger:
        mark, gone = ledger.gone_mark(), ledger.gone()
    state = _kept(context, visit, mark)
    state.begin()
    return state, gone


def _forget_what_was_overtaken(context: Context, visit: "_Visit") -> None:
    """Removes what was just kept, where somebody withdrew while it was being trained."""
    if _keeps_ledger(context):
        _own(context, visit)


def _kept(context: Context, visit: "_Visit", series: str) -> PersonalState:
    key = context.node_config.get("state-key")  # its name; never from the run's configuration
    return PersonalState(
        _state_folder(context, visit.data.site),
        study_digest=visit.study.digest(),
        seed=visit.seed,
        fold=visit.fold,
        series=series,
        key=None if key is None else key_named(str(key)),
        synchronised=_keeps_ledger(context),
    )


def _plainly_updated(
    context: Context,
    visit: "_Visit",
    data: SiteData,
    called: Called,
    sent: Mapping[str, Array],
    *,
    keep: Keep = lambda trained: None,
) -> tuple[Metrics, Mapping[str, Array], str]:
    """Trains, in mode `local` or none, with or without a ledger; returns metrics, weights and a checkpoint, if any.

    `keep` is called with trained weights before their release is committed, and never for one that is sent again:
    bytes of before a withdrawal are not kept after it.
    """
    if visit.private:
        folder, layout = _ledger_folder(context, data.site), Layout.of(sent)
        check_units(visit.data, visit.study)  # of the whole site: features were standardised over all of it
        released = release_update(
            folder,
            visit.study,
            visit.model,
            data,
            called,
            proximal_mu=visit.proximal_mu,
            correction=visit.correction,
            group_weights=visit.group_weights,
            keep=lambda flat: keep(layout.unflatten(flat)),
            device=visit.device,
        )
        flat = np.frombuffer(released.data, "<f4").astype(np.float32)
        spec = visit.study.privacy
        steps = spec.steps_per_round if isinstance(spec, LocalPrivacy) else 0
        return {"n-steps": steps}, layout.unflatten(flat), released.checkpoint
    if _keeps_ledger(context):  # also without privacy nothing leaves that the ledger does not know
        opened = release_openly(
            _ledger_folder(context, data.site),
            visit.study,
            data,
            called,
            UPDATE,
            lambda kept: _packed(*_trained(visit, kept, keep)),
        )
        return *_unpacked(opened.data, sent), ""
    return *_trained(visit, data, keep), ""


def _counted(
    context: Context, visit: "_Visit", data: SiteData, called: Called
) -> tuple[npt.NDArray[np.int64], str]:
    """Counts (table, truth, predicted) of who is withheld; noised in a private mode, with a checkpoint then."""
    tables = visit.study.tables
    if visit.private:
        check_units(visit.data, visit.study)
        folder = _ledger_folder(context, data.site)
        released = release_confusion(folder, visit.study, visit.model, data, called, device=visit.device)
        return np.frombuffer(released.data, "<i8").astype(np.int64), released.checkpoint
    if not _keeps_ledger(context):
        return confusion(visit.model, data, tables, visit.device), ""
    opened = release_openly(
        _ledger_folder(context, data.site),
        visit.study,
        data,
        called,
        COUNTS,
        lambda kept: confusion(visit.model, kept, tables, visit.device).astype("<i8").tobytes(),
    )
    return np.frombuffer(opened.data, "<i8").astype(np.int64), ""


def _trained(visit: "_Visit", data: SiteData, keep: Keep) -> tuple[Metrics, dict[str, Array]]:
    begun = _loss(visit, data) if isinstance(visit.study.federation.strategy, QFedAvg) else None
    result = _train(visit, data)
    visit.data.release()
    metrics = {
        "loss": result.loss if begun is None else begun,
        "n-examples": result.n_examples,
        "n-steps": result.n_steps,
    }
    weights = visit.weights.copy()
    keep(weights)
    return metrics, weights


def _loss(visit: "_Visit", data: SiteData) -> float:
    """Returns the mean loss of the weights that were sent: what q-FedAvg weighs a site by."""
    return mean_loss(visit.model, data, visit.study.training, visit.device) if len(data) else 0.0


def _packed(metrics: Metrics, weights: Mapping[str, Array]) -> bytes:
    return json.dumps(metrics).encode() + b"\n" + Layout.of(weights).flatten(weights).astype("<f4").tobytes()


def _unpacked(payload: bytes, sent: Mapping[str, Array]) -> tuple[Metrics, dict[str, Array]]:
    metrics, _, flat = payload.partition(b"\n")
    return json.loads(metrics), Layout.of(sent).unflatten(np.frombuffer(flat, "<f4").astype(np.float32))


def _sent(message: Message, visit: "_Visit") -> dict[str, Array]:
    """Writes the weights of a message into the model; returns them in the model's own order."""
    sent = _in_order(_arrays(message), visit.weights)
    visit.weights.write(sent)
    return sent


def _in_order(record: ArrayRecord, weights: ModelWeights) -> dict[str, Array]:
    """Returns a record's arrays in the model's own order, if they have its names."""
    came, names = read_weights(record), weights.names
    if came.keys() != set(names):
        raise RunError(f"Expected the model's {len(names)} tensors; the message has others.")
    return {name: came[name] for name in names}


def _control(message: Message, study: Study, weights: ModelWeights) -> dict[str, Array] | None:
    """Returns the control that came beside the weights, if one did: twins of a study with SCAFFOLD are sent none."""
    record = message.content.get(CONTROL)
    if record is None:
        return None
    if not isinstance(study.federation.strategy, Scaffold) or not isinstance(record, ArrayRecord):
        raise RunError("Expected weights alone; the message has a control beside them.")
    control = _in_order(record, weights)
    if any(control[name].shape != shape for name, shape in weights.layout.entries):
        raise RunError("Expected a control of the model's shapes; came others.")
    return control


def _called(visit: "_Visit", sent: Mapping[str, Array]) -> Called:
    rest = f"{visit.rounds} {visit.proximal_mu!r} {visit.leaks}"
    rest += "" if visit.control is None else f" {visit.counted}"
    rest += "" if visit.personal is None else f" {visit.personal.kind}"
    how = f"-{hashlib.sha256(rest.encode()).hexdigest()[:8]}"
    model = counted.bound_to(digest_beside(sent, visit.control), visit.told_counted)
    model = group_weights.bound_to(model, visit.told_weights)
    return Called(seed=visit.seed, fold=visit.fold, round=visit.round, model=model, how=how)


def _check_instruction(visit: "_Visit") -> None:
    """Refuses an instruction that the study does not have.

    In a secure sum a single site that was told something else, of which the others know nothing, could be told apart.
    """
    if not is_of_study(
        visit.study,
        seed=visit.seed,
        fold=visit.fold,
        round=visit.round,
        rounds=visit.rounds,
        proximal_mu=visit.proximal_mu,
        leaks=visit.leaks,
        counted=None if visit.control is None else visit.counted,
        personal=visit.personal is not None,
        weights=visit.told_weights,
    ):
        raise Refusal(NOT_OF_THE_STUDY)


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """One message's view of this process: what to do, with which data and model."""

    study: Study
    data: SiteData
    withheld: npt.NDArray[np.bool_]
    model: nn.Module
    weights: ModelWeights
    private: bool
    secure: bool
    leaks: bool
    seed: int
    fold: int
    round: int
    rounds: int
    proximal_mu: float
    device: str
    control: Mapping[str, Array] | None = None
    counted: int = 0
    correction: Mapping[str, Array] | None = None
    personal: Personalisation | None = None
    told_weights: str | None = None
    told_counted: str | None = None

    @property
    def group_weights(self) -> tuple[float, ...]:
        """The weights of groups that the message tells, where they move; none where they do not."""
        return group_weights.read(self.told_weights, self.study) or ()

    @property
    def here(self) -> Round:
        """Which round of which federation this is, and where."""
        return Round(
            study=self.study, site=self.data.site, seed=self.seed, round=self.round, device=self.device
        )

    @property
    def trainable(self) -> SiteData:
        """The recordings that may be trained on."""
        allowed = self.data.trains & ~self.withheld
        return self.data if allowed.all() else self.data.select(allowed)

    @property
    def scored(self) -> SiteData:
        """The recordings of those who are withheld, as they were made."""
        return self.data.select(self.withheld).originals()

    @property
    def counted_on(self) -> SiteData:
        """The recordings that an evaluation counts: of who is withheld, or trained on (`group_weights.py`)."""
        return self.trainable.originals() if group_weights.steers(self.study, self.round) else self.scored


def _visit(message: Message, context: Context) -> _Visit:
    config = dict(message.content["config"].items())
    study = _study(_setting(context, "study-file"))
    data = _opened(_site_folder(context))
    seed, fold = int(config["seed"]), int(config["fold"])  # type: ignore[arg-type]
    device = str(context.node_config.get("device", context.run_config.get("device", "cpu")))
    model, weights = _model(_setting(context, "study-file"), tuple(data.widths.items()), device)
    private = not isinstance(study.privacy, NoPrivacy) and not _is_twin(context)
    leaks = bool(config.get("leaking-split", False))
    if leaks and private:
        raise Refusal("Expected no split by recording in a private mode; the message asks for one.")
    return _Visit(
        private=private,
        secure=study.sums_are_secure and not _is_twin(context),
        leaks=leaks,
        fold=fold,
        study=study,
        data=data,
        withheld=withheld(data, study, seed=seed, fold=fold, leaking_split=leaks),
        model=model,
        weights=weights,
        seed=seed,
        round=int(config["round"]),  # type: ignore[arg-type]
        rounds=int(config["rounds"]),  # type: ignore[arg-type]
        proximal_mu=float(config["proximal-mu"]),  # type: ignore[arg-type]
        device=device,
        control=_control(message, study, weights),
        counted=int(config.get(COUNTED, 0)),  # type: ignore[arg-type]
        personal=study.federation.personalisation if config.get(PERSONAL, False) else None,
        told_weights=_told_weights(config, study),
        told_counted=str(config[counted.TOLD]) if counted.TOLD in config else None,
    )


def _told_weights(config: Mapping[str, object], study: Study) -> str | None:
    """Returns the text of the groups' weights in a message. Raises: RunError where the study has others."""
    text = config.get(group_weights.TOLD)
    if text is None and not group_weights.moves(study):
        return None
    if not isinstance(text, str) or group_weights.read(text, study) is None:
        raise RunError("Expected the weights of the study's groups, where it has some; came others.")
    return text


def withheld(
    data: SiteData, study: Study, *, seed: int, fold: int, leaking_split: bool = False
) -> npt.NDArray[np.bool_]:
    """Returns the mask of the examples that `fold` withholds at this site; fold -1 withholds nobody.

    A pooled twin has several homes, and withholds whom each of them would. `leaking_split` deals utterances
    instead of speakers: for the column that nobody should quote.
    """
    mask = np.zeros(len(data), np.bool_)
    if fold < 0:
        return mask
    for home in sorted(set(data.homes)):
        rows = np.flatnonzero([name == home for name in data.homes])
        if leaking_split:
            labels, k = data.labels[rows].tolist(), n_folds(study.evaluation.folds)
            mask[rows] = leaking_random_fold(seed=seed, site=home, labels=labels, k=k) == fold
        else:
            # By patient where the spec says so: whoever has two speaker ids is withheld with both.
            ids = data.patients if isinstance(study.evaluation.folds, HashFolds) else data.speakers
            people = [ids[row] for row in rows]
            folds = fold_of(study.evaluation.folds, seed, home, people)
            mask[rows] = [folds[person] == fold for person in people]
    return mask


def _train(visit: _Visit, data: SiteData) -> TrainResult:
    if len(data) == 0:  # all of the site's speakers are withheld: the weights go back as they came
        if visit.correction is not None:
            descent = _steps(visit) * learning_rate_at(visit.study.training, visit.round, visit.rounds)
            sent = visit.weights.copy()
            visit.weights.write(scaffold.without_examples(visit.correction, sent=sent, descent=descent))
        return TrainResult(loss=0.0, n_examples=0, n_steps=0)
    data = with_made_rows(data.only(models.streams_of(visit.model)), visit.study)
    if isinstance(visit.personal, FedRep):
        return train_in_turn(visit.model, data, visit.personal, visit.here)
    with head_alone(visit.model, visit.study.transfer):
        return train_locally(
            visit.model,
            data,
            visit.study.training,
            seed=visit.seed,
            site=data.site,
            round=visit.round,
            rounds=visit.rounds,
            proximal_mu=visit.proximal_mu,
            correction=visit.correction,
            transfer=anchored(visit.study, visit.model),
            device=visit.device,
            frames=visit.study.frames,
            row_weights=group_weights.of_recordings(
                visit.study, visit.group_weights, data.groups, data.labels
            ),
        )


def _arrays(message: Message) -> ArrayRecord:
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise RunError("Expected weights in the record 'arrays' of a message; came another record.")
    return arrays


def _setting(context: Context, name: str) -> str:
    shared = {} if _is_a_hospitals(context) else context.run_config
    value = context.node_config.get(name, shared.get(name))
    if not isinstance(value, str):
        raise RunError(f"Expected {name!r} in the node's or the run's configuration; came nothing.")
    return value


def _site_folder(context: Context) -> str:
    if "site-folder" in context.node_config:
        return _setting(context, "site-folder")
    folders = sorted(path for path in Path(_setting(context, "sites-folder")).iterdir() if path.is_dir())
    number = int(context.node_config["partition-id"])
    if not 0 <= number < len(folders):
        raise RunError(f"Expected a partition-id below {len(folders)}, the number of sites; came {number}.")
    return str(folders[number])


def _is_twin(context: Context) -> bool:
    """Says whether this node is a twin in a simulation. The node's own word: a run's configuration is not asked."""
    if not context.node_config.get("without-privacy", False):
        return False
    if "ledger-folder" in context.node_config:
        raise RunError("Expected 'without-privacy' or 'ledger-folder' in a node's configuration; came both.")
    return True


def _is_a_hospitals(context: Context) -> bool:
    """A run's configuration is the coordinator's. A node with folders of its own takes nothing from it."""
    return "ledger-folder" in context.node_config or "secure-folder" in context.node_config


def _keeps_ledger(context: Context) -> bool:
    if _is_a_hospitals(context):
        return "ledger-folder" in context.node_config
    return "ledgers-folder" in context.run_config


def _ledger_folder(context: Context, site: str) -> Path:
    if not _is_a_hospitals(context) and "ledgers-folder" in context.run_config:
        return Path(_setting(context, "ledgers-folder")) / site
    return Path(_setting(context, "ledger-folder"))


def _secure_folder(context: Context, site: str) -> Path:
    if _keeps_ledger(context):
        return _ledger_folder(context, site) / SECURE
    if not _is_a_hospitals(context) and "secure-folders" in context.run_config:
        return Path(_setting(context, "secure-folders")) / site
    return Path(_setting(context, "secure-folder"))


def _state_folder(context: Context, site: str) -> Path:
    if not _is_a_hospitals(context) and "state-folders" in context.run_config:
        return Path(_setting(context, "state-folders")) / site
    return Path(_setting(context, "state-folder"))


@lru_cache(maxsize=4)
def _study(path: str) -> Study:
    return studies.load(Path(path))


@lru_cache(maxsize=2)
def _model(
    study_file: str, widths: tuple[tuple[str, int], ...], device: str
) -> tuple[nn.Module, ModelWeights]:
    """Returns the one model of this process. Its initial weights do not matter: every message brings all."""
    study = _study(study_file)
    model = models.build(study.model, dict(widths), len(study.labels.classes), seed=0).to(device)
    return model, ModelWeights(model)


_sites: OrderedDict[str, SiteData] = OrderedDict()


def _opened(folder: str) -> SiteData:
    """Opens a site, or takes it from the `CACHE_SITES` used last."""
    if (found := _sites.get(folder)) is None:
        found = _sites[folder] = SiteData.open(Path(folder))
        if len(_sites) > CACHE_SITES:
            _sites.popitem(last=False)
    _sites.move_to_end(folder)
    return found
