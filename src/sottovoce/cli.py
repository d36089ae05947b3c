"""The one console command. Wiring only: every command reads its arguments, calls one function, prints.

Exit status: 0 done; 1 a check that was asked for has failed; 2 something the user can mend (one clear message on
standard error); 130 interrupted.
Modules are imported inside commands, so that `sottovoce --help` need not wait for torch.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sottovoce.client.commands import approve, key_app, ledger_app, policy_app, roster
from sottovoce.client.site_commands import client_app
from sottovoce.common.errors import SottovoceError
from sottovoce.server.commands import server_app

app = typer.Typer(
    name="sottovoce",
    help="Train one speech-emotion model across hospitals; every recording stays at home.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
study_app = typer.Typer(no_args_is_help=True, help="Write, check and identify study files.")
privacy_app = typer.Typer(no_args_is_help=True, help="What a study costs its patients, before it runs.")
corpus_app = typer.Typer(no_args_is_help=True, help="Look at recordings before a study, or make some.")
app.add_typer(study_app, name="study")
app.add_typer(corpus_app, name="corpus")
app.add_typer(privacy_app, name="privacy")
app.add_typer(key_app, name="key")
app.add_typer(policy_app, name="policy")
app.add_typer(ledger_app, name="ledger")
app.add_typer(server_app, name="server")
app.add_typer(client_app, name="client")

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (TOML).")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="NAME=DIR",
        help="Folder of a corpus of the study; NAME= may be left out where there is one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]


@app.command()
def simulate(
    study: Annotated[Path | None, typer.Argument(metavar="STUDY", help="A study file (TOML).")] = None,
    data: Data = [],  # noqa: B006 - Typer copies it
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<study's name> by default.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was interrupted.")
    ] = None,
    engine: Annotated[str, typer.Option(help="inprocess, processes, cohort or ray.")] = "inprocess",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at once; as many as cores by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    twins: Annotated[bool, typer.Option(help="Also the pooled and the local-only twin.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a run that is there already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study on this machine: features, local training, aggregation, evaluation, report."""
    from sottovoce.common.progress import show_progress
    from sottovoce.common.study import Execution
    from sottovoce.simulations.simulate import resume_run, start_run

    execution = Execution(
        engine=_choice("--engine", engine, ("inprocess", "processes", "cohort", "ray")),  # type: ignore[arg-type]
        workers=workers or len(os.sched_getaffinity(0)),
        device=_choice("--device", device, ("auto", "cpu", "cuda")),  # type: ignore[arg-type]
    )
    if (study is None) == (resume is None):
        raise SottovoceError("Expected either a STUDY to start or --resume RUN to go on with.")
    with show_progress(quiet=as_json) as on_event:
        if resume is not None:
            run = resume_run(resume, execution, data=_folders(data), on_event=on_event)
        else:
            run = start_run(
                study or Path(),
                execution,
                data=_folders(data),
                out=out,
                twins=twins,
                overwrite=overwrite,
                on_event=on_event,
            )
    if as_json:
        typer.echo((run / "metrics.json").read_text(encoding="utf-8"))
    else:
        _print_run(run)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write report.html of a run again, from the files in its folder."""
    from sottovoce.server.report import write_report

    write_report(run)
    _print_run(run)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that has ended.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Recordings of one person.")],
    enrol: Annotated[
        list[Path],
        typer.Option("--enrol", metavar="FILE", help="A calm clip of the same person; repeatable."),
    ] = [],  # noqa: B006 - Typer copies it
    arm: Annotated[
        str | None, typer.Option(help="Whose model; that of the run's headline by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of which seed; the first by default.")] = None,
    fold: Annotated[int | None, typer.Option(help="Of which fold; the first by default.")] = None,
    answered: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="The share of recordings like the run's that get an emotion."),
    ] = 0.7,
    as_json: AsJson = False,
) -> None:
    """Say what a run's model hears in recordings: an emotion, a set of emotions, or that nobody speaks."""
    from rich.console import Console

    from sottovoce.simulations.predict import as_plain, terminal
    from sottovoce.simulations.predict import predict as say_of

    found = say_of(run, files, enrol=enrol, arm=arm, seed=seed, fold=fold, answered=answered)
    typer.echo(json.dumps(as_plain(found), indent=2)) if as_json else Console().print(terminal(found))
    raise typer.Exit(0 if found.all_read else 2)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that has ended.")],
    data: Data = [],  # noqa: B006 - Typer copies it
    arm: Annotated[str | None, typer.Option(help="Whose models; the run's headline by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of which seed; the first by default.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at once, for features.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run's models listen to: loudness, pauses, pitch, timbre; writes it into the run and its report."""
    from rich.console import Console

    from sottovoce.common.explanation import FILE
    from sottovoce.common.progress import show_progress
    from sottovoce.server.report import write_report
    from sottovoce.server.report.explanation import terminal
    from sottovoce.simulations.explain import explain as explained

    with show_progress(quiet=as_json) as on_event:
        n_workers = workers or len(os.sched_getaffinity(0))
        found = explained(run, data=_folders(data), arm=arm, seed=seed, workers=n_workers, on_event=on_event)
    report_file = write_report(run)
    if as_json:
        typer.echo((run / FILE).read_text(encoding="utf-8"))
    else:
        Console().print(terminal(found, report_file))


@app.command()
def audit(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_LEDGER", help="A run folder, or a ledger's; a STUDY if --empirical."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write; into that folder by default, runs/NAME-audit if --empirical."),
    ] = None,
    public_key: Annotated[
        str | None, typer.Option(metavar="HEX", help="The site's first key, as it reached you otherwise.")
    ] = None,
    seen: Annotated[
        list[Path], typer.Option(metavar="FILE", help="A checkpoint that somebody else kept; repeatable.")
    ] = [],  # noqa: B006 - Typer copies it
    empirical: Annotated[
        bool,
        typer.Option("--empirical", help="Try a STUDY out: canary patients, and attacks on public voices."),
    ] = False,
    canaries: Annotated[int, typer.Option(min=2, help="With --empirical: how many canary patients.")] = 1000,
    attacks: Annotated[bool, typer.Option(help="With --empirical: also the attacks on voices.")] = True,
    data: Data = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Judge a ledger or a run for a compliance officer, or try a study out. Exit 1 where a check fails."""
    from rich.console import Console

    if empirical:
        _audit_empirically(path, out, _folders(data), canaries, attacks, as_json)
    if data:
        raise SottovoceError(
            "--data: expected it with --empirical only; a ledger's audit reads no recordings."
        )
    from sottovoce.server.audit import terminal, write_audit

    written = write_audit(path, out=out, public_key=public_key, seen=seen)
    typer.echo(written.document, nl=False) if as_json else Console().print(terminal(written))
    raise typer.Exit(0 if written.ok else 1)


def _audit_empirically(
    study: Path, out: Path | None, data: dict[str, Path], n_canaries: int, attacks: bool, as_json: bool
) -> NoReturn:
    from rich.console import Console

    from sottovoce.common.progress import show_progress
    from sottovoce.simulations.audit import terminal, write_empirical_audit

    with show_progress(quiet=as_json) as on_event:
        written = write_empirical_audit(
            study, out=out, data=data, n_canaries=n_canaries, attacks=attacks, on_event=on_event
        )
    typer.echo(written.text, nl=False) if as_json else Console().print(terminal(written))
    raise typer.Exit(0 if written.ok else 1)


@app.command()
def features(
    study: StudyFile,
    data: Data = [],  # noqa: B006 - Typer copies it
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compute a study's features into the cache, and say what came of it."""
    from sottovoce.common.progress import show_progress
    from sottovoce.common.study import load
    from sottovoce.simulations.prepare import describe_features, prepare

    loaded = load(study)
    with show_progress(quiet=as_json) as on_event:
        found = prepare(
            loaded, _folders(data), workers=workers or len(os.sched_getaffinity(0)), on_event=on_event
        )
    described = describe_features(loaded, found.prepared)
    _print_table("features", described) if not as_json else typer.echo(json.dumps(described, indent=2))


@study_app.command("new")
def study_new(
    path: StudyFile,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Fit the study to this corpus.")
    ] = None,
    adapter: Annotated[str, typer.Option(help="How to read the corpus; recognised by default.")] = "auto",
    patients: Annotated[
        int | None,
        typer.Option(min=2, max=1_000_000, help="A private study of at most so many patients a hospital."),
    ] = None,
    epsilon: Annotated[float, typer.Option(min=0.01, max=100, help="What it may cost each patient.")] = 3.0,
    mode: Annotated[
        str, typer.Option(help="With --patients: local, or distributed (noise in shares, secure sums).")
    ] = "local",
    sites: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="How many hospitals; as fits the corpus by default.")
    ] = None,
) -> None:
    """Write a commented study file: for the embedded corpus, or fitted to a folder of recordings."""
    from sottovoce.common.corpus import scan
    from sottovoce.simulations.study_new import Privacy, study_text, write_study
    from sottovoce.simulations.study_shape import EMBEDDED, shape_of, with_sites

    shape = EMBEDDED if data is None else shape_of(scan(data, name="corpus", adapter=adapter))
    shape = with_sites(shape, sites)
    chosen = _choice("--mode", mode, ("local", "distributed"))
    if patients is None and chosen == "distributed":
        raise SottovoceError(
            "--mode: expected it with --patients, the largest number that a hospital can have."
        )
    privacy = None if patients is None else Privacy(n_patients=patients, epsilon=epsilon, mode=chosen)  # type: ignore[arg-type]
    write_study(path, study_text(path.stem, shape, privacy))
    for remark in shape.remarks:
        typer.echo(remark)
    folder = "" if data is None else f" --data {shape.corpus}={data}"
    typer.echo(f"Wrote {path}. Run it with: sottovoce simulate {path}{folder}")


@study_app.command("check")
def study_check(study: StudyFile, as_json: AsJson = False) -> None:
    """Say everything that is wrong with a study file; exit 0 if nothing is."""
    from sottovoce.common.errors import StudyError
    from sottovoce.common.model_size import size_problems
    from sottovoce.common.privacy.of_study import stamp
    from sottovoce.common.study import load

    try:
        loaded = load(study)
        if problems := size_problems(loaded):
            raise StudyError(problems)
    except StudyError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "problems": error.problems}, indent=2))
            raise typer.Exit(2) from None
        raise
    said = stamp(loaded)
    if as_json:
        described = {"ok": True, "name": loaded.name, "digest": loaded.digest(), "privacy": said}
        typer.echo(json.dumps(described, indent=2))
    else:
        typer.echo(f"{study}: no problems. {said if loaded.privacy.mode != 'none' else _NOT_PRIVATE}")


@study_app.command("digest")
def study_digest(study: StudyFile) -> None:
    """Print the digest that a hospital approves."""
    from sottovoce.common.study import load

    typer.echo(load(study).digest())


study_app.command("roster")(roster)
study_app.command("approve")(approve)


@privacy_app.command("plan")
def privacy_plan(
    study: StudyFile,
    target_epsilon: Annotated[
        float | None, typer.Option(min=0.001, help="The noise for this epsilon, instead of 1, 3 and 8.")
    ] = None,
    cap: Annotated[
        float | None, typer.Option(min=0.001, help="How many rounds fit under this epsilon.")
    ] = None,
    spent: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A ledger: how many rounds its domain has left.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Which domain, where the ledger has several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a study costs its patients, and what else could be had, before anything runs."""
    from sottovoce.client.planning import left_for, room_of
    from sottovoce.common.privacy.of_study import tables
    from sottovoce.common.privacy.planning import fresh_room
    from sottovoce.common.privacy.terminal import plan_lines
    from sottovoce.common.privacy_specs import NoPrivacy
    from sottovoce.common.progress import Step, show_progress
    from sottovoce.common.study import load
    from sottovoce.common.terminal import print_json, print_lines

    loaded = load(study)
    spec = loaded.privacy
    if isinstance(spec, NoPrivacy):
        typer.echo(json.dumps({"private": False}) if as_json else _NOT_PRIVATE)
        return
    room = room_of(spent, domain, cap) if spent else fresh_room(spec, cap) if cap else None
    found: dict[str, Any] = {}
    with show_progress(quiet=as_json) as on_event:
        on_event(Step(stage="plan", done=0, total=7))
        for name, table in tables(loaded, target_epsilon=target_epsilon):
            found[name] = table
            on_event(Step(stage="plan", done=len(found), total=7, detail=name))
        if room is not None:
            found["rounds_left"] = left_for(loaded, spec, room, in_ledger=spent is not None)
        on_event(Step(stage="plan", done=7, total=7))
    if as_json:
        print_json({"private": not spec.seeded_noise, **found})
    else:
        print_lines(line for name, table in found.items() for line in plan_lines(name, table))


@corpus_app.command("scan")
def corpus_scan(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of recordings, or a manifest.")],
    adapter: Annotated[str, typer.Option(help="How to read it; recognised by default.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Recognise a corpus; count utterances, speakers, labels, groups; list everything that is wrong."""
    from sottovoce.common.corpus import describe, scan

    described = describe(scan(folder, name=folder.resolve().name, adapter=adapter))
    _print_table("corpus", described) if not as_json else typer.echo(json.dumps(described, indent=2))


@corpus_app.command("synthesize")
def corpus_synthesize(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write the corpus.")],
    speakers: Annotated[int, typer.Option(help="Number of speakers, 12 to 10,000.")] = 24,
    per_emotion: Annotated[int, typer.Option(help="Utterances of each emotion by each speaker.")] = 4,
    seed: Annotated[int, typer.Option(help="Another seed, other speakers.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at once.")] = None,
) -> None:
    """Make the embedded corpus: real speech synthesis, many voices, acted emotions, several hospitals."""
    from sottovoce.common.config import build
    from sottovoce.common.errors import StudyError
    from sottovoce.common.progress import show_progress
    from sottovoce.common.study import Synthetic
    from sottovoce.simulations.prepare import synthesize_into

    problems: list[str] = []
    table = {"n_speakers": speakers, "utterances_per_emotion": per_emotion, "seed": seed}
    spec = build(Synthetic, table, "synthetic", problems)
    if spec is None:
        raise StudyError(problems)
    with show_progress(quiet=False) as on_event:
        synthesize_into(spec, out, workers=workers or len(os.sched_getaffinity(0)), on_event=on_event)
    typer.echo(f"Wrote {out}. Look at it with: sottovoce corpus scan {out}")


_NOT_PRIVATE = "NOT PRIVATE: privacy.mode is 'none', for research only."


def main() -> None:
    """Runs the command line; turns our own errors into one message and exit status 2."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one thread a worker
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # nothing leaves this machine unasked
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    try:
        app()
    except SottovoceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted; go on later with: sottovoce simulate --resume RUN", err=True)
        sys.exit(130)


def _choice(option: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise SottovoceError(f"{option}: expected one of {', '.join(choices)}; came {value!r}.")
    return value


def _folders(data: Sequence[str]) -> dict[str, Path]:
    """Reads NAME=DIR pairs; a bare DIR is filed under the empty name (the study's only corpus)."""
    folders: dict[str, Path] = {}
    for entry in data:
        name, separator, folder = entry.partition("=")
        if not separator or "/" in name:
            name, folder = "", entry
        if name in folders:
            raise SottovoceError(f"--data: {name or 'a folder'} is given twice; expected each corpus once.")
        folders[name] = Path(folder)
    return folders


def _print_run(run: Path) -> None:
    from rich.console import Console

    from sottovoce.server.report import terminal

    Console().print(terminal(run))


def _print_table(title: str, described: dict[str, object]) -> None:
    from rich.console import Console

    from sottovoce.common.progress import tables

    for table in tables(title, described):
        Console().print(table)
