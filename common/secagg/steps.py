"""A site's five answers, each a pure function from a state and a message's content to the next state and a reply.

What each refuses stands in its docstring as a numbered list; `participant.py` is the machine around them and says
what they guarantee together. Two states of a site are two types: no step can be done twice, or out of order, by
anybody who has only the state that it needs.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from sottovoce.common.errors import SecureSumError
from sottovoce.common.keys import AgreementKey, SigningKey, opened, sealed
from sottovoce.common.secagg import derive, masks, shamir
from sottovoce.common.secagg.session import Agreement, Session, decode_session, refuse_unless_agreed
from sottovoce.common.secagg.wire import (
    COORDINATOR_NUMBER,
    Advert,
    Consent,
    Kind,
    Reveal,
    SealedShares,
    decode_advert,
    decode_sealed,
    encode_messages,
    open_message,
    parse,
    party,
    seal,
    sender_of,
)

Values = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What one dealer entrusted to this site."""

    mask: bytes = field(repr=False)
    own: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Advertised:
    """Keys are made and published."""

    session: Session
    me: int
    share_secret: bytes = field(repr=False)
    mask_secret: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    advert: bytes

    @cached_property
    def share_key(self) -> AgreementKey:
        """Returns the key of the channel that shares go through."""
        return AgreementKey(self.share_secret)

    @cached_property
    def mask_key(self) -> AgreementKey:
        """Returns the key that pairwise masks are agreed on with; its secret is what is dealt in shares."""
        return AgreementKey(self.mask_secret)


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """Shares are on their way; keys with every peer are agreed."""

    session: Session
    me: int
    view: bytes
    sealed_for_me: Mapping[int, bytes] = field(repr=False)  # keys, by dealer
    pair_masks: Mapping[int, bytes] = field(repr=False)  # keys, by peer
    self_mask: bytes = field(repr=False)  # key


@dataclass(frozen=True, kw_only=True)
class Masked:
    """The masked vector is on its way; shares of every dealer are held."""

    session: Session
    me: int
    view: bytes
    shares: Mapping[int, Shares] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Consented:
    """A survivor set is signed."""

    held: Masked
    consent: Consent


@dataclass(frozen=True)
class Ended:
    """Revealed, refused, or broken off."""


State = Agreement | Advertised | Dealt | Masked | Consented | Ended


def agreed_session(opening: bytes, agreement: Agreement, *, site: str) -> tuple[Session, int]:
    """Returns the session of an opening, and this site's number in it.

    1. The coordinator of the roster signed the opening, and its session field is the digest of its body.
    2. The session is what this site knows by itself (`refuse_unless_agreed`).
    3. This site is in it.
    """
    envelope = parse(opening, Kind.OPENING)
    if envelope.sender != COORDINATOR_NUMBER or not envelope.signed_by(agreement.roster.coordinator):
        _refuse("signature", "Expected an opening signed by the coordinator of the roster; came another.")
    session = decode_session(envelope.body)
    if envelope.session != session.digest:
        _refuse("session", "Expected an opening under its own session's digest; came another digest.")
    refuse_unless_agreed(session, agreement)
    me = session.number_of(site)
    if me is None:
        _refuse("cohort", "Expected a cohort with this site in it; came one without.")
    return session, me


def advertised(
    session: Session, me: int, *, key: SigningKey, coins: shamir.Coins
) -> tuple[Advertised, bytes]:
    """Makes this attempt's keys. Coins are drawn in the order: share key, mask key, self-mask seed."""
    share_secret, mask_secret, seed = coins(32), coins(32), coins(32)
    advert = Advert(
        share_key=AgreementKey(share_secret).public,
        mask_key=AgreementKey(mask_secret).public,
        seed_commitment=derive.seed_commitment(session, me, seed),
    )
    reply = seal(Kind.ADVERT, session.digest, me, advert.encode(), key)
    state = Advertised(
        session=session,
        me=me,
        share_secret=share_secret,
        mask_secret=mask_secret,
        seed=seed,
        advert=reply,
    )
    return state, reply


def dealt(
    state: Advertised, messages: Sequence[bytes], *, key: SigningKey, coins: shamir.Coins
) -> tuple[Dealt, bytes]:
    """Agrees on keys with every advertised peer and deals shares to each, itself included.

    1. Every advert is of a site of the cohort, signed by it; at least the quorum; this site's own, unchanged.
    2. No key is there twice, so that no two sites are one.
    3. No agreement is on a point of low order.
    """
    session, me = state.session, state.me
    adverts = _adverts(state, messages)
    view = derive.view_of(session, messages)
    channel, pairs = {}, {}
    for (peer, advert), message in zip(adverts.items(), messages, strict=True):
        shared, mask = state.share_key.shared(advert.share_key), state.mask_key.shared(advert.mask_key)
        if shared is None or mask is None:
            what = "Expected keys that can be agreed with; came another."
            raise SecureSumError("keys", what, accused=party(session, peer), evidence=message)
        channel[peer], pairs[peer] = shared, mask
    # Coins: first the mask key's polynomial, then the seed's.
    mask_shares, own_shares = (
        shamir.split(secret, threshold=session.threshold, n_shares=session.n_sites, coins=coins)
        for secret in (state.mask_secret, state.seed)
    )
    letters = []
    for peer in adverts:
        shares = Shares(mask=mask_shares[peer], own=own_shares[peer])
        send = derive.share_key(session, view, channel[peer], me, peer)
        letters.append(seal(Kind.SEALED, session.digest, me, _letter(state, view, peer, shares, send), key))
    following = Dealt(
        session=session,
        me=me,
        view=view,
        sealed_for_me={
            peer: derive.share_key(session, view, shared, peer, me) for peer, shared in channel.items()
        },
        pair_masks={
            peer: derive.pair_mask_key(session, view, shared, me, peer)
            for peer, shared in pairs.items()
            if peer != me
        },
        self_mask=derive.self_mask_key(session, view, state.seed, me),
    )
    return following, seal(Kind.DEALING, session.digest, me, encode_messages(letters), key)


def masked(
    state: Dealt, messages: Sequence[bytes], values: Values, *, key: SigningKey
) -> tuple[Masked, bytes]:
    """Opens what every dealer entrusted to this site, and masks its vector for those dealers.

    1. Each letter is of a site that advertised, signed by it, for this site; at least the quorum; its own too.
    2. Each opens, and holds the shares that its dealer committed to.
    3. The vector is integers of the session's length and bound.
    """
    session = state.session
    shares = {dealer: _opened(state, dealer, message) for dealer, message in _dealers(state, messages)}
    total = masks.wrap(values, length=session.length, bound=session.value_bound, bits=session.ring_bits)
    masks.add_mask(total, state.self_mask, sign=1)
    for peer, mask_key in state.pair_masks.items():
        if peer in shares:  # who never dealt gets no mask: nobody could take it off again
            masks.add_mask(total, mask_key, sign=masks.pair_sign(state.me, peer))
    following = Masked(session=session, me=state.me, view=state.view, shares=shares)
    return following, seal(Kind.MASKED, session.digest, state.me, masks.to_wire(total), key)


def consented(state: Masked, survivors: tuple[int, ...], *, key: SigningKey) -> tuple[Consented, bytes]:
    """Signs the one survivor set that this site will ever help to unmask.

    1. It is a subset of the dealers, with this site in it.
    2. It has at least max(threshold, 3, n_min) sites.
    """
    session = state.session
    if not set(survivors) <= state.shares.keys() or state.me not in survivors:
        _refuse("survivors", "Expected survivors among the dealers, this site with them; came another set.")
    _refuse_below(session.quorum, len(survivors), "survivors")
    consent = Consent(view=state.view, dealers=tuple(state.shares), survivors=survivors)
    reply = seal(Kind.CONSENT, session.digest, state.me, consent.encode(), key)
    return Consented(held=state, consent=consent), reply


def revealed(state: Consented, messages: Sequence[bytes], *, key: SigningKey) -> tuple[Ended, bytes]:
    """Reveals one share of each dealer's derive.

    1. Each signature is of a survivor, none twice, this site's own among them.
    2. Each is under exactly what this site signed.
    3. There are at least a threshold of them. As 2t > n + c, no other set can gather as many.

    Why no check that a dealer is not in both lists: they are one set and its complement, made here.
    """
    session, survivors = state.held.session, state.consent.survivors
    senders = _senders(messages, Kind.CONSENT, session, among=survivors)
    if state.held.me not in senders:
        _refuse("consent", "Expected signatures with this site's own among them; came others.")
    _refuse_below(session.threshold, len(senders), "consent")
    for sender, message in zip(senders, messages, strict=True):
        if _body(message, Kind.CONSENT, session, sender) != state.consent.encode():
            _refuse("consent", "Expected signatures under the set that this site signed; came another set.")
    shares = state.held.shares
    reveal = Reveal(
        self_shares=tuple((dealer, shares[dealer].own) for dealer in survivors),
        mask_shares=tuple((dealer, it.mask) for dealer, it in shares.items() if dealer not in survivors),
    )
    return Ended(), seal(Kind.REVEAL, session.digest, state.held.me, reveal.encode(), key)


def _adverts(state: Advertised, messages: Sequence[bytes]) -> dict[int, Advert]:
    session = state.session
    senders = _senders(messages, Kind.ADVERT, session, among=range(session.n_sites))
    _refuse_below(session.quorum, len(senders), "cohort")
    adverts = {
        sender: decode_advert(_body(message, Kind.ADVERT, session, sender))
        for sender, message in zip(senders, messages, strict=True)
    }
    if state.advert not in messages:
        _refuse("keys", "Expected adverts with this site's own, unchanged; came others.")
    keys = [key for advert in adverts.values() for key in (advert.share_key, advert.mask_key)]
    if len(set(keys)) != len(keys):
        _refuse("keys", "Expected adverts of different keys; came one key twice.")
    return adverts


def _letter(state: Advertised, view: bytes, recipient: int, shares: Shares, send: bytes) -> bytes:
    session, me = state.session, state.me
    context = derive.share_context(session, view, me, recipient)
    return SealedShares(
        recipient=recipient,
        view=view,
        mask_commitment=derive.share_commitment(session, "mask-share", view, me, recipient, shares.mask),
        self_commitment=derive.share_commitment(session, "self-share", view, me, recipient, shares.own),
        cipher=sealed(send, shares.mask + shares.own, context),
    ).encode()


def _dealers(state: Dealt, messages: Sequence[bytes]) -> list[tuple[int, bytes]]:
    senders = _senders(messages, Kind.SEALED, state.session, among=state.sealed_for_me)
    if state.me not in senders:
        _refuse("share", "Expected shares with this site's own among them; came others.")
    _refuse_below(state.session.quorum, len(senders), "cohort")
    return list(zip(senders, messages, strict=True))


def _opened(state: Dealt, dealer: int, message: bytes) -> Shares:
    session, me = state.session, state.me
    letter = decode_sealed(_body(message, Kind.SEALED, session, dealer))
    if letter.recipient != me:
        _refuse("share", "Expected shares that are sealed for this site; came another's.")
    if letter.view != state.view:
        _refuse("keys", "Expected dealers that saw the adverts that this site saw; came one that saw others.")
    context = derive.share_context(session, state.view, dealer, me)
    plain = opened(state.sealed_for_me[dealer], letter.cipher, context)
    if plain is not None:
        shares = Shares(mask=plain[: shamir.SHARE_BYTES], own=plain[shamir.SHARE_BYTES :])
        made = (
            derive.share_commitment(session, "mask-share", state.view, dealer, me, shares.mask),
            derive.share_commitment(session, "self-share", state.view, dealer, me, shares.own),
        )
        if hmac.compare_digest(b"".join(made), letter.mask_commitment + letter.self_commitment):
            return shares
    # One sentence for every cause. The dealer signed the letter, so the letter is the evidence against it.
    what = "Expected shares that open to what was committed to; came others."
    raise SecureSumError("share", what, accused=party(session, dealer), evidence=message)


def _senders(
    messages: Sequence[bytes], kind: Kind, session: Session, *, among: Sequence[int] | Mapping[int, Any]
) -> list[int]:
    senders = [sender_of(message, kind, session=session) for message in messages]
    if senders != sorted(set(senders)) or not set(senders) <= set(among):
        _refuse(
            "form",
            f"Expected messages of kind {kind} in the order of their sites, of those that may send one.",
        )
    return senders


def _body(message: bytes, kind: Kind, session: Session, sender: int) -> bytes:
    return open_message(message, kind, session=session, sender=sender)


def _refuse_below(least: int, came: int, reason: str) -> None:
    if came < least:
        _refuse(reason, f"Expected at least {least} sites; came {came}. The attempt is over.")


def _refuse(reason: str, message: str) -> NoReturn:
    raise SecureSumError(reason, message)
