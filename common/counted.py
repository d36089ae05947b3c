"""Which round of each site was used last: what a study with SCAFFOLD tells all sites of one secure sum alike.

A site goes on from the control of its last round that counted, and only the coordinator knows which one that is. Under
masks a coordinator that told one site another round than the others know of would have its vector alone change. So the
rounds of all sites, in the order of the roster, are told to each, and are part of the digest that the sum agrees on.

>>> told({"a": 3, "c": 2}, ["a", "b", "c"])
'3,0,2'
"""

import hashlib
from collections.abc import Mapping, Sequence

TOLD = "counted-of-all"  # in the message of an instruction


def told(counted: Mapping[str, int], sites: Sequence[str]) -> str:
    """Returns the text of the rounds of all sites of a roster, in its order; 0 where none was used."""
    return ",".join(str(counted.get(site, 0)) for site in sites)


def longest(*, n_sites: int, rounds: int) -> int:
    """Returns how long the text can be in a study."""
    return n_sites * (len(str(rounds)) + 1) - 1


def says(text: object, sites: Sequence[str], *, site: str, counted: int, round: int) -> bool:
    """Says whether a text is one of rounds before this one, for all sites of a roster, and has `counted` for this."""
    if not isinstance(text, str) or len(text) > longest(n_sites=len(sites), rounds=round):
        return False
    parts = text.split(",")
    if len(parts) != len(sites) or not all(part.isascii() and part.isdigit() for part in parts):
        return False
    rounds = dict(zip(sites, map(int, parts), strict=True))
    return text == told(rounds, sites) and max(rounds.values()) < round and rounds.get(site) == counted


def bound_to(model: str, text: object) -> str:
    """Returns the digest of a model with the rounds told beside it; the model's own where none were."""
    if not isinstance(text, str):
        return model
    return hashlib.sha256(f"sottovoce/counted/1\n{model}\n{text}".encode()).hexdigest()
