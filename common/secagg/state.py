r"""What a site holds between two phases, as bytes, for where another process may answer the next one.

    state   = "sottovoce/secagg/1/state-" name "\n" | fields | SHA-256 of all before
    fields of `ended` are none, of the others `length u32 | session | me u16` and then
    advertised   share secret 32 | mask secret 32 | seed 32 | advert 224
    dealt        view 32 | numbers of the peers | share key 32 each | pair mask key 32 each but me | self mask key 32
    masked       view 32 | numbers of the dealers | mask share 33, self share 33 each
    consented    as masked | numbers of the survivors

FOR MEMORY ONLY, NEVER FOR A DISK: whoever holds these bytes knows this attempt's masks, and with the masked vector
the vector. A site that restarts has lost the attempt, as `docs/protocol.md` (5) has it. The digest is against
accidents: who can write these bytes can read them too.

Guarantees:
  - One state has one encoding; all other bytes are refused, by SecureSumError and nothing else.
  - A state that was read continues as the one that was written would have: same answers, same refusals.
  - What is read hangs together: its site is in the session, its advert is of its keys, its survivors are dealers.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping

from sottovoce.common.errors import SecureSumError
from sottovoce.common.secagg import derive
from sottovoce.common.secagg.session import MAX_SESSION_BYTES, MAX_SITES, Session, decode_session
from sottovoce.common.secagg.shamir import SHARE_BYTES
from sottovoce.common.secagg.steps import Advertised, Consented, Dealt, Ended, Masked, Shares, State
from sottovoce.common.secagg.wire import (
    DIGEST_BYTES,
    KEY_BYTES,
    Advert,
    Consent,
    Kind,
    Reader,
    encode_numbers,
    label,
    open_message,
)

Held = Advertised | Dealt | Masked | Consented | Ended
MAX_STATE_BYTES = MAX_SESSION_BYTES + MAX_SITES * (2 + 2 * SHARE_BYTES) + 1024
_ADVERT_BYTES = len(label(Kind.ADVERT)) + 38 + 3 * KEY_BYTES + 64  # the envelope of an advert


def encode_state(state: State) -> bytes:
    """Returns a state's bytes: secrets, for memory only.

    Raises:
        SecureSumError: "phase", for a site that was asked nothing yet and has no state.
    """
    match state:
        case Advertised():
            secrets = state.share_secret + state.mask_secret + state.seed
            return _whole("advertised", _place(state.session, state.me), secrets, state.advert)
        case Dealt():
            peers = tuple(state.sealed_for_me)
            keys = [*state.sealed_for_me.values(), *state.pair_masks.values(), state.self_mask]
            return _whole("dealt", _place(state.session, state.me), state.view, encode_numbers(peers), *keys)
        case Masked():
            return _whole("masked", _masked_fields(state))
        case Consented():
            return _whole("consented", _masked_fields(state.held), encode_numbers(state.consent.survivors))
        case Ended():
            return _whole("ended")
    raise SecureSumError("phase", "Expected a site that was asked for its keys; this one has no state yet.")


def decode_state(data: bytes) -> Held:
    """Returns the state whose bytes these are.

    1. Not longer than a state can be, and the digest at the end is that of what stands before it.
    2. Every field has its length, numbers ascend, and nothing is left over.
    3. The fields hang together: see each reader.

    Raises:
        SecureSumError: "form", or what a session or an advert is refused for.
    """
    content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if len(data) > MAX_STATE_BYTES or hashlib.sha256(content).digest() != digest:
        raise _refused()
    for name, read in _READERS.items():
        if content.startswith(_label(name)):
            reader = Reader(content[len(_label(name)) :])
            state = read(reader)
            reader.end()
            return state
    raise _refused()


def session_of(state: Held) -> tuple[Session, int] | None:
    """Returns the session of a state and its site's number in it; None where it has ended."""
    match state:
        case Advertised() | Dealt() | Masked():
            return state.session, state.me
        case Consented():
            return state.held.session, state.held.me
        case Ended():
            return None


def _whole(name: str, *fields: bytes) -> bytes:
    content = b"".join([_label(name), *fields])
    return content + hashlib.sha256(content).digest()


def _label(name: str) -> bytes:
    return label(f"state-{name}")


def _place(session: Session, me: int) -> bytes:
    return struct.pack("<I", len(session.encoded)) + session.encoded + struct.pack("<H", me)


def _masked_fields(state: Masked) -> bytes:
    shares = b"".join(piece.mask + piece.own for piece in state.shares.values())
    return _place(state.session, state.me) + state.view + encode_numbers(tuple(state.shares)) + shares


def _read_place(reader: Reader) -> tuple[Session, int]:
    session = decode_session(reader.take(reader.long_number()))
    me = reader.number()
    if me >= session.n_sites:
        raise _refused()
    return session, me


def _read_sites(reader: Reader, session: Session, me: int) -> tuple[int, ...]:
    """Sites of the session, this one among them."""
    numbers = reader.numbers()
    if me not in numbers or numbers[-1] >= session.n_sites:
        raise _refused()
    return numbers


def _read_advertised(reader: Reader) -> Advertised:
    session, me = _read_place(reader)
    share_secret, mask_secret, seed = (reader.take(KEY_BYTES) for _ in range(3))
    advert = reader.take(_ADVERT_BYTES)
    state = Advertised(
        session=session,
        me=me,
        share_secret=share_secret,
        mask_secret=mask_secret,
        seed=seed,
        advert=advert,
    )
    published = Advert(
        share_key=state.share_key.public,
        mask_key=state.mask_key.public,
        seed_commitment=derive.seed_commitment(session, me, seed),
    )
    if open_message(advert, Kind.ADVERT, session=session, sender=me) != published.encode():
        raise _refused()
    return state


def _read_dealt(reader: Reader) -> Dealt:
    session, me = _read_place(reader)
    view = reader.take(DIGEST_BYTES)
    peers = _read_sites(reader, session, me)
    return Dealt(
        session=session,
        me=me,
        view=view,
        sealed_for_me={peer: reader.take(KEY_BYTES) for peer in peers},
        pair_masks={peer: reader.take(KEY_BYTES) for peer in peers if peer != me},
        self_mask=reader.take(KEY_BYTES),
    )


def _read_masked(reader: Reader) -> Masked:
    session, me = _read_place(reader)
    view = reader.take(DIGEST_BYTES)
    shares = {
        dealer: Shares(mask=reader.take(SHARE_BYTES), own=reader.take(SHARE_BYTES))
        for dealer in _read_sites(reader, session, me)
    }
    return Masked(session=session, me=me, view=view, shares=shares)


def _read_consented(reader: Reader) -> Consented:
    held = _read_masked(reader)
    survivors = _read_sites(reader, held.session, held.me)
    if not set(survivors) <= held.shares.keys():
        raise _refused()
    consent = Consent(view=held.view, dealers=tuple(held.shares), survivors=survivors)
    return Consented(held=held, consent=consent)


def _read_ended(reader: Reader) -> Ended:
    return Ended()


_READERS: Mapping[str, Callable[[Reader], Held]] = {
    "advertised": _read_advertised,
    "dealt": _read_dealt,
    "masked": _read_masked,
    "consented": _read_consented,
    "ended": _read_ended,
}


def _refused() -> SecureSumError:
    return SecureSumError("form", "Expected the bytes of a state that this site held; came others.")
