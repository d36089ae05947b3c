"""Writes tests/vectors/ledger/*.json: `PYTHONPATH=src:. python -m tests.fakes.ledger_vectors`.

Each holds a ledger with its head, checkpoints, key and policy, and what must be found: [step, entry or file].
The forger holds every key: what is wrong is wrong in one way only, and all signatures around it are good.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sottovoce.common.config import canonical
from sottovoce.common.keys import SigningKey
from sottovoce.common.ledger import checkpoint as checkpoints
from sottovoce.common.ledger.checkpoint import Checkpoint
from sottovoce.common.ledger.entries import Approval, Body, Entry, decode, join, split
from sottovoce.common.ledger.merkle import Frontier, leaf_hash
from sottovoce.common.ledger.reader import lines_of
from sottovoce.common.ledger.state import approval_statement
from sottovoce.common.ledger.store import HEAD_FILE, LEDGER_FILE
from sottovoce.common.ledger.terms import policy_from
from sottovoce.common.ledger.verify import entries_of
from sottovoce.common.model_specs import Kind
from sottovoce.common.privacy.budget import Budget, Granted
from tests.fakes.faulty_disk import FaultyDisk, FaultyFolder
from tests.fakes.ledgers import ACCOUNTANT, charge_of, hospital, lived_in, lived_with_sums, reserve

FOLDER = Path(__file__).parents[1] / "vectors" / "ledger"
Change = Callable[[Entry], Entry]


def write_vectors(folder: Path) -> list[Path]:
    """Makes every vector anew and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (vector, findings) in _vectors().items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"findings": findings, **vector}, indent=1) + "\n")
        paths.append(path)
    return paths


def forged(entries: list[Entry], *, rechain: bool = True) -> tuple[bytes, str]:
    """Signs these entries as they are, with the site's own keys; returns the ledger and its head."""
    at, tree, lines, previous, head = hospital(), Frontier(), list[bytes](), "0" * 64, ""
    key = at.key
    for number, entry in enumerate(entries):
        chained = replace(entry, index=number, previous=previous) if rechain else entry
        leaf = canonical(chained).encode()
        tree.add(leaf_hash(leaf))
        instance = entries[0].body.instance  # type: ignore[union-attr]
        signed = checkpoints.sign(Checkpoint(instance=instance, size=number + 1, root=tree.root()), key)
        lines.append(join(leaf, signed.signature))
        previous, head = leaf_hash(leaf).hex(), signed.text()
        if entry.body.kind == "key_rotation":
            key = at.next_key
    return b"".join(lines), head


def long_ledger(n_entries: int) -> tuple[bytes, str]:
    """Returns a good ledger of so many entries, most of them reservations and commits, and its head."""
    at, disk = hospital(), FaultyDisk()
    with at.create(FaultyFolder(disk)) as ledger:
        budget = Budget(ledger, ACCOUNTANT)
        granted = at.approve(budget, at.request(charges=[charge_of(100_000, 1000.0)]))
        if not isinstance(granted, Granted):
            raise TypeError(granted)
        reserve(budget, granted.grant, "release/0", steps=1)
        budget.commit("release/0", b"")
    entries = entries_of(disk.names[LEDGER_FILE].data)
    pair: list[Any] = entries[-2:]
    for number in range(1, (n_entries - len(entries)) // 2 + 1):
        release = {"release": f"release/{number}"}
        entries += [replace(entry, body=replace(entry.body, **release)) for entry in pair]
    return forged(entries)


def _vectors() -> dict[str, tuple[dict[str, Any], list[list[Any]]]]:
    disk = lived_in()
    good, head = disk.names[LEDGER_FILE].data, disk.names[HEAD_FILE].data.decode()
    lines = lines_of(good)
    entries = [decode(split(line)[0]) for line in lines]
    policies = [entry.body.text for entry in entries if entry.body.kind == "policy"]
    base = {
        "ledger": good.decode(),
        "head": head,
        "seen": [head],
        "public_key": hospital().key.public_hex,
        "policy": policies[-1],
    }
    vectors: dict[str, tuple[dict[str, Any], list[list[Any]]]] = {
        "good": (base, []),
        **_with_sums(),
        **_with_models(),
    }

    def add(name: str, findings: list[list[Any]], **parts: Any) -> None:
        vectors[name] = ({**base, **parts}, findings)

    def broken(name: str, step: int, at: int, ledger: bytes) -> None:
        add(name, [[step, f"entry {at}"]], ledger=ledger.decode("latin1"), seen=[])

    def rewritten(name: str, step: int, at: int, change: Change) -> None:
        """The forger changes one entry and signs all of it again."""
        changed = [change(entry) if entry.index == at else entry for entry in entries]
        ledger, new_head = forged(changed)
        add(name, [[step, f"entry {at}"]], ledger=ledger.decode(), head=new_head, seen=[])

    def at_kind(kind: str, last: bool = False) -> int:
        found = [entry.index for entry in entries if entry.body.kind == kind]
        return found[-1] if last else found[0]

    broken("1-form-flipped-bit", 1, 5, _flip(lines, 5, 3))
    broken("1-form-torn-last-line", 1, len(lines) - 1, good[:-40])
    spaced = lines[4].replace(b'"index":4', b'"index": 4')
    broken("1-form-second-encoding", 1, 4, b"".join([*lines[:4], spaced, *lines[5:]]))
    broken("2-chain-left-out", 2, 6, b"".join([*lines[:6], *lines[7:]]))
    broken("2-chain-swapped", 2, 6, b"".join([*lines[:6], lines[7], lines[6], *lines[8:]]))
    broken("2-chain-repeated", 2, 7, b"".join([*lines[:7], lines[6], *lines[7:]]))
    wrong_link = forged([*entries[:5], replace(entries[5], previous="f" * 64)], rechain=False)[0]
    broken("2-chain-another-entry-before", 2, 5, wrong_link)
    rewritten("3-time-backwards", 3, 8, lambda entry: replace(entry, time="2020-01-01T00:00:00Z"))
    rewritten(
        "3-time-of-no-form",
        3,
        8,
        lambda entry: replace(entry, time="yesterday, at nine "[:20].ljust(20, "!")),
    )
    for name, kind, changes in (
        ("4-rules-more-steps-than-approved", "reserve", {"steps": 9}),
        ("4-rules-withdrawal-not-honoured", "reserve", {"withdrawals_honoured": 5}),
        ("4-rules-another-grant", "reserve", {"grant": 99}),
        ("4-rules-commit-without-reservation", "commit", {"release": "never/reserved"}),
        ("4-rules-cap-beyond-policy", "cap_change", {"after": 9.0}),
        ("4-rules-domain-beyond-policy", "domain_opened", {"epsilon_cap": 9.0}),
        ("4-rules-approval-by-a-stranger", "approval", {"person": "Mallory"}),
        ("4-rules-approval-not-signed", "approval", {"signature": "0" * 128}),
        ("4-rules-study-not-listed", "approval", {"study": "ef" * 32}),
        ("4-rules-purpose-workplace", "approval", {"purpose": "workplace"}),
        ("4-rules-seeded-noise", "approval", {"noise": "seeded"}),
        ("4-rules-mode-none", "approval", {"mode": "none"}),
        ("4-rules-over-the-cap", "approval", {"domain_epsilon": 3.5}),
        ("4-rules-second-genesis", "withdrawal", {}),
        ("4-rules-rotation-without-the-new-key", "key_rotation", {"proof": "0" * 128}),
        (
            "4-rules-policy-of-another-site",
            "policy",
            {"text": policies[0].replace("hospital-a", "hospital-b")},
        ),
    ):
        if kind == "withdrawal":
            body: Body = entries[0].body
            rewritten(name, 4, at_kind(kind), _becoming(body))
        else:
            rewritten(name, 4, at_kind(kind), _changing(changes))
    rewritten("4-rules-signed-for-another-ledger", 4, at_kind("approval"), _signed_elsewhere)
    broken("5-signature-of-another-key", 5, 7, b"".join([*lines[:7], _resigned(lines[7]), *lines[8:]]))
    broken(
        "5-signature-of-another-length", 5, 7, b"".join([*lines[:7], _moved_signature(lines, 7), *lines[8:]])
    )
    add("6-identity-of-another-site", [[6, "entry 0"]], public_key=SigningKey.generate().public_hex, seen=[])
    add("7-head-of-an-older-ledger", [[7, "head"]], head=forged(entries[:-1])[1], seen=[])
    add("7-head-says-more", [[7, f"entry {len(lines) - 1}"]], ledger=b"".join(lines[:-1]).decode(), seen=[])
    add("7-head-damaged", [[7, "head"]], head=head.replace("\n", " ", 1), seen=[])
    older, older_head = forged(entries[:7])
    add("8-seen-rolled-back", [[8, "entry 7"], [9, "policy"]], ledger=older.decode(), head=older_head)
    add("8-seen-rewritten", [[8, "checkpoint 0"]], **_rewritten_reason(entries))
    add("8-seen-of-another-ledger", [[8, "checkpoint 0"]], seen=[head.replace("ledger/", "ledger/0")])
    add("9-policy-of-an-older-version", [[9, "policy"]], policy=policies[0])
    return vectors


def _with_sums() -> dict[str, tuple[dict[str, Any], list[list[Any]]]]:
    """A ledger with sums over sites, and what none may have; the forger has persuaded the approver to sign."""
    disk = lived_with_sums()
    entries = entries_of(disk.names[LEDGER_FILE].data)
    kinds = [entry.body.kind for entry in entries]
    policy, opening, approval = (
        entries[kinds.index(kind)].body for kind in ("policy", "domain_opened", "approval")
    )
    update, counts = approval.charges  # type: ignore[union-attr]
    good: dict[str, Any] = {"public_key": hospital().key.public_hex, "policy": policy.text, "seen": []}  # type: ignore[union-attr]

    def told(at: Body, **changes: Any) -> dict[str, Any]:
        """The entry is changed, signed by its person and by the site."""
        body: Any = replace(at, **changes)
        if body.kind == "approval":
            signature = hospital().approver.sign(approval_statement(entries[0].body.instance, body)).hex()  # type: ignore[union-attr]
            body = replace(body, signature=signature)
        changed = [replace(entry, body=body) if entry.body is at else entry for entry in entries]
        ledger, head = forged(changed)
        return {**good, "ledger": ledger.decode(), "head": head}

    def with_update(**numbers: Any) -> dict[str, Any]:
        return told(approval, charges=(replace(update, **numbers), counts))

    at, opened = [4, f"entry {kinds.index('approval')}"], [4, f"entry {kinds.index('domain_opened')}"]
    return {
        "good-sums": (told(approval), []),
        "4-sums-over-fewer-sites-than-the-policy-accepts": (with_update(n_min=3), [at]),
        "4-sums-whose-sites-all-collude": (with_update(n_colluding=5), [at]),
        "4-sums-with-shares-of-too-little-noise": (
            with_update(variance_numerator=1, variance_denominator=3),
            [at],
        ),
        "4-sums-of-other-patients": (with_update(n_patients=1999), [at]),
        "4-sums-in-mode-local": (told(approval, mode="local"), [at]),
        "4-sums-beside-draws-of-one-site": (told(approval, charges=(update, charge_of())), [at]),
        "4-sums-decided-by-pld": (told(approval, decided_by="pld"), [at]),
        "4-sums-over-the-cap": (told(approval, domain_epsilon=3.5), [at]),
        "4-sums-for-which-all-of-delta-is-kept": (told(opening, conceded_delta=1e-5), [opened]),
    }


def _with_models() -> dict[str, tuple[dict[str, Any], list[list[Any]]]]:
    """Policies with a list of models, and approvals and reservations that do not fit it; all of them well signed."""
    entries, at = entries_of(lived_in().names[LEDGER_FILE].data), hospital()
    kinds = [entry.body.kind for entry in entries]
    approval, later = kinds.index("approval"), len(kinds) - 1 - kinds[::-1].index("policy")

    def told(facts: dict[str, str], *models: tuple[Kind, ...] | None) -> dict[str, Any]:
        """The approval states `facts`; the first policy has the first list of models, the later one the second."""
        changed, texts = list(entries), list[str]()
        for index, allowed in zip((kinds.index("policy"), later), models, strict=True):
            body: Any = entries[index].body
            texts.append(canonical(replace(policy_from(json.loads(body.text)), models=allowed)))
            changed[index] = replace(entries[index], body=replace(body, text=texts[-1]))
        body = replace(cast(Approval, entries[approval].body), facts=facts)
        signature = at.approver.sign(approval_statement(entries[0].body.instance, body)).hex()  # type: ignore[union-attr]
        changed[approval] = replace(entries[approval], body=replace(body, signature=signature))
        ledger, head = forged(changed)
        return {
            "ledger": ledger.decode(),
            "head": head,
            "seen": [],
            "public_key": at.key.public_hex,
            "policy": texts[-1],
        }

    here, reserved = [4, f"entry {approval}"], [4, f"entry {kinds.index('reserve', later)}"]
    lstm, fusion = {"model": "lstm"}, {"model": "fusion mlp cnn"}
    return {
        "good-models": (told(fusion, ("mlp", "cnn", "fusion"), None), []),
        "4-models-of-another-kind": (told(lstm, ("mlp", "cnn"), None), [here]),
        "4-models-with-a-branch-of-another-kind": (told(fusion, ("mlp", "fusion"), None), [here]),
        "4-models-of-no-stated-kind": (told({}, ("mlp", "cnn"), None), [here]),
        "4-models-of-a-kind-that-is-none": (told({"model": " "}, ("mlp",), None), [here]),
        "4-models-on-an-empty-list": (told(lstm, (), None), [here]),
        "4-models-that-a-later-policy-leaves-out": (told(lstm, None, ("mlp",)), [reserved]),
    }


def _flip(lines: list[bytes], number: int, position: int) -> bytes:
    changed = bytearray(lines[number])
    changed[position] ^= 1
    return b"".join([*lines[:number], bytes(changed), *lines[number + 1 :]])


def _changing(changes: dict[str, Any]) -> Change:
    return lambda entry: replace(entry, body=replace(entry.body, **changes))


def _becoming(body: Body) -> Change:
    return lambda entry: replace(entry, body=body)


def _signed_elsewhere(entry: Entry) -> Entry:
    approval: Any = entry.body
    signature = hospital().approver.sign(approval_statement("0" * 32, approval)).hex()
    return replace(entry, body=replace(approval, signature=signature))


def _resigned(line: bytes) -> bytes:
    leaf, _ = split(line)
    return join(leaf, SigningKey.generate().sign(leaf))


def _moved_signature(lines: list[bytes], number: int) -> bytes:
    return join(split(lines[number])[0], split(lines[number - 1])[1])


def _rewritten_reason(entries: list[Entry]) -> dict[str, Any]:
    """The same length, another word: only a checkpoint held elsewhere tells."""
    changed = [
        replace(entry, body=replace(entry.body, reason="another reason"))
        if entry.body.kind == "burn"
        else entry
        for entry in entries
    ]
    ledger, head = forged(changed)
    return {"ledger": ledger.decode(), "head": head}


if __name__ == "__main__":
    for written in write_vectors(FOLDER):
        print(written)
