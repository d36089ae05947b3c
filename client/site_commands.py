"""Commands of a hospital in a real federation: `sottovoce client …`. Wiring only.

Exit status: 0 done; 1 the answer is no (the doctor found what is in the way, a study that is denied); 2 something the
user can mend. STUDY is a study's file, its digest, or the start of that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sottovoce.common.errors import DeploymentError, SottovoceError

if TYPE_CHECKING:
    from sottovoce.client.home import Hospital

client_app = typer.Typer(no_args_is_help=True, help="Take part in a federation, as a hospital.")

Home = Annotated[Path, typer.Argument(metavar="HOME", help="The hospital's folder.")]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or the start of an offered digest.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]


@client_app.command()
def init(
    home: Home,
    invitation: Annotated[
        Path, typer.Option(metavar="FILE", help="What the coordinator gave you (`server invite`).")
    ],
    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="This hospital's name; the invited one by default.")
    ] = None,
    data: Annotated[
        list[str], typer.Option("--data", metavar="NAME=DIR", help="Recordings of a corpus; may be repeated.")
    ] = [],  # noqa: B006 - Typer copies it
    as_json: AsJson = False,
) -> None:
    """Make a hospital's folder, its keys and its ledger, and enrol. Run again, it goes on where it ended."""
    from sottovoce.client.setup import set_up

    joined = set_up(home, site=site, invitation=invitation, data=_folders(data))
    if as_json:
        _print_json(
            {
                "home": str(home),
                "site": joined.hospital.site,
                "coordinator": joined.coordinator,
                "public_key": joined.public_key,
                "fingerprint": joined.fingerprint,
                "identity": joined.identity,
                "certificate_ends": joined.not_after,
                "settings_kept": joined.settings_kept,
            }
        )
        return
    kept = " Its settings were there, and stay as they are." if joined.settings_kept else ""
    typer.echo(f"{home}: {joined.hospital.site} takes part in {joined.coordinator!r}.{kept}")
    typer.echo(f"Public key:  {joined.public_key}\nAuthority:   {joined.fingerprint}")
    typer.echo(
        "Compare both with the coordinator by telephone: whoever gave you the file can be somebody else."
    )
    typer.echo(
        f"This site's identity: {joined.identity}\nNext: sottovoce client doctor {home}, then policy adopt"
    )


@client_app.command()
def doctor(home: Home, as_json: AsJson = False) -> None:
    """Name what is wrong here, and the mend of each. Exit 1 where something is in the way of training."""
    from dataclasses import asdict

    from sottovoce.client.doctor import diagnose

    found = diagnose(home)
    ok = not any(one.level == "fail" for one in found)
    if as_json:
        _print_json({"ok": ok, "findings": [asdict(one) for one in found]})
    else:
        for one in found:
            typer.echo(f"{one.level:<5} {one.what}")
            if one.cause or one.mend:
                typer.echo(f"      {one.cause} {one.mend}".rstrip())
        typer.echo("Nothing is in the way of training." if ok else "Mend what failed, and ask again.")
    raise typer.Exit(0 if ok else 1)


@client_app.command()
def offers(home: Home, as_json: AsJson = False) -> None:
    """Fetch the studies that the coordinator offers, and list them."""
    from sottovoce.client.consortium import ConsortiumClient
    from sottovoce.client.standing import study_rows

    hospital = _open(home)
    with ConsortiumClient(hospital) as client:
        new = [study.digest() for study in client.fetch_all(mend=True)]
    rows = study_rows(hospital)
    if as_json:
        _print_json({"new": new, "studies": rows})
    elif rows:
        _print_table("studies offered to this hospital", rows)
    else:
        typer.echo("Nothing is offered to this hospital.")


@client_app.command()
def prepare(
    home: Home,
    study: StudyName,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; as in hospital.toml.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compute a study's features from this hospital's recordings. Nothing of them is sent."""
    from sottovoce.client.features import prepare_site
    from sottovoce.client.features_at_rest import at_rest
    from sottovoce.client.offered import digest_of
    from sottovoce.common.progress import show_progress
    from sottovoce.common.study import load

    hospital = _open(home)
    digest = digest_of(hospital, study)
    with show_progress(quiet=as_json) as on_event:
        place = prepare_site(
            hospital,
            load(hospital.study_file(digest)),
            workers=workers or hospital.settings.workers,
            on_event=on_event,
        )
    if as_json:
        _print_json({"study": digest, "folder": str(place), "at_rest": at_rest(hospital, digest)})
        return
    typer.echo(f"Wrote {place}: {_at_rest(hospital, digest)}.")


@client_app.command()
def preview(
    home: Home,
    study: StudyName,
    domain: Annotated[
        str | None, typer.Option(help="Whose budget it would spend; the only one by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show every message, size, release and figure of a study, before anybody approves it."""
    from sottovoce.client.standing import previewed

    hospital = _open(home)
    shown = previewed(hospital, study, domain)
    if as_json:
        _print_json({**shown.plain(), "at_rest": _at_rest(hospital, shown.digest)})
        return
    from sottovoce.client.preview_terminal import preview_lines
    from sottovoce.common.terminal import print_lines

    print_lines(preview_lines(shown, at_rest=_at_rest(hospital, shown.digest)))


@client_app.command()
def approve(
    home: Home,
    study: StudyName,
    domain: Annotated[str, typer.Option(help="Whose budget it spends.")],
    person: Annotated[str, typer.Option(metavar="NAME", help="Who approves, as in the policy.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="This person's key (`sottovoce key new`).")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before signing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let an offered study spend from a domain's budget, as a named person, and tell the coordinator."""
    from sottovoce.client.commands import ask_and_sign, tell_answer
    from sottovoce.client.offered import digest_of, open_offer

    hospital = _open(home)
    digest = digest_of(hospital, study)
    offer = open_offer(hospital, digest)
    answer = ask_and_sign(
        hospital.ledger,
        offer.study,
        offer.roster,
        domain=domain,
        person=person,
        key=key,
        yes=yes,
        quiet=as_json,
    )
    _hand_in(hospital, digest, answer)
    tell_answer(answer, as_json)


@client_app.command()
def start(
    home: Home,
    resume: Annotated[bool, typer.Option("--resume", help="Take part again after a stop.")] = False,
) -> None:
    """Run this hospital's agent: it answers what is approved, and refuses the rest. Ctrl-C ends it."""
    from sottovoce.client.agent import run_agent
    from sottovoce.client.duties import duties_of
    from sottovoce.client.features_at_rest import forget_opened
    from sottovoce.client.stopping import allow

    _log_to_terminal()
    hospital = _open(home)
    if resume:
        allow(hospital)
    typer.echo(
        f"{hospital.site}: starting, for {hospital.coordinator.name!r} at {hospital.coordinator.fleet}."
    )
    try:
        run_agent(hospital, chores=duties_of(hospital))
    finally:
        forget_opened(hospital)


@client_app.command()
def status(home: Home, as_json: AsJson = False) -> None:
    """Print whether the agent runs, what it did last, and which studies are approved here."""
    from sottovoce.client.standing import standing, standing_lines

    plain = standing(_open(home))
    if as_json:
        _print_json(plain)
        return
    from sottovoce.common.terminal import print_lines

    print_lines(standing_lines(plain))


@client_app.command()
def stop(
    home: Home,
    now: Annotated[
        bool, typer.Option("--now", help="End training within 5 s, not after the message.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stop taking part, until `start --resume`. Names what had already left."""
    from dataclasses import asdict

    from sottovoce.client.features_at_rest import forget_opened
    from sottovoce.client.stopping import stop as stop_hospital

    hospital = _open(home)
    stopped = stop_hospital(hospital, now=now)
    forget_opened(hospital)
    if as_json:
        _print_json(asdict(stopped))
        return
    typer.echo(f"{hospital.site} takes part no more: its agent {stopped.agent} ({stopped.seconds:.1f} s).")
    if stopped.burned:
        typer.echo(f"Spent without a release, since training was ended: {', '.join(stopped.burned)}.")
    rows = [_left_row(asdict(one)) for one in stopped.left]
    if rows:
        _print_table("what had left before", rows)
    else:
        typer.echo("Nothing had left this hospital.")
    typer.echo(f"Take part again with: sottovoce client start {home} --resume")


@client_app.command()
def models(
    home: Home,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Fetch them into this folder; only list them by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models that the coordinator released, each checked against its signature; fetch them with --out."""
    from dataclasses import asdict

    from sottovoce.client.consortium import ConsortiumClient

    hospital = _open(home)
    with ConsortiumClient(hospital) as client:
        found = client.models()
        files = {} if out is None else {one.sha256: _fetched(client, one, out) for one in found}
    rows = [{**asdict(one), **({"file": str(files[one.sha256])} if files else {})} for one in found]
    if as_json:
        _print_json({"models": rows})
    elif rows:
        _print_table("released models", rows)
    else:
        typer.echo("No model was released yet.")


@client_app.command()
def witnessed(
    home: Home,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write them.")],
) -> None:
    """Fetch the newest checkpoint of this hospital's ledger that others witnessed: before a backup is put back."""
    from sottovoce.client.consortium import ConsortiumClient

    with ConsortiumClient(_open(home)) as client:
        written = client.export_cosigned(out)
    for path in written:
        typer.echo(f"Wrote {path}. Ask: sottovoce ledger verify {home}/ledger --seen {path}")
    if not written:
        typer.echo("Nobody has seen a checkpoint of this hospital's ledger.")


def _fetched(client: Any, model: Any, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    place: Path = client.fetch_model(model, out / f"{model.sha256[:16]}.safetensors")
    return place


def _hand_in(hospital: "Hospital", digest: str, answer: object) -> None:
    """Tells the coordinator; where the line is down the agent does so later.

    A second approval that is denied takes the first one, which stands, back from nobody: that is not told.
    """
    from sottovoce.client.consortium import ConsortiumClient
    from sottovoce.client.standing import has_approved
    from sottovoce.common.privacy.budget import Granted

    if not isinstance(answer, Granted) and has_approved(hospital, digest):
        return
    try:
        with ConsortiumClient(hospital) as client:
            client.send_approval(digest, "approved" if isinstance(answer, Granted) else "denied")
    except SottovoceError as error:
        typer.echo(f"The coordinator was not told: {error} The agent will tell it.", err=True)


def _left_row(left: dict[str, Any]) -> dict[str, Any]:
    from sottovoce.common.privacy.stages import SIMULATED

    rounds = left["rounds"]
    figure = "NOT PRIVATE" if left["epsilon"] is None else f"{left['epsilon']:.4f} at {left['delta']:g}"
    if left["simulated"]:
        figure = f"{SIMULATED}: it would be {figure}"
    return {
        "study": f"{left['name']} ({left['study'][:12]})",
        "what": left["what"],
        "rounds": f"{rounds[0]} to {rounds[-1]}" if rounds else "",
        "releases": left["n_releases"],
        "epsilon": figure,
    }


def _at_rest(hospital: "Hospital", digest: str) -> str:
    from sottovoce.client.standing import at_rest_in_words

    return at_rest_in_words(hospital, digest)


def _open(home: Path) -> "Hospital":
    from sottovoce.client.home import Hospital

    return Hospital.open(home)


def _folders(data: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for said in data:
        name, equals, folder = said.partition("=")
        if not equals or not name or not folder or name in folders:
            raise DeploymentError(f"--data: expected NAME=DIR, each name once; came {said!r}.")
        folders[name] = Path(folder)
    return folders


def _log_to_terminal() -> None:
    import logging

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("sottovoce").setLevel(logging.INFO)


def _print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    from sottovoce.common.terminal import print_lines, table

    print_lines([table(title, rows)])


def _print_json(plain: Any) -> None:
    from sottovoce.common.terminal import print_json

    print_json(plain)
