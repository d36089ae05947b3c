"""The secure sum a second time: slow, plain, from docs/protocol.md, with nothing of common/secagg in it.

X25519, HKDF and Shamir are written out; AES and Ed25519 come from `cryptography`. Vectors are lists of integers. A
site is an object with one method, `answer(phase, message, vector)`; what it refuses it says by `Refuse(reason,
accused)`. The coordinator's part is two functions: what it would send, and the sum of what it was sent.
"""

import functools
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

P = 2**256 + 297
PHASES = ["advert", "deal", "mask", "consent", "reveal"]
ASKS = dict(zip(PHASES, ["opening", "adverts", "dealings", "survivors", "consents"], strict=True))
REPLIES = dict(zip(PHASES, ["advert", "dealing", "masked", "consent", "reveal"], strict=True))
COORDINATOR = 0xFFFF


class Refuse(Exception):
    def __init__(self, reason: str, accused: str = "coordinator") -> None:
        super().__init__(reason)
        self.reason, self.accused = reason, accused


# 1. Notation


def u16(number: int) -> bytes:
    return number.to_bytes(2, "little")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def label(name: str) -> bytes:
    return b"sottovoce/secagg/1/" + name.encode() + b"\n"


def sha(*pieces: bytes) -> bytes:
    return hashlib.sha256(b"".join(pieces)).digest()


@functools.lru_cache(10_000)
def x25519(secret: bytes, point: bytes) -> bytes:
    """RFC 7748: the Montgomery ladder."""
    p = 2**255 - 19
    scalar = (int.from_bytes(secret, "little") & ~7 & ~(128 << 248)) | (64 << 248)
    u = int.from_bytes(point, "little") % 2**255 % p
    x2, z2, x3, z3 = 1, 0, u, 1
    for bit in range(254, -1, -1):
        if scalar >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        x3, z3 = (d * a + c * b) ** 2 % p, u * (d * a - c * b) ** 2 % p
        x2, z2 = a * a * b * b % p, (a * a - b * b) * (a * a + 121665 * (a * a - b * b)) % p
        if scalar >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def public(secret: bytes) -> bytes:
    return x25519(secret, (9).to_bytes(32, "little"))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.new(salt, secret, "sha256").digest()
    return hmac.new(extracted, info + b"\x01", "sha256").digest()


def stream_words(key: bytes, session: "Session") -> list[int]:
    data = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(session.n_bytes))
    return words_of(data, session.width)


def words_of(data: bytes, width: int) -> list[int]:
    return [int.from_bytes(data[start : start + width], "little") for start in range(0, len(data), width)]


def canonical(tree: Any) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def signed_ok(public_hex: str, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


# 2. The session


class Session:
    def __init__(self, data: bytes) -> None:
        self.data = data
        try:
            self.table = json.loads(data.decode("ascii"))
        except (ValueError, RecursionError):
            raise Refuse("form") from None
        if canonical(self.table) != data or len(data) > 16_384:
            raise Refuse("form")
        self.digest = sha(label("session"), data)
        self.names = [member["site"] for member in self.table["cohort"]]
        self.keys = [member["public_key"] for member in self.table["cohort"]]
        if self.names != sorted(set(self.names)) or "coordinator" in self.names:
            raise Refuse("form")
        self.n, self.t, self.length = len(self.names), self.table["threshold"], self.table["length"]
        self.quorum = max(self.t, 3, self.table["n_min"])
        self.ring = 2 ** self.table["ring_bits"]
        self.width = self.table["ring_bits"] // 8
        self.n_bytes = self.width * self.length

    def key(self, sender: int) -> str:
        return str(self.table["coordinator"] if sender == COORDINATOR else self.keys[sender])


# 3. Envelopes


def envelope(kind: str, digest: bytes, sender: int, body: bytes, key: Ed25519PrivateKey) -> bytes:
    signature = key.sign(label(kind) + digest + u16(sender) + sha(body))
    return label(kind) + digest + u16(sender) + u32(len(body)) + body + signature


def limit(kind: str, vector_bytes: int) -> int:
    return {"opening": 16_384, "masked": vector_bytes}.get(kind, 65_536)


def take_apart(data: bytes, kind: str, vector_bytes: int = 0) -> tuple[bytes, int, bytes, bytes]:
    head = len(label(kind))
    if len(data) < head + 38 + 64 or data[:head] != label(kind):
        raise Refuse("form")
    digest, sender = data[head : head + 32], int.from_bytes(data[head + 32 : head + 34], "little")
    n_bytes = int.from_bytes(data[head + 34 : head + 38], "little")
    if n_bytes > limit(kind, vector_bytes) or len(data) != head + 38 + n_bytes + 64:
        raise Refuse("form")
    return digest, sender, data[head + 38 : -64], data[-64:]


def body_of(data: bytes, kind: str, session: Session, sender: int) -> bytes:
    digest, said, body, signature = take_apart(data, kind, session.n_bytes)
    if digest != session.digest:
        raise Refuse("session")
    statement = label(kind) + digest + u16(sender) + sha(body)
    if said != sender or not signed_ok(session.key(sender), signature, statement):
        raise Refuse("signature")
    return body


def split_messages(body: bytes) -> list[bytes]:
    count, found = int.from_bytes(body[:2], "little"), []
    rest = body[2:]
    for _ in range(count):
        size = int.from_bytes(rest[:4], "little")
        found.append(rest[4 : 4 + size])
        if len(rest) < 4 + size:
            raise Refuse("form")
        rest = rest[4 + size :]
    if rest or len(body) < 2 or count > 50:
        raise Refuse("form")
    return found


def join_messages(messages: list[bytes]) -> bytes:
    return u16(len(messages)) + b"".join(u32(len(message)) + message for message in messages)


def split_numbers(body: bytes) -> tuple[list[int], bytes]:
    count = int.from_bytes(body[:2], "little")
    numbers = [int.from_bytes(body[2 + 2 * at : 4 + 2 * at], "little") for at in range(count)]
    if len(body) < 2 + 2 * count or numbers != sorted(set(numbers)):
        raise Refuse("form")
    return numbers, body[2 + 2 * count :]


def join_numbers(numbers: list[int]) -> bytes:
    return u16(len(numbers)) + b"".join(map(u16, numbers))


def senders_of(messages: list[bytes], kind: str, session: Session, allowed: list[int]) -> list[int]:
    senders = [take_apart(message, kind, session.n_bytes)[1] for message in messages]
    if senders != sorted(set(senders)) or not set(senders) <= set(allowed):
        raise Refuse("form")
    return senders


# 4. A site


class Site:
    """One site's attempt. `own` is what it knows by itself: the session's fields but cohort and threshold."""

    def __init__(
        self,
        name: str,
        key: Ed25519PrivateKey,
        own: dict[str, Any],
        roster: dict[str, str],
        coins: Callable[[int], bytes],
        last_mark: list[Any] | None = None,
    ) -> None:
        self.name, self.key, self.own, self.roster, self.coins = name, key, own, roster, coins
        self.last_mark = last_mark
        self.next: str | None = "advert"

    def answer(self, phase: str, message: bytes, vector: list[int] | None = None) -> bytes:
        due, self.next = self.next, None
        if phase != due:
            raise Refuse("phase")
        if phase == "advert":
            reply = self.advert(message)
        else:
            body = body_of(message, ASKS[phase], self.session, COORDINATOR)
            content = [body, vector] if phase == "mask" else [body]
            reply = getattr(self, phase)(*content)
        mark = [self.own["round"], self.session.table["attempt"], PHASES.index(phase)]
        if self.last_mark is not None and mark <= self.last_mark:
            raise Refuse("phase")
        self.last_mark = mark
        self.next = PHASES[PHASES.index(phase) + 1] if phase != "reveal" else None
        return envelope(REPLIES[phase], self.session.digest, self.me, reply, self.key)

    def advert(self, message: bytes) -> bytes:
        digest, sender, body, signature = take_apart(message, "opening")
        statement = label("opening") + digest + u16(COORDINATOR) + sha(body)
        if sender != COORDINATOR or not signed_ok(self.own["coordinator"], signature, statement):
            raise Refuse("signature")
        session = Session(body)
        if digest != session.digest:
            raise Refuse("session")
        table = session.table
        strangers = [
            name
            for name, key in zip(session.names, session.keys, strict=True)
            if self.roster.get(name) != key
        ]
        if strangers or table["coordinator"] != self.own["coordinator"]:
            raise Refuse("roster")
        if table["model_digest"] != self.own["model_digest"]:
            raise Refuse("model")
        terms = ["run", "round", "ring_bits", "length", "value_bound", "n_min"]
        if any(table[term] != self.own[term] for term in terms) or table["ring_bits"] not in (8, 16, 32):
            raise Refuse("terms")
        if 2 * session.n * table["value_bound"] >= session.ring:
            raise Refuse("terms")
        if session.t != -(-2 * session.n // 3):
            raise Refuse("threshold")
        if session.n < session.quorum or self.name not in session.names:
            raise Refuse("cohort")
        self.session, self.me = session, session.names.index(self.name)
        self.share_secret, self.mask_secret, self.seed = self.coins(32), self.coins(32), self.coins(32)
        commitment = sha(label("seed"), session.digest, u16(self.me), self.seed)
        self.own_advert = public(self.share_secret) + public(self.mask_secret) + commitment
        return self.own_advert

    def deal(self, body: bytes) -> bytes:
        session, messages = self.session, split_messages(body)
        senders = senders_of(messages, "advert", session, list(range(session.n)))
        if len(senders) < session.quorum:
            raise Refuse("cohort")
        adverts = {}
        for sender, message in zip(senders, messages, strict=True):
            adverts[sender] = body_of(message, "advert", session, sender)
            if len(adverts[sender]) != 96:
                raise Refuse("form")
        if adverts.get(self.me) != self.own_advert:
            raise Refuse("keys")
        every = [key for advert in adverts.values() for key in (advert[:32], advert[32:64])]
        if len(set(every)) != len(every):
            raise Refuse("keys")
        self.view = sha(label("view"), session.digest, body)
        self.agreed = {}
        for sender, advert in adverts.items():
            both = x25519(self.share_secret, advert[:32]), x25519(self.mask_secret, advert[32:64])
            if bytes(32) in both:
                raise Refuse("keys", session.names[sender])
            self.agreed[sender] = both
        shares = []
        for secret in (self.mask_secret, self.seed):
            polynomial = [int.from_bytes(secret, "little")]
            polynomial += [int.from_bytes(self.coins(48), "little") for _ in range(session.t - 1)]
            shares.append(
                [
                    (sum(c * (j + 1) ** power for power, c in enumerate(polynomial)) % P).to_bytes(
                        33, "little"
                    )
                    for j in range(session.n)
                ]
            )
        letters = []
        for j in senders:
            mask, own = shares[0][j], shares[1][j]
            pair = u16(self.me) + u16(j)
            key = hkdf(self.agreed[j][0], session.digest, label("share-key") + self.view + pair)
            context = label("sealed-shares") + session.digest + self.view + pair
            letter = u16(j) + self.view
            letter += sha(label("mask-share"), session.digest, self.view, pair, mask)
            letter += sha(label("self-share"), session.digest, self.view, pair, own)
            letter += AESGCM(key).encrypt(bytes(12), mask + own, context)
            letters.append(envelope("sealed", session.digest, self.me, letter, self.key))
        return join_messages(letters)

    def mask(self, body: bytes, vector: list[int]) -> bytes:
        session, messages = self.session, split_messages(body)
        dealers = senders_of(messages, "sealed", session, list(self.agreed))
        if self.me not in dealers:
            raise Refuse("share")
        if len(dealers) < session.quorum:
            raise Refuse("cohort")
        self.held = {}
        for dealer, message in zip(dealers, messages, strict=True):
            letter = body_of(message, "sealed", session, dealer)
            if len(letter) != 180:
                raise Refuse("form")
            if letter[:2] != u16(self.me):
                raise Refuse("share")
            if letter[2:34] != self.view:
                raise Refuse("keys")
            pair = u16(dealer) + u16(self.me)
            key = hkdf(self.agreed[dealer][0], session.digest, label("share-key") + self.view + pair)
            try:
                plain = AESGCM(key).decrypt(
                    bytes(12), letter[98:], label("sealed-shares") + session.digest + self.view + pair
                )
            except InvalidTag:
                raise Refuse("share", session.names[dealer]) from None
            made = sha(label("mask-share"), session.digest, self.view, pair, plain[:33])
            made += sha(label("self-share"), session.digest, self.view, pair, plain[33:])
            if made != letter[34:98]:
                raise Refuse("share", session.names[dealer])
            self.held[dealer] = plain[:33], plain[33:]
        bound = session.table["value_bound"]
        if len(vector) != session.length or any(abs(value) > bound for value in vector):
            raise Refuse("input", "")
        info = label("self-mask") + self.view + u16(self.me) + u16(self.me)
        own_mask = stream_words(hkdf(self.seed, session.digest, info), session)
        total = [value + word for value, word in zip(vector, own_mask, strict=True)]
        for j in dealers:
            if j != self.me:
                low, high = min(j, self.me), max(j, self.me)
                info = label("pair-mask") + self.view + u16(low) + u16(high)
                words = stream_words(hkdf(self.agreed[j][1], session.digest, info), session)
                sign = 1 if self.me == low else -1
                total = [value + sign * word for value, word in zip(total, words, strict=True)]
        return b"".join((value % session.ring).to_bytes(session.width, "little") for value in total)

    def consent(self, body: bytes) -> bytes:
        survivors, rest = split_numbers(body)
        if rest:
            raise Refuse("form")
        inside = set(survivors) <= set(self.held) and self.me in survivors
        if not inside or len(survivors) < self.session.quorum:
            raise Refuse("survivors")
        self.survivors = survivors
        self.own_consent = self.view + join_numbers(list(self.held)) + join_numbers(survivors)
        return self.own_consent

    def reveal(self, body: bytes) -> bytes:
        session, messages = self.session, split_messages(body)
        senders = senders_of(messages, "consent", session, self.survivors)
        if self.me not in senders or len(senders) < session.t:
            raise Refuse("consent")
        for sender, message in zip(senders, messages, strict=True):
            if body_of(message, "consent", session, sender) != self.own_consent:
                raise Refuse("consent")
        lost = [dealer for dealer in self.held if dealer not in self.survivors]
        own = b"".join(u16(dealer) + self.held[dealer][1] for dealer in self.survivors)
        mask = b"".join(u16(dealer) + self.held[dealer][0] for dealer in lost)
        return u16(len(self.survivors)) + own + u16(len(lost)) + mask


# 4. The coordinator: what it sends for the answers that came, and the sum


def asks(session: Session, phase: str, answers: dict[str, dict[int, bytes]], to: int) -> bytes:
    """The body of the coordinator's message to one site, from all answers to the phases before."""
    if phase == "advert":
        return session.data
    before = answers[PHASES[PHASES.index(phase) - 1]]
    if phase == "mask":
        place = sorted(answers["advert"]).index(to)
        dealings = [take_apart(before[dealer], "dealing")[2] for dealer in sorted(before)]
        return join_messages([split_messages(dealing)[place] for dealing in dealings])
    if phase == "consent":
        return join_numbers(sorted(before))
    return join_messages([before[number] for number in sorted(before)])


def secret_from(shares: dict[int, bytes]) -> bytes:
    total = 0
    for j, share in shares.items():
        weight = 1
        for other in shares:
            if other != j:
                weight = weight * (other + 1) * pow(other - j, -1, P) % P
        total += int.from_bytes(share, "little") * weight
    return (total % P).to_bytes(32, "little")


def the_sum(session: Session, answers: dict[str, dict[int, bytes]]) -> tuple[list[int], list[int]] | None:
    """The survivors and the sum of their vectors, or None if too few answered some phase."""
    for phase in PHASES:
        least = session.t if phase in ("consent", "reveal") else session.quorum
        if len(answers.get(phase, {})) < least:
            return None
    digest = session.digest
    adverts = {j: take_apart(message, "advert")[2] for j, message in answers["advert"].items()}
    view = sha(label("view"), digest, join_messages([answers["advert"][j] for j in sorted(adverts)]))
    dealers, survivors = sorted(answers["deal"]), sorted(answers["mask"])
    own_shares: dict[int, dict[int, bytes]] = {}
    mask_shares: dict[int, dict[int, bytes]] = {}
    for j in sorted(answers["reveal"])[: session.t]:
        body = take_apart(answers["reveal"][j], "reveal")[2]
        for found in (own_shares, mask_shares):
            count, body = int.from_bytes(body[:2], "little"), body[2:]
            for _ in range(count):
                found.setdefault(int.from_bytes(body[:2], "little"), {})[j] = body[2:35]
                body = body[35:]
    total = [0] * session.length
    for j in survivors:
        masked = words_of(take_apart(answers["mask"][j], "masked", session.n_bytes)[2], session.width)
        seed = secret_from(own_shares[j])
        own = stream_words(hkdf(seed, digest, label("self-mask") + view + u16(j) + u16(j)), session)
        total = [value + word - mask for value, word, mask in zip(total, masked, own, strict=True)]
    for gone in dealers:
        if gone in survivors:
            continue
        secret = secret_from(mask_shares[gone])
        if public(secret) != adverts[gone][32:64]:
            raise Refuse("share", session.names[gone])
        for j in survivors:
            info = label("pair-mask") + view + u16(min(j, gone)) + u16(max(j, gone))
            words = stream_words(hkdf(x25519(secret, adverts[j][32:64]), digest, info), session)
            sign = 1 if j < gone else -1
            total = [value - sign * word for value, word in zip(total, words, strict=True)]
    half = session.ring // 2
    return survivors, [(value + half) % session.ring - half for value in total]
