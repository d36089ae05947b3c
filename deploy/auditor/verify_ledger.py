"""Checks a site's privacy ledger and computes every figure again. No network, nothing of Sottovoce.

    python verify_ledger.py FOLDER --public-key KEY [--seen CHECKPOINT ...] [--grid 1e-5]

It needs dp-accounting and cryptography; for sums over sites, distributed_bound.py too. FOLDER: of `ledger export`. KEY:
the site's first public key, got by another way. CHECKPOINT: files that others kept. Steps, for each line 1 to 5:
  1 form       every line is {"entry":…,"signature":"…"}; the entry is JSON in one encoding
  2 chain      entry i calls itself i, and names the hash of entry i-1
  3 time       never before the entry before
  4 rules      every entry was allowed where it stands: approved, signed, within grant, policy and cap
  5 signature  the site's key in force signed the Merkle root (RFC 6962) of all entries up to this one
  6 identity   the first key is KEY
  7 head       the newest checkpoint in the folder is that of the last entry
  8 seen       every CHECKPOINT is contained in this ledger
  9 policy     policy.json is the policy in force
 10 figures    every recorded epsilon is at least the one computed here, at most 0.001 above (--grid 0: left out)
Exit status: 0 all passed; 1 something is wrong; 2 the arguments are. It cannot tell whether the list of patients is
true, or programs did what they recorded. An older copy, or one rewritten with the site's key, shows in step 8 only.
"""

import argparse
import base64
import hashlib
import json
import math
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from scipy.special import logsumexp
from scipy.stats import binom

# What a named person does not sign of an approval: it is computed from the rest, or is the signature.
UNSIGNED = {"kind", "decided_by", "epsilon", "domain_epsilon", "accountant", "public_key", "signature"}
sys.path.append(str((OTHER := Path(__file__).with_name("distributed_bound.py")).parent))  # for sums
ORDERS = [*range(2, 65), *range(68, 129, 4), 160, 192, 256, 384, 512]
SUM = "poisson_discrete_gaussian_sum"
LINE = re.compile(rb'\{"entry":(.*),"signature":"([0-9a-f]{128})"\}\n')
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Wrong(Exception):
    """(step, what is wrong)"""


def rule(good, what, step=4):
    if not good:
        raise Wrong(step, what)


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def signed(key_hex, signature, message):
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key_hex)).verify(signature, message)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def grow(tree, leaf_hash):
    """Adds a leaf to a Merkle tree, kept as its full subtrees (number of leaves, root); returns the whole's root."""
    tree.append((1, leaf_hash))
    while len(tree) > 1 and tree[-1][0] == tree[-2][0]:
        (n, right), (_, left) = tree.pop(), tree.pop()
        tree.append((2 * n, hashlib.sha256(b"\x01" + left + right).digest()))
    root = tree[-1][1]
    for _, left in reversed(tree[:-1]):
        root = hashlib.sha256(b"\x01" + left + root).digest()
    return root


def note_body(instance, size, root):
    return f"sottovoce.ledger/{instance}\n{size}\n{base64.b64encode(root).decode()}\n"


def read_note(text):
    """Returns (size, signature) of a signed checkpoint. Raises: ValueError, IndexError."""
    origin, size, root, _, last, _ = text.split("\n")
    stamp, root = base64.b64decode(last.split(" ")[2], validate=True), base64.b64decode(root, validate=True)
    instance = origin.removeprefix("sottovoce.ledger/")
    whole = f"{note_body(instance, int(size), root)}\n\u2014 {origin} {base64.b64encode(stamp).decode()}\n"
    if text != whole or len(stamp) != 68 or int(size) < 1:
        raise ValueError
    return int(size), stamp[4:]


def read_line(line):
    """Returns an entry, its bytes and its signature."""
    found = LINE.fullmatch(line)
    rule(found, "the line is not of the one form", 1)
    try:
        entry = json.loads(found[1].decode("ascii"))
        known = {"label", "index", "previous", "time", "body"} <= entry.keys() and type(entry["time"]) is str
        known &= entry["label"] == "sottovoce/ledger/1" and hasattr(Account, f"on_{entry['body']['kind']}")
        rule(known and canonical(entry).encode() == found[1], "unknown version, kind of entry or encoding", 1)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Wrong(1, "the entry is not JSON in ASCII") from None
    return entry, found[1], bytes.fromhex(found[2].decode())


class Account:
    """What the entries add up to."""

    def __init__(self):
        self.instance = self.site = self.key = self.policy = self.policy_text = None
        self.domains, self.grants, self.releases = {}, {}, {}
        self.attention = []  # (rank, entry, text, person, reason); rank 0 is shown first

    def take(self, index, body):
        rule((index == 0) == (body["kind"] == "genesis"), "expected one genesis entry, and first")
        try:
            getattr(self, f"on_{body['kind']}")(index, body)
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration, RecursionError):
            raise Wrong(4, f"{body['kind']}: it names what is not there, or a value is of no use") from None
        if body["kind"] in ("moved", "key_rotation", "recovery", "burn", "denial"):
            self.attention.append((2, index, body["kind"], body.get("person", ""), body.get("reason", "")))

    def on_genesis(self, index, body):
        self.instance, self.site, self.key = body["instance"], body["site"], body["public_key"]

    def on_key_rotation(self, index, body):
        statement = f"sottovoce/key-rotation/1\n{self.instance}\n{self.key}\n{body['public_key']}\n"
        proof = signed(body["public_key"], bytes.fromhex(body["proof"]), statement.encode())
        rule(proof and body["public_key"] != self.key, "the new key did not sign its own rotation")
        self.key = body["public_key"]

    on_moved = on_recovery = on_denial = lambda self, index, body: None  # they are shown

    def on_policy(self, index, body):
        policy = json.loads(body["text"])
        stated = (canonical(policy), policy["site"], policy["version"], policy["changed_by"])
        wanted = (body["text"], self.site, body["version"], body["person"])
        rule(stated == wanted, "the policy is of another site, version, person or encoding")
        rule(self.policy is None or policy["version"] > self.policy["version"], "an older policy")
        self.policy, self.policy_text = policy, body["text"]
        self.terms = {terms["name"]: terms for terms in policy["domains"]}

    def on_domain_opened(self, index, body):
        name, delta, terms = body["domain"], body["delta"], self.terms[body["domain"]]
        same = all(body[k] == terms[k] for k in ("n_patients", "epsilon_cap", "delta", "small_population"))
        rule(same and name not in self.domains, "a domain opens once, as the policy in force states it")
        small = delta < body["n_patients"] ** -1.1 and (delta <= 1e-5 or body["small_population"])
        small &= body.get("conceded_delta", 0.0) < delta
        rule(small, "the domain's delta is too large for its patients, or all of it is kept for losses")
        start = {"cap": body["epsilon_cap"], "grants": [], "withdrawals": 0, "promised": 0.0, "closed": False}
        self.domains[name] = {**body, **start}

    def on_domain_closed(self, index, body):
        self.domains[body["domain"]]["closed"] = True  # nothing opens it again

    def on_cap_change(self, index, body):
        name, domain, after = body["domain"], self.domains[body["domain"]], body["after"]
        moves = body["before"] == domain["cap"] != after == self.terms[name]["epsilon_cap"]
        rule(moves, "a cap moves from the one in force to that of the policy in force")
        if after > domain["cap"]:
            spent = any(self.grants[grant]["drawn"] for grant in domain["grants"])
            text = f"cap raised from {domain['cap']} to {after}{' AFTER SPENDING' if spent else ''}"
            self.attention.append((0 if spent else 2, index, text, body["person"], body["reason"]))
        domain["cap"] = after

    def on_approval(self, index, body):
        domain, policy, private = self.domains[body["domain"]], self.policy, body["mode"] != "none"
        secret = private and body["noise"] == "secret"
        rule(body["study"] in policy["studies"] and not domain["closed"], "unlisted study or closed domain")
        approver = {"name": body["person"], "public_key": body["public_key"]} in policy["approvers"]
        kinds = set(body["facts"].get("model", "").split()) or {"?"}
        allowed = approver and kinds <= set(policy.get("models", kinds))
        rule(allowed, "the policy does not name this person with this key, or allow this model")
        named = body.get("purpose_reference", "").startswith(("medical:", "safety:"))
        banned = body["purpose"] in ("workplace", "education") and not named
        rule(body["purpose"] in policy["purposes"] and not banned, "policy or law refuses this purpose")
        rule(body["sites_per_patient"] <= policy["max_sites_per_patient"], "too many sites per patient")
        rule(body["mode"] in policy["modes"] and (secret or policy["allow_non_private"]), "mode not allowed")
        repeat = sum(grant["study"] == body["study"] for grant in self.grants.values())
        terms = canonical({field: body[field] for field in body.keys() - UNSIGNED})
        message = f"sottovoce/approval/1\n{self.instance}\n{terms}\n".encode()
        proof = signed(body["public_key"], bytes.fromhex(body["signature"]), message)
        rule(proof and body["repeat"] == repeat, "not signed by its person, for this run of the study")
        rule(private or not body["charges"], "mode 'none' has no figures")
        if private:
            self.check_figures(body, domain, secret)
        if not secret:
            self.attention.append((1, index, "a study without secret noise: NOT PRIVATE", body["person"], ""))
        start = {"drawn": {}, "open": 0, "closed": False, "secret": secret, "kinds": kinds}
        self.grants[index] = {**body, **start}
        domain["grants"].append(index)

    def check_figures(self, body, domain, secret):
        names = [charge["what"] for charge in body["charges"]]
        sizes = all(c["n_patients"] == domain["n_patients"] and c["steps"] > 0 for c in body["charges"])
        rule(names and len(set(names)) == len(names) and sizes, "the charges are not those of this domain")
        own = body["delta"] <= domain["delta"] and body["epsilon"] <= self.policy["max_epsilon_per_study"]
        rule(own, "the study's delta or epsilon is above what the policy allows")
        sums, least = merged(body["charges"])[1], self.policy.get("min_sites", 3)
        rule(len(sums) == (len(names) if body["mode"] == "distributed" else 0), "charges of another mode")
        rule(OTHER.is_file() or not sums, f"{OTHER.name} is not beside this file: sums over sites need it")
        rule(all(c["n_min"] >= max(least, c["n_colluding"] + 1) for c in sums), "sums over too few sites")
        rule(all(c["variance_denominator"] <= 2 * c["variance_numerator"] for c in sums), "too little noise")
        deciders = ("rdp_filter",) if domain["grants"] else ("rdp_filter", "rdp" if sums else "pld")
        rule(body["decided_by"] in deciders and "accountant" in body, "the filter decides later studies")
        cap = self.terms[body["domain"]]["epsilon_cap"]
        rule(body["domain_epsilon"] <= domain["cap"] == cap, "above the cap, or the policy states another")
        rule(not secret or all(self.grants[one]["secret"] for one in domain["grants"]), "not private before")
        domain.update(before=list(self.charges(body["domain"], False)), promised=body["domain_epsilon"])

    def on_study_closed(self, index, body):
        grant = self.grants[body["grant"]]
        rule(not grant["closed"] and not grant["open"], "closed already, or a reservation is open")
        grant["closed"] = True

    def on_withdrawal(self, index, body):
        self.domains[body["domain"]]["withdrawals"] += 1

    def on_reserve(self, index, body):
        grant, what = self.grants[body["grant"]], body["what"]
        domain, drawn = self.domains[grant["domain"]], grant["drawn"].get(what, 0)
        rule(not grant["closed"] and not domain["closed"], "the grant or its domain is closed")
        rule(body["release"] not in self.releases, "a release id was used twice")
        fits = grant["kinds"] <= set(self.policy.get("models", grant["kinds"]))
        rule(fits and grant["study"] in self.policy["studies"], "the policy lists study or model no more")
        rule(body["withdrawals_honoured"] == domain["withdrawals"], "a withdrawal was not honoured")
        if grant["mode"] == "none":
            rule(self.policy["allow_non_private"], "the policy allows nothing that is not private")
        else:
            granted = sum(charge["steps"] for charge in grant["charges"] if charge["what"] == what)
            rule(0 < body["steps"] <= granted - drawn, "more steps than were approved")
            cap = self.terms[grant["domain"]]["epsilon_cap"]
            rule(domain["promised"] <= domain["cap"] == cap, "the cap in force is below what was promised")
        grant["drawn"][what] = drawn + body["steps"]
        grant["open"] += 1
        self.releases[body["release"]] = {"grant": body["grant"], "open": True}

    def on_commit(self, index, body):
        release = self.releases[body["release"]]
        rule(release["open"], "the release has no open reservation")
        release["open"] = False
        self.grants[release["grant"]]["open"] -= 1

    on_burn = on_commit  # spent all the same

    def charges(self, domain, spent_only):
        """Everything that a domain has promised; or everything reserved for releases so far."""
        for grant in (self.grants[index] for index in self.domains[domain]["grants"]):
            early = spent_only or (grant["closed"] and grant["decided_by"] == "rdp_filter")
            for charge in grant["charges"]:
                yield {**charge, "steps": grant["drawn"].get(charge["what"], 0) if early else charge["steps"]}


def merged(charges):
    """Equal draws added up, (patients, q, cap or 0, records of a patient, noise), steps; and sums over sites."""
    names = ("n_patients", "sampling_prob", "cap", "records_per_patient", "noise_multiplier")
    draws, sums = Counter(), [one for one in charges if one["mechanism"] == SUM and one["steps"]]
    for one in (charge for charge in charges if charge["mechanism"] != SUM):
        draws[tuple(one.get(name, 0) for name in names)] += one["steps"]
    return sorted((+draws).items()), sums


def crowded(n, q, cap, m):
    """P(the others' records leave less room under the cap than one patient needs), at most."""
    return float(binom.sf(cap - m, (n - 1) * m, q)) if cap else 0.0


def epsilon_of(charges, delta, grid):
    """Privacy loss distributions. A crowded draw is conceded to delta where that is cheap, or costs double."""
    draws, sums = merged(charges)
    if sums:  # there is no such distribution: the least Renyi bound of any order
        return import_module(OTHER.stem).epsilon(sums, delta, others=lambda a: divergence(draws, a))
    from dp_accounting import NeighboringRelation as Relation
    from dp_accounting.pld import privacy_loss_distribution as pld

    conceded = math.fsum(steps * crowded(*key[:4]) for key, steps in draws)
    mixes = conceded > 1e-4 * delta and all(key[3] == 1 for key, _ in draws)
    left = delta if mixes else delta - conceded
    total = pld.identity(grid)
    for (n, q, cap, m, noise), steps in draws if left > 0 else []:
        one, full = pld.from_gaussian_mechanism(noise, 1, True, grid, -50, q), crowded(n, q, cap, m)
        if m > 1:  # several records of one patient: how many are drawn is binomial
            odds = binom.pmf(range(m + 1), m, q)
            one = pld.from_mixture_gaussian_mechanism(noise, range(m + 1), odds, True, grid)
        elif mixes and full:  # one patient displaces another: twice the sensitivity, and a replacement
            new = pld.from_gaussian_mechanism(noise / 2, 1, True, grid, -50, q, True, Relation.REPLACE_ONE)
            one = new.compute_mixture(one, full)
        total = total.compose(one.self_compose(steps))
    return total.get_epsilon_for_delta(left) if left > 0 else math.inf


def divergence(draws, a):
    """Renyi's, of all draws at an order (Mironov et al. 2019); a crowded one has twice the sensitivity."""

    def log_moment(noise, q, m):  # of several records a bound: convexity over how many are drawn
        n, cost = (a, lambda k: k * (k - 1)) if m == 1 else (m, lambda k: a * (a - 1) * k * k)
        return logsumexp([w + cost(k) / 2 / noise**2 for k, w in enumerate(binom.logpmf(range(n + 1), n, q))])

    total = 0.0
    for (n, q, cap, m, noise), steps in draws:
        full = crowded(n, q, cap, m)
        terms = [math.log(p) + log_moment(s, q, m) for p, s in ((full, noise / 2), (1 - full, noise)) if p]
        total += steps * logsumexp(terms) / (a - 1)
    return float(total)


def filter_epsilon(charges, opened):
    """The Renyi filter across studies: how a domain opened fixes its order, and what sums may take off delta."""
    delta, kept = opened["delta"], opened.get("conceded_delta", 0.0)
    price = {a: math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in ORDERS}
    a = max(ORDERS, key=lambda a: (opened["epsilon_cap"] - price[a]) / a)  # not what flatters at the end
    draws, sums = merged(charges)
    total = divergence(draws, a) + (import_module(OTHER.stem).spent(sums, a, kept) if sums else 0.0)
    return max(0.0, total + price[a] - math.log1p(-kept / delta) / (a - 1)) if total else 0.0


def figures(index, body, domain, grid):
    """Step 10 for one approval: the study's own epsilon, and the one that decided. Yields what is wrong."""
    together, by_filter = [*domain["before"], *body["charges"]], body["decided_by"] == "rdp_filter"
    ours = filter_epsilon(together, domain) if by_filter else epsilon_of(together, domain["delta"], grid)
    found = {"epsilon": epsilon_of(body["charges"], body["delta"], grid), "domain_epsilon": ours}
    for name, value in found.items():
        print(f"entry {index}: {name} recorded {body[name]:.6f}, computed {value:.6f}")
        if not -1e-9 <= body[name] - value <= 1e-3:
            yield 10, f"entry {index}", f"{name} is recorded as {body[name]}, and is {value}"
    if sums := merged(body["charges"])[1]:
        lines = import_module(OTHER.stem).beside(sums, body["delta"], body["sites_per_patient"])
        print(*(f"entry {index}: {line}" for line in lines), sep="\n")


def contained(step, where, text, lines):
    """Steps 7 and 8: `lines` holds what was signed at each length, and by which key."""
    try:
        size, signature = read_note(text)
        if size > len(lines):
            return [(step, f"entry {len(lines)}", f"{where} has {size} entries, and the ledger {len(lines)}")]
        signer, note = lines[size - 1]
        whole = (step == 8 or size == len(lines)) and text.startswith(note)
        good = whole and signed(signer, signature, note.encode())
    except (ValueError, IndexError):
        good = False
    return [] if good else [(step, where, "not a checkpoint of this ledger: changed, forged, or rewritten")]


def judge(ledger, head, seen, policy, public_key, grid):
    """Returns the account and what is wrong: (step, entry or file, text)."""
    account, tree, lines, findings, previous, last_time = Account(), [], [], [], "0" * 64, ""
    for index, line in enumerate(ledger.splitlines(keepends=True)):
        try:
            entry, leaf, signature = read_line(line)  # 1
            body, time, signer = entry["body"], entry["time"], account.key or entry["body"].get("public_key")
            rule((entry["index"], entry["previous"]) == (index, previous), "not the next of this chain", 2)
            rule(TIME.fullmatch(time) and time >= last_time, "no time, or it goes back", 3)
            account.take(index, body)  # 4
            leaf_hash = hashlib.sha256(b"\x00" + leaf).digest()
            note = note_body(account.instance, index + 1, grow(tree, leaf_hash))
            rule(signed(signer, signature, note.encode()), "not signed by the site's key in force", 5)
        except Wrong as wrong:
            return account, [(wrong.args[0], f"entry {index}", wrong.args[1])]
        previous, last_time = leaf_hash.hex(), time
        lines.append((signer, note))
        if grid and body.get("charges"):
            findings += figures(index, body, account.domains[body["domain"]], grid)
    if public_key and lines and lines[0][0] != public_key:
        findings.append((6, "entry 0", "the ledger began with another key"))
    for step, name, note in [(7, "head", head), *((8, name, note) for name, note in seen)]:
        findings += contained(step, name, note, lines)
    if policy != account.policy_text:
        findings.append((9, "policy", "policy.json is not the policy in force"))
    return account, sorted(findings)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--public-key", help="64 hexadecimal digits")
    parser.add_argument("--seen", type=Path, nargs="*", default=[])
    parser.add_argument("--grid", type=float, default=1e-5)
    args = parser.parse_args()
    paths = [args.folder / "head", args.folder / "policy.json"]
    head, policy = (path.read_bytes().decode(errors="replace") if path.is_file() else None for path in paths)
    seen = [(path.name, path.read_bytes().decode(errors="replace")) for path in args.seen]
    ledger = (args.folder / "ledger.jsonl").read_bytes()
    account, findings = judge(ledger, head or "", seen, policy, args.public_key, args.grid)
    for name, domain in account.domains.items() if args.grid else ():
        spent = epsilon_of(account.charges(name, True), domain["delta"], args.grid)
        print(f"domain {name}: epsilon {spent:.6f} spent at delta {domain['delta']}, cap {domain['cap']}")
    for _, index, *texts in sorted(account.attention):
        print(f"LOOK AT entry {index}:", *texts)
    for step, where, what in findings:
        print(f"WRONG in step {step}, {where}: {what}")
    print(f"{'WRONG' if findings else 'PASSED'}: {account.site}, {len(account.releases)} releases")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
