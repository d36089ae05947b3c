"""How many bytes each message of an attempt at a secure sum takes, so that a hospital knows before the first one.

    sizes = sizes_of(n_sites=5, opening_bytes=900, vector_bytes=84)
    sizes["mask"].down, sizes["mask"].up

Guarantees:
  - With every invited site answering, these are the sizes; where some are lost, no message is longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sottovoce.common.secagg.complaint import Phase
from sottovoce.common.secagg.shamir import SHARE_BYTES
from sottovoce.common.secagg.wire import (
    CIPHER_BYTES,
    DIGEST_BYTES,
    KEY_BYTES,
    Advert,
    Consent,
    Kind,
    Reveal,
    SealedShares,
    encode_messages,
    encode_numbers,
    message_bytes,
)


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """Bytes of a phase's message to a site, and of its answer."""

    down: int
    up: int


def sizes_of(*, n_sites: int, opening_bytes: int, vector_bytes: int) -> Mapping[Phase, Exchanged]:
    """Returns the sizes of an attempt with so many sites. `opening_bytes` is the length of its encoded session."""
    everybody = tuple(range(n_sites))
    shares = tuple((number, bytes(SHARE_BYTES)) for number in everybody)
    advert = message_bytes(Kind.ADVERT, len(_ADVERT.encode()))
    letter = message_bytes(Kind.SEALED, len(_LETTER.encode()))
    consent_body = Consent(view=bytes(DIGEST_BYTES), dealers=everybody, survivors=everybody).encode()
    consent = message_bytes(Kind.CONSENT, len(consent_body))
    return {
        "advert": Exchanged(down=message_bytes(Kind.OPENING, opening_bytes), up=advert),
        "deal": Exchanged(
            down=_relayed(Kind.ADVERTS, advert, n_sites), up=_relayed(Kind.DEALING, letter, n_sites)
        ),
        "mask": Exchanged(
            down=_relayed(Kind.DEALINGS, letter, n_sites), up=message_bytes(Kind.MASKED, vector_bytes)
        ),
        "consent": Exchanged(down=message_bytes(Kind.SURVIVORS, len(encode_numbers(everybody))), up=consent),
        "reveal": Exchanged(
            down=_relayed(Kind.CONSENTS, consent, n_sites),
            up=message_bytes(Kind.REVEAL, len(Reveal(self_shares=shares, mask_shares=()).encode())),
        ),
    }


_ADVERT = Advert(share_key=bytes(KEY_BYTES), mask_key=bytes(KEY_BYTES), seed_commitment=bytes(DIGEST_BYTES))
_LETTER = SealedShares(
    recipient=0,
    view=bytes(DIGEST_BYTES),
    mask_commitment=bytes(DIGEST_BYTES),
    self_commitment=bytes(DIGEST_BYTES),
    cipher=bytes(CIPHER_BYTES),
)


def _relayed(kind: Kind, n_bytes: int, n_messages: int) -> int:
    """A message of so many messages of equal length."""
    return message_bytes(kind, len(encode_messages([bytes(n_bytes)] * n_messages)))
