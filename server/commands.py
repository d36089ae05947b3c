"""Commands of the coordinator: `sottovoce server …`. Wiring only.

Exit status: 0 done; 1 the answer is no (a run that failed); 2 something the user can mend.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

server_app = typer.Typer(no_args_is_help=True, help="Coordinate a federation of hospitals.")

Home = Annotated[Path, typer.Argument(metavar="HOME", help="The coordinator's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]
RunName = Annotated[str | None, typer.Option("--name", help="The run's name; the study's by default.")]


@server_app.command()
def init(
    home: Home,
    name: Annotated[str, typer.Option(help="The federation's name, as hospitals will see it.")],
    host: Annotated[
        list[str], typer.Option(help="By which hospitals reach this machine; may be repeated.")
    ] = ["localhost", "127.0.0.1"],  # noqa: B006 - Typer copies it
    fleet_port: Annotated[int, typer.Option(min=1, max=65535)] = 8443,
    consortium_port: Annotated[int, typer.Option(min=1, max=65535)] = 8444,
    front_port: Annotated[
        int, typer.Option(min=0, max=65535, help="nginx before the SuperLink; 0: none.")
    ] = 0,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Prometheus; 0: none.")] = 0,
) -> None:
    """Make a coordinator's folder: its key, its own certificate authority, its registry."""
    from sottovoce.server.operations import NEW_SERVER, found

    text = NEW_SERVER.format(
        name=_plain("--name", name),
        hosts=", ".join(f'"{_plain("--host", one)}"' for one in host),
        fleet=fleet_port,
        consortium=consortium_port,
        front=front_port,
        metrics=metrics_port,
    )
    made, fingerprint = found(home, text)
    typer.echo(
        f"Wrote {home}. Its keys/ and pki/ never leave this machine; see docs/runbook.md for copies of them."
    )
    typer.echo(f"Public key:  {made.key.public_hex}\nAuthority:   {fingerprint}")
    typer.echo(
        "Tell both to each hospital by telephone. Next: sottovoce server start, then sottovoce server invite"
    )


@server_app.command()
def start(home: Home) -> None:
    """Start the SuperLink, the consortium service and the front, and keep them alive. Ctrl-C stops them."""
    from sottovoce.server.coordinator import Coordinator
    from sottovoce.server.home import CoordinatorHome

    _log_to_terminal()
    stop_event = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop_event.set())
    opened = CoordinatorHome.open(home)
    typer.echo(
        f"{opened.settings.name}: starting. Hospitals reach {opened.fleet_address} and {opened.consortium_address}."
    )
    Coordinator(opened).serve(stop_event)


@server_app.command()
def invite(
    home: Home,
    name: Annotated[str, typer.Argument(help="The hospital's name, or a person's.")],
    out: Annotated[Path, typer.Option(help="Where to write the invitation.")],
    role: Annotated[str, typer.Option(help="site, auditor or admin.")] = "site",
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="How long it can be used.")] = 72.0,
) -> None:
    """Write the file with which one hospital enrols, once. Hand it over in person or encrypted."""
    from sottovoce.common.files import write_whole
    from sottovoce.server.consortium.invitations import invitation
    from sottovoce.server.home import CoordinatorHome

    opened = CoordinatorHome.open(home)
    _must_be_a_folder(out)
    write_whole(
        out,
        invitation(
            opened, name, role=_choice("--role", role, ("site", "auditor", "admin")), hours=hours
        ).encode(),
        mode=0o600,
    )
    typer.echo(f"Wrote {out}: whoever has it first is {name!r}. It can be used once, within {hours:g} hours.")


@server_app.command()
def offer(
    home: Home,
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (TOML).")],
    site: Annotated[list[str], typer.Option(help="A hospital; all that take part by default.")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Offer a study to hospitals: they fetch it, look at it, and approve its digest."""
    from sottovoce.server.home import CoordinatorHome
    from sottovoce.server.operations import offer as make_offer

    loaded, sites = make_offer(CoordinatorHome.open(home), study, site)
    if as_json:
        _print_json({"study": loaded.digest(), "name": loaded.name, "sites": sites})
        return
    typer.echo(f"Offered {loaded.name} ({loaded.digest()}) to {', '.join(sites)}.")
    typer.echo("Each approves it with `sottovoce client approve`. Then: sottovoce server run")


@server_app.command()
def run(
    home: Home,
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A study file, or the start of an offered digest.")
    ],
    name: RunName = None,
    seed: Annotated[int | None, typer.Option(help="One of the study's seeds; the first by default.")] = None,
    fold: Annotated[int, typer.Option(help="Whom to withhold; -1: nobody.")] = -1,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for approvals.")] = 0.0,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run an approved study among its hospitals. Exit 1 where it fails. Ctrl-C leaves it running."""
    from sottovoce.server.home import CoordinatorHome
    from sottovoce.server.operations import begin, offered_digest

    opened = CoordinatorHome.open(home)
    _must_be_running(opened)

    def waiting(missing: Any) -> None:
        typer.echo(f"Waiting for the approval of {', '.join(missing)} …", err=True)

    begun = begin(
        opened,
        offered_digest(opened, study),
        name=name,
        seed=seed,
        fold=fold,
        wait_seconds=wait,
        on_wait=waiting,
    )
    _follow(begun, detach=detach, as_json=as_json)


@server_app.command()
def resume(
    home: Home,
    name: Annotated[str, typer.Argument(help="A run that failed or was stopped.")],
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
) -> None:
    """Go on with a run from its last round, once what ended it is mended. Exit 1 where it fails again."""
    from sottovoce.server.deployed_run import DeployedRun
    from sottovoce.server.home import CoordinatorHome
    from sottovoce.server.operations import take_up

    opened = CoordinatorHome.open(home)
    _must_be_running(opened)
    found = DeployedRun.open(opened, name)
    take_up(found)
    _follow(found, detach=detach, as_json=False)


@server_app.command()
def pretrain(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file that will use the result.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=DIR", help="Public recordings; the folder's own name where NAME= is left out."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to write, say voices.initial.safetensors.")
    ],
    method: Annotated[
        str, typer.Option(help="supervised, masked_frames, or statistics: no weights.")
    ] = "supervised",
    reduction: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Also reduce the model's streams to K columns.")
    ] = None,
    reduction_by: Annotated[str, typer.Option(help="pca, whitened, or labels (LDA).")] = "pca",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="As many as the study's rounds have by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights and orders.")] = 0,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A signing key; a new one beside the result by default."),
    ] = None,
    signed_by: Annotated[
        str, typer.Option(metavar="NAME", help="Who signs, as hospitals will read it.")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, help="Processes that compute features.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Learn from public recordings what a study can start from: figures, a reduction, weights. Signed.

    No recordings at hand: `sottovoce corpus synthesize DIR` makes some.
    """
    from sottovoce.common.keys import SigningKey
    from sottovoce.common.progress import show_progress
    from sottovoce.common.study import load
    from sottovoce.server.pretrain import Plan, lines_for_study, named_sources, pretrain

    loaded = load(study)
    plan = Plan(
        method=_choice("--method", method, ("supervised", "masked_frames", "statistics")),
        columns=reduction,
        reduction_by=_choice("--reduction-by", reduction_by, ("pca", "whitened", "labels")),
        n_epochs=epochs,
        seed=seed,
    )
    _must_be_a_folder(out)
    signer = SigningKey.load(key) if key else SigningKey.generate()
    with show_progress(quiet=as_json) as on_event:
        made = pretrain(
            loaded,
            named_sources(data),
            key=signer,
            out=out,
            signed_by=_plain("--signed-by", signed_by or f"key {signer.public_hex[:16]}"),
            plan=plan,
            workers=workers,
            device=_choice("--device", device, ("cpu", "cuda")),
            on_event=on_event,
        )
    kept = None if key else signer.save(out.parent)  # only now: a command that fails leaves no key behind
    if as_json:
        _print_json({"file": str(out), "sha256": made.sha256, "public_key": made.public_key})
        return
    typer.echo(f"Wrote {out}: SHA-256 {made.sha256}")
    typer.echo(
        f"Signed by {made.public_key}" + (f": a new key, kept in {kept} to sign more with" if kept else "")
    )
    typer.echo(f"{_WHERE_IT_IS_LOOKED_FOR}\n\nFor the study:\n\n{lines_for_study(made, loaded)}")


@server_app.command()
def augment(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file that will use the rows.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=DIR", help="Public recordings; the folder's own name where NAME= is left out."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write into.")],
    per_class: Annotated[int, typer.Option(min=1, max=100_000, help="Rows of each class.")] = 200,
    method: Annotated[str, typer.Option(help="gan, or gaussians: one for each class.")] = "gan",
    steps: Annotated[int, typer.Option(min=1, help="How long a gan is trained.")] = 1500,
    seed: Annotated[int, typer.Option(help="Of networks, batches and rows.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that compute features.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Make rows that nobody said from public recordings, which sites then add to their own."""
    from sottovoce.common.generative.gan import GanSpec
    from sottovoce.common.progress import show_progress
    from sottovoce.common.study import load
    from sottovoce.server.augment import Plan
    from sottovoce.server.augment import augment as make_rows
    from sottovoce.server.pretrain import named_sources

    loaded = load(study)
    plan = Plan(
        method=_choice("--method", method, ("gan", "gaussians")),
        per_class=per_class,
        gan=GanSpec(steps=steps),
        seed=seed,
    )
    with show_progress(quiet=as_json) as on_event:
        path, digest = make_rows(
            loaded, named_sources(data), out=out, plan=plan, workers=workers, on_event=on_event
        )
    if as_json:
        _print_json({"file": str(path), "sha256": digest})
        return
    typer.echo(f"Wrote {path}\n{_WHERE_IT_IS_LOOKED_FOR}\n\nFor the study, in [training]:\n")
    typer.echo(f'synthetic = {{ sha256 = "{digest}", per_class = {per_class} }}')


@server_app.command()
def status(home: Home, as_json: AsJson = False) -> None:
    """Print who takes part, what runs, and whether the coordinator is up."""
    from sottovoce.server.home import CoordinatorHome
    from sottovoce.server.standing import standing, standing_lines

    plain = standing(CoordinatorHome.open(home))
    if as_json:
        _print_json(plain)
        return
    from sottovoce.common.terminal import print_lines

    print_lines(standing_lines(plain))


@server_app.command()
def revoke(
    home: Home,
    name: Annotated[str, typer.Argument(help="A hospital or a person that takes part.")],
    person: Annotated[str, typer.Option(metavar="NAME", help="The named person who decides this.")],
    reason: Annotated[str, typer.Option(help="Why; it stays in the registry for ever.")],
) -> None:
    """Refuse somebody from the next request on. There is no way back but a new invitation."""
    from sottovoce.server.home import CoordinatorHome
    from sottovoce.server.registry import Registry

    Registry.open(CoordinatorHome.open(home).registry).revoke(name, person=person, reason=reason)
    typer.echo(f"{name} is refused from its next request on.")


@server_app.command()
def witnessed(
    home: Home,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write them.")],
) -> None:
    """Write each hospital's newest checkpoint that others witnessed: for auditors, and before a backup is put back."""
    from sottovoce.server.consortium.witnessed import export_witnessed
    from sottovoce.server.home import CoordinatorHome
    from sottovoce.server.registry import Registry

    written = export_witnessed(Registry.open(CoordinatorHome.open(home).registry), out)
    typer.echo("\n".join(f"Wrote {path}." for path in written) or "No hospital has handed in a checkpoint.")


@server_app.command()
def stop(home: Home, name: RunName = None) -> None:
    """Stop one run (--name), until `resume`; or the coordinator: its runs go on at the next start."""
    from sottovoce.server.deployed_run import DeployedRun, ended
    from sottovoce.server.home import CoordinatorHome
    from sottovoce.server.standing import coordinator_process

    opened = CoordinatorHome.open(home)
    if name is not None:
        found = DeployedRun.open(opened, name)
        state = found.change(lambda state: ended(state, "stopped", "stopped by the operator"))
        typer.echo(f"{name}: {state.state}.")
        return
    process = coordinator_process(opened)
    if process is None:
        typer.echo("No coordinator is running here.")
        return
    os.kill(process, signal.SIGTERM)
    typer.echo("The coordinator was told to stop. Runs that are not over go on at the next start.")


_WHERE_IT_IS_LOOKED_FOR = (
    "A run finds it by its SHA-256: name its folder in SOTTOVOCE_WEIGHTS for `sottovoce simulate`; a hospital and a "
    "coordinator put it into weights/ of their homes."
)


def _follow(run: Any, *, detach: bool, as_json: bool) -> None:
    """Tells how far a run is until it ends; ends with 1 where it did not come to its end."""
    from dataclasses import asdict

    from sottovoce.server.operations import follow

    if detach:
        typer.echo(f"Begun: {run.folder}. `sottovoce server status` tells how far it is.")
        return

    def told(state: Any) -> None:
        typer.echo(f"{state.state}: round {state.round} of {state.rounds}  {state.reason}".rstrip(), err=True)

    state = follow(run, told)
    if as_json:
        _print_json({"run": str(run.folder), **asdict(state)})
    elif state.state == "done":
        typer.echo(f"{run.folder / 'model.safetensors'}: weights {state.weights_sha256}")
    raise typer.Exit(0 if state.state == "done" else 1)


def _must_be_a_folder(out: Path) -> None:
    from sottovoce.common.errors import DeploymentError

    if not os.access(out.parent, os.W_OK):
        raise DeploymentError(f"--out: expected a folder that can be written to; {out.parent} is none.")


def _must_be_running(home: Any) -> None:
    from sottovoce.common.errors import DeploymentError
    from sottovoce.server.standing import coordinator_process

    if coordinator_process(home) is None:
        raise DeploymentError(
            f"No coordinator is running in {home.folder}. Start it: sottovoce server start {home.folder}"
        )


def _log_to_terminal() -> None:
    import logging

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request otherwise


def _plain(option: str, text: str) -> str:
    from sottovoce.common.errors import DeploymentError

    if not text.isprintable() or '"' in text or "\\" in text or not 1 <= len(text) <= 120:
        raise DeploymentError(
            f"{option}: expected 1 to 120 printable characters without quotes; came {text[:80]!r}."
        )
    return text


def _choice(option: str, said: str, choices: tuple[str, ...]) -> Any:
    from sottovoce.common.errors import DeploymentError

    if said not in choices:
        raise DeploymentError(f"{option}: expected {', '.join(choices)}; came {said[:40]!r}.")
    return said


def _print_json(plain: Any) -> None:
    from sottovoce.common.terminal import print_json

    print_json(plain)
