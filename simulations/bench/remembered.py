"""What the long proofs ask again and again, worked out once in each process. Pure functions only.

Random ledgers choose from a pool of mechanisms and step counts; random schedules read and sign the same lines in
every life. Remembering changes no answer: each function here gives the same for the same, and the proof is about
what is built on it. What combines them (composing, deciding, reading, writing) runs anew every time.
"""

import functools
import importlib
import json
from typing import Any

from sottovoce.common import keys
from sottovoce.common.ledger import checkpoint, reader, state
from sottovoce.common.privacy import accountant


@functools.cache
def remember_mechanisms(n_mechanisms: int) -> None:
    """One step's distribution, its composition with itself, and Opacus' RDP of one mechanism at one order."""
    step = accountant._step.__wrapped__
    accountant._step = functools.lru_cache(maxsize=n_mechanisms)(step)
    library: Any = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
    library.from_gaussian_mechanism = functools.lru_cache(maxsize=n_mechanisms)(
        library.from_gaussian_mechanism
    )
    # By identity: distributions are not hashable, and both caches above return the same one again.
    library.PrivacyLossDistribution.self_compose = functools.cache(
        library.PrivacyLossDistribution.self_compose
    )
    opacus: Any = importlib.import_module("opacus.accountants.analysis.rdp")
    opacus._compute_rdp = functools.cache(opacus._compute_rdp)


@functools.cache
def remember_signatures() -> None:
    """Ed25519 (deterministic: one key and message, one signature), what a line says, and what a policy says."""
    verified: Any = functools.lru_cache(maxsize=1 << 16)(keys.verified)
    for module in (state, reader, checkpoint):
        module.verified = verified  # type: ignore[attr-defined]
    keys.SigningKey.sign = functools.lru_cache(maxsize=1 << 16)(keys.SigningKey.sign)  # type: ignore[method-assign]
    reader.decode = functools.lru_cache(maxsize=1 << 16)(reader.decode)  # type: ignore[attr-defined]
    read, written = state.policy_from, state.canonical  # type: ignore[attr-defined]
    from_text = functools.lru_cache(maxsize=1 << 10)(lambda text: read(json.loads(text)))
    state.policy_from = lambda table: from_text(json.dumps(table))  # type: ignore[attr-defined]
    state.canonical = functools.lru_cache(maxsize=1 << 10)(written)  # type: ignore[attr-defined]
