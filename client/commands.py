"""Commands of a hospital: its keys, its ledger, its policy, and who lets a study spend. Wiring only.

Exit status: 0 done; 1 the answer is no (a ledger that is not valid, figures that differ, a study that is denied);
2 something the user can mend. No command prints a secret, nor who withdrew.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sottovoce.common.errors import KeyFileError, LedgerError, PolicyError

if TYPE_CHECKING:
    from sottovoce.common.privacy.budget import Denied, Granted
    from sottovoce.common.secagg.session import Roster
    from sottovoce.common.study import Study

LONG_LEDGER_BYTES = 5_000_000  # some ten thousand entries

key_app = typer.Typer(no_args_is_help=True, help="Keys of the people who approve studies.")
ledger_app = typer.Typer(no_args_is_help=True, help="A site's record of what each patient has given away.")
policy_app = typer.Typer(no_args_is_help=True, help="What a site agrees to.")

LedgerFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A site's ledger folder, an export, or a run's extract.")
]
SiteFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A site's own ledger folder, with its keys.")
]
PolicyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A policy file (TOML).")]
Seen = Annotated[
    list[Path],
    typer.Option("--seen", metavar="FILE", help="A checkpoint that somebody kept; may be repeated."),
]
Person = Annotated[str, typer.Option(metavar="NAME", help="The named person who stands for this.")]
Reason = Annotated[str, typer.Option(help="Why; it stays in the ledger for ever.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]


@key_app.command("new")
def key_new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where this person alone keeps the key.")],
    person: Annotated[str, typer.Option(metavar="NAME", help="Whose key it is.")] = "Name of a person",
    as_json: AsJson = False,
) -> None:
    """Make the key with which one named person approves studies."""
    from sottovoce.client.policy import approver_lines
    from sottovoce.common.keys import new_approval_key

    lines = approver_lines(person, "")  # before a key is made: a name that cannot be written makes none
    with _mendable(folder, KeyFileError):
        path, public_key = new_approval_key(folder)
    lines = approver_lines(person, public_key)
    if as_json:
        _print_json({"file": str(path), "person": person, "public_key": public_key})
        return
    typer.echo(
        f"Wrote {path}: the private half. Whoever has this file can approve studies; there is no copy."
    )
    typer.echo(f"Public half: {public_key}\n\nFor the site's policy.toml:\n\n{lines}")


@ledger_app.command("create")
def ledger_create(
    folder: SiteFolder,
    site: Annotated[str, typer.Option(metavar="NAME", help="The site's name, as in its policy.")],
    as_json: AsJson = False,
) -> None:
    """Begin a site's ledger: its keys and its first entry."""
    from sottovoce.client.site_ledger import SiteLedger

    with _mendable(folder, LedgerError):
        public_key = SiteLedger.create(folder, site=site)
    if as_json:
        _print_json({"folder": str(folder), "site": site, "public_key": public_key})
        return
    typer.echo(f"Wrote {folder}. Its keys/ must never leave this machine; keep a sealed copy of them.")
    typer.echo(
        f"Public key: {public_key}\nGive it to auditors and coordinators yourself, on paper or by telephone."
    )
    typer.echo("Next: sottovoce policy new policy.toml, then sottovoce policy adopt")


@ledger_app.command("show")
def ledger_show(
    folder: LedgerFolder,
    entries: Annotated[int, typer.Option(min=0, help="How many of the newest entries to print.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Print what a ledger says. It judges nothing: `verify` does."""
    from sottovoce.common.ledger.reading import read_ledger, readable_entries
    from sottovoce.common.ledger.show import show
    from sottovoce.common.ledger.terminal import show_lines

    found, broken = readable_entries(read_ledger(folder).ledger)
    account = show(found)
    if as_json:
        _print_json({**account, "not_whole": broken})
    else:
        _print(show_lines(account, n_entries=entries, broken=broken))
    raise typer.Exit(1 if broken else 0)


@ledger_app.command("verify")
def ledger_verify(
    folder: LedgerFolder,
    public_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The site's first key, as you got it from the site.")
    ] = None,
    seen: Seen = [],  # noqa: B006 - Typer copies it
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The policy; by default the one beside the ledger.")
    ] = None,
    roster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sites and their keys: tells whose are the cosignatures."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a ledger: whole, this site's, within its own rules? Exit 0 valid, 1 not valid."""
    from sottovoce.client.policy import policy_text, policy_text_beside
    from sottovoce.common.keys import public_key_from
    from sottovoce.common.ledger.cosignature import witnessed_by
    from sottovoce.common.ledger.reading import read_ledger, read_seen
    from sottovoce.common.ledger.terminal import verdict_lines, witness_lines
    from sottovoce.common.ledger.verify import verify
    from sottovoce.common.rosters import read_roster

    found, shown = read_ledger(folder), {str(path): read_seen(path) for path in seen}
    members = None if roster is None else read_roster(roster).members
    if len(found.ledger) > LONG_LEDGER_BYTES:
        typer.echo("A long ledger: 100,000 entries take about a minute …", err=True)
    verdict = verify(
        found.ledger,
        head=found.head,
        seen=[note for note, _ in shown.values()],
        public_key=None if public_key is None else public_key_from(public_key),
        policy=policy_text(policy) if policy else policy_text_beside(found.policy_file),
    ).naming(list(shown))
    witnessed = witnessed_by(shown, members, site=verdict.site)
    if as_json:
        _print_json({**verdict.plain(), "witnessed": witnessed})
    else:
        _print(witness_lines(witnessed))
        _print(verdict_lines(verdict.plain()))
    raise typer.Exit(0 if verdict.ok else 1)


@ledger_app.command("recompute")
def ledger_recompute(folder: LedgerFolder, as_json: AsJson = False) -> None:
    """Compute every figure of a ledger again, beside the recorded one. Exit 1 where one differs."""
    from sottovoce.common.ledger.reading import read_ledger, readable_entries
    from sottovoce.common.ledger.recompute import recompute
    from sottovoce.common.ledger.terminal import figure_lines
    from sottovoce.common.privacy.budget import PldAccountant

    entries, broken = readable_entries(read_ledger(folder).ledger)
    if broken is not None:
        typer.echo(f"NOT WHOLE: nothing is believed from entry {len(entries)} on: {broken}.", err=True)
        typer.echo("Figures of a part would be too low. See `sottovoce ledger verify`.", err=True)
        raise typer.Exit(1)
    n_studies = sum(entry.body.kind == "approval" for entry in entries)
    if n_studies > 3:
        typer.echo(f"{n_studies} studies to compute again, each a few seconds …", err=True)
    figures = recompute(entries, PldAccountant())
    _print_json(figures) if as_json else _print(figure_lines(figures))
    raise typer.Exit(0 if figures["ok"] else 1)


@ledger_app.command("export")
def ledger_export(
    folder: LedgerFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the auditor.")],
    seen: Seen = [],  # noqa: B006 - Typer copies it
    with_digest_key: Annotated[
        bool,
        typer.Option("--with-digest-key", help="Also the key that opens digests. For this auditor only."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the auditor's folder: the ledger, its policy, and the program that checks it without us."""
    from sottovoce.client.site_ledger import KEYS
    from sottovoce.common.keys import DIGEST_KEY_FILE, DigestKey
    from sottovoce.common.ledger.export import export
    from sottovoce.common.ledger.reading import read_note

    notes = [read_note(path) for path in seen]
    digest_key = DigestKey.load(folder / KEYS / DIGEST_KEY_FILE) if with_digest_key else None
    written = export(folder, out, seen=notes, digest_key=digest_key)
    if as_json:
        _print_json(written)
        return
    typer.echo(f"Wrote {out}: {', '.join(written['files'])}.")
    if with_digest_key:
        typer.echo("It holds the digest key: hand it to this auditor alone, and not by mail.")
    typer.echo("The auditor reads README.txt first, and asks the site for its public key by another way.")


@ledger_app.command("checkpoint")
def ledger_checkpoint(folder: LedgerFolder) -> None:
    """Print the newest signed checkpoint, for somebody else to keep: it shows a rollback later."""
    from sottovoce.common.ledger.reading import newest_checkpoint, read_ledger

    typer.echo(newest_checkpoint(read_ledger(folder)), nl=False)


@ledger_app.command("identity")
def ledger_identity(folder: SiteFolder, as_json: AsJson = False) -> None:
    """Print the public key by which rosters know this site in secure sums."""
    from sottovoce.client.site_ledger import SiteLedger

    with SiteLedger.open(folder) as site:
        name, public_key = site.budget.state.site, site.secure.key.public_hex
    _print_json({"site": name, "identity": public_key}) if as_json else typer.echo(f"{name}={public_key}")


@ledger_app.command("federation")
def ledger_federation(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A coordinator's record of its secure sums.")],
    coordinator: Annotated[
        str | None, typer.Option(metavar="KEY", help="The coordinator's public key, as in the roster.")
    ] = None,
    site: Annotated[
        list[Path],
        typer.Option("--site", metavar="FOLDER", help="A site's ledger to hold it against; may be repeated."),
    ] = [],  # noqa: B006 - Typer copies it
    delta: Annotated[float, typer.Option(help="The delta at which to say what it cost.")] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Judge a coordinator's record of every attempt at a secure sum. Exit 0 valid, 1 not valid."""
    from sottovoce.common.federation_ledger.compare import compared_with
    from sottovoce.common.federation_ledger.reading import read_federation, read_file
    from sottovoce.common.federation_ledger.terminal import refusal_line, report_lines
    from sottovoce.common.keys import public_key_from
    from sottovoce.common.ledger.reading import read_ledger

    data, found = read_file(file), {str(path): read_ledger(path) for path in site}
    key = None if coordinator is None else public_key_from(coordinator)
    try:
        report = read_federation(data, coordinator_key=key)
    except LedgerError as error:
        _print_json({"ok": False, "problem": str(error)}) if as_json else _print([refusal_line(str(error))])
        raise typer.Exit(1) from None
    compared = {name: compared_with(report, files) for name, files in found.items()}
    ok = not any(one["problems"] for one in compared.values())
    plain = {"ok": ok, **report.plain(delta), "compared": compared}
    _print_json(plain) if as_json else _print(report_lines(plain))
    raise typer.Exit(0 if ok else 1)


@ledger_app.command("withdraw")
def ledger_withdraw(
    folder: SiteFolder,
    domain: Annotated[str, typer.Option(help="The patient's privacy domain.")],
    patient: Annotated[
        str | None, typer.Option(help="The patient's id as in the corpus; asked for if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take a patient out of all later training. The ledger says that it happened, never who.

    What this hospital had trained of its own is removed, and begins anew without that patient.
    """
    from sottovoce.client.site_ledger import SiteLedger

    with SiteLedger.open(folder) as site:
        # Asked for, it stays out of the shell's history and the list of processes.
        who = patient if patient is not None else typer.prompt("Patient's id, as in the corpus", err=True)
        withdrawals = site.withdraw(domain, who)
    _forget_own(folder)
    if as_json:
        _print_json({"domain": domain, "withdrawals": withdrawals})
        return
    typer.echo(
        f"Recorded. {withdrawals} of domain {domain} have withdrawn; none of them is drawn from now on."
    )
    typer.echo(
        "The id was taken as written: a misspelt one matches nobody. What was released before stays spent."
    )


def _forget_own(ledger: Path) -> None:
    """Removes what a hospital trained of its own with everybody: its next round begins without who withdrew."""
    from sottovoce.client.home import SETTINGS, STATE
    from sottovoce.client.personal import forget

    home = ledger.resolve().parent
    if not (home / SETTINGS).is_file():
        return
    try:
        forget(home / STATE)
    except OSError as error:
        raise LedgerError(
            f"The withdrawal is recorded. {home / STATE}: expected to remove what was trained here with everybody; it "
            f"cannot be written ({error.strerror}). Remove that folder, or say it again."
        ) from None


@ledger_app.command("rotate-key")
def ledger_rotate_key(folder: SiteFolder, person: Person, reason: Reason, as_json: AsJson = False) -> None:
    """Put a new signing key in force. The old one signs it in; both files are kept."""
    from sottovoce.client.site_ledger import SiteLedger

    with SiteLedger.open(folder) as site:
        public_key = site.rotate_key(person=person, reason=reason)
    if as_json:
        _print_json({"public_key": public_key})
        return
    typer.echo(f"The key in force is now {public_key}.")
    typer.echo("Auditors still start from the ledger's first key; every rotation is an entry.")


@ledger_app.command("move")
def ledger_move(folder: SiteFolder, person: Person, reason: Reason, as_json: AsJson = False) -> None:
    """Say that a moved or restored ledger lives here from now on, and nowhere else."""
    from sottovoce.client.site_ledger import SiteLedger
    from sottovoce.common.ledger.entries import Moved
    from sottovoce.common.ledger.reading import read_ledger, readable_entries
    from sottovoce.common.ledger.store import Move

    before, _ = readable_entries(read_ledger(folder).ledger)
    with SiteLedger.open(folder, move=Move(person=person, reason=reason)):
        entries, _ = readable_entries(read_ledger(folder).ledger)
    moved = any(isinstance(entry.body, Moved) for entry in entries[len(before) :])
    if as_json:
        _print_json({"moved": moved})
    elif moved:
        typer.echo(
            "Recorded: the ledger lives here. Destroy every other copy of its folder: two would spend twice."
        )
    else:
        typer.echo("Nothing to record: the ledger lives here already.")


@policy_app.command("new")
def policy_new(
    file: PolicyFile, site: Annotated[str, typer.Option(metavar="NAME", help="The site's name.")]
) -> None:
    """Write a first policy, with the reasons beside its defaults."""
    from sottovoce.client.policy import new_policy

    text = new_policy(site)
    with _mendable(file, PolicyError), file.open("x", encoding="utf-8") as opened:
        opened.write(text)
    typer.echo(f"Wrote {file}. Fill it in, then: sottovoce policy check {file}")


@policy_app.command("check")
def policy_check(file: PolicyFile, as_json: AsJson = False) -> None:
    """Say everything that is wrong with a policy file; exit 0 if nothing is."""
    from sottovoce.client.policy import load
    from sottovoce.common.config import as_plain

    policy = load(file)
    if as_json:
        _print_json({"ok": True, "policy": as_plain(policy)})
        return
    typer.echo(f"{file}: no problems. Version {policy.version} of {policy.site}, by {policy.changed_by}.")
    typer.echo(
        f"{len(policy.studies)} studies, {len(policy.approvers)} approvers, {len(policy.domains)} domains."
    )


@policy_app.command("adopt")
def policy_adopt(
    file: PolicyFile,
    ledger: Annotated[Path, typer.Option(metavar="FOLDER", help="The site's own ledger folder.")],
    as_json: AsJson = False,
) -> None:
    """Put a policy in force: the ledger keeps this version for ever."""
    from sottovoce.client.site_ledger import SiteLedger

    with SiteLedger.open(ledger) as site:
        written = site.adopt(file)
        version = site.budget.state.policy.version if site.budget.state.policy else 0
    if as_json:
        _print_json({"version": version, "entries_written": written})
    elif written:
        typer.echo(f"Version {version} is in force ({written} entries written).")
    else:
        typer.echo(f"Version {version} was in force already; nothing was written.")


def roster(
    coordinator: Annotated[str, typer.Option(metavar="KEY", help="The coordinator's public key.")],
    site: Annotated[
        list[str],
        typer.Option(metavar="NAME=KEY", help="A site as `ledger identity` prints it; one for each."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")],
) -> None:
    """Write down who takes part in a study's secure sums: names and public keys, for every approver to sign for."""
    from sottovoce.common.config import canonical
    from sottovoce.common.files import write_whole
    from sottovoce.common.rosters import roster_of
    from sottovoce.common.sums import roster_digest

    made = roster_of(coordinator, site)
    with _mendable(out, LedgerError):
        write_whole(out, canonical(made).encode())
    typer.echo(f"Wrote {out}: {len(made.members)} sites, digest {roster_digest(made)}.")
    typer.echo("Compare the digest by telephone before anybody approves it.")


def approve(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (TOML).")],
    ledger: Annotated[Path, typer.Option(metavar="FOLDER", help="The site's own ledger folder.")],
    domain: Annotated[str, typer.Option(help="Whose budget it spends.")],
    person: Annotated[str, typer.Option(metavar="NAME", help="Who approves, as in the policy.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="This person's key (`sottovoce key new`).")],
    roster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Who takes part, by their keys (`study roster`); for secure sums."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before signing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a study spend from a domain's budget, as a named person. Exit 1 where it is denied."""
    from sottovoce.common.rosters import read_roster
    from sottovoce.common.study import load

    pinned = None if roster is None else read_roster(roster)
    answer = ask_and_sign(
        ledger, load(study), pinned, domain=domain, person=person, key=key, yes=yes, quiet=as_json
    )
    tell_answer(answer, as_json)


def ask_and_sign(
    ledger: Path,
    study: "Study",
    roster: "Roster | None",
    *,
    domain: str,
    person: str,
    key: Path,
    yes: bool,
    quiet: bool,
) -> "Granted | Denied":
    """Shows what a person is asked to sign, asks, and has the ledger decide. Leaves with 1 where the person says no."""
    from sottovoce.client.site_ledger import SiteLedger
    from sottovoce.common.keys import SigningKey
    from sottovoce.common.ledger.terminal import draft_lines

    signing = SigningKey.load(key)
    with SiteLedger.open(ledger) as site:
        request = site.request(study, domain, roster)
        draft = site.budget.draft(request, person=person, public_key=signing.public_hex)
        if not quiet:
            _print(draft_lines(draft, study=study.name, cap=site.budget.state.domains[domain].cap))
            if study.sums_are_secure and roster is not None:
                typer.echo(f"Secure sums among {', '.join(member.site for member in roster.members)}.")
        if not yes and not typer.confirm(f"Sign as {person}?", err=True):
            typer.echo("Nothing was signed, nothing was spent.")
            raise typer.Exit(1)
        return site.approve(study, domain=domain, person=person, key=signing, roster=roster)


def tell_answer(answer: "Granted | Denied", as_json: bool) -> NoReturn:
    """Prints what the ledger decided, and leaves with 0 or 1."""
    from sottovoce.common.config import as_plain
    from sottovoce.common.privacy.budget import Granted

    if isinstance(answer, Granted):
        plain = {"granted": True, "grant": answer.grant, "approval": as_plain(answer.approval)}
        words = f"GRANTED: entry {answer.grant}. The whole study is reserved; the site may train it once."
    else:
        plain, words = {"granted": False, "reason": answer.reason}, f"DENIED: {answer.reason}"
    _print_json(plain) if as_json else typer.echo(words)
    raise typer.Exit(0 if isinstance(answer, Granted) else 1)


@contextmanager
def _mendable(path: Path, kind: type[KeyFileError | LedgerError | PolicyError]) -> Iterator[None]:
    """A file or folder that cannot be made is something the user can mend."""
    try:
        yield
    except FileExistsError:
        raise kind(f"{path}: there is one already; it was not touched. Name another.") from None
    except OSError as error:
        raise kind(f"{path}: cannot be made ({error.strerror}).") from None


def _print(lines: Iterable[Any]) -> None:
    from sottovoce.common.terminal import print_lines

    print_lines(lines)


def _print_json(plain: Any) -> None:
    from sottovoce.common.terminal import print_json

    print_json(plain)
