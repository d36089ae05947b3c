"""Names of members: what may be one, and when two are the same.

>>> folded("Hospital-A") == folded("hospital-a")
True
>>> member_name("St. Mary's, Ward 3")
"St. Mary's, Ward 3"
"""

import unicodedata

from sottovoce.common.errors import DeploymentError
from sottovoce.common.secagg.session import COORDINATOR

MAX_NAME_BYTES = 64  # in UTF-8: what a certificate and a roster take
_MARKS = frozenset(" -_.,'()&+")  # no separator of paths, of NAME=KEY or of URIs


def member_name(name: str) -> str:
    """Returns a member's name in its one Unicode form (NFC).

    Raises:
        DeploymentError: it is empty or too long, has other signs than letters, digits and a few marks, begins with a
            mark, or is the coordinator's.
    """
    named = unicodedata.normalize("NFC", name)
    sound = 1 <= len(named.encode()) <= MAX_NAME_BYTES and named == named.strip() and named[0].isalnum()
    if not sound or not all(sign.isalnum() or sign in _MARKS for sign in named):
        raise DeploymentError(
            f"Expected a name of letters, digits and {''.join(sorted(_MARKS))!r}, at most {MAX_NAME_BYTES} bytes, that "
            f"begins with a letter or digit; came {name[:80]!r}."
        )
    if folded(named) == COORDINATOR:
        raise DeploymentError(f"Expected a name that is not {COORDINATOR!r}; came {name[:80]!r}.")
    return named


def folded(name: str) -> str:
    """Returns what two spellings of one name have in common."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
