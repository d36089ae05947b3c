"""A coordinator and five hospitals on this machine, each a process of its own: `make federation`.

Runs one study over TLS twice, once seeded, held bit for bit against the simulation, and once secret, with secure sums,
whose ledgers are then verified and held against each other. Every step is a command that a user types; what each took
is printed. Nothing is left running, whatever happens.

    python -m sottovoce.simulations.federation [--out DIR] [--keep]
"""

import argparse
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from sottovoce.common.errors import RunError
from sottovoce.common.preparation import cache_folder
from sottovoce.common.processes import Child, end_left_behind, environment
from sottovoce.common.progress import silent
from sottovoce.common.study import Study, load
from sottovoce.simulations.prepare import synthesize_into

SCENARIOS = ("federation-seeded.toml", "federation.toml")
PERSON, REHEARSAL, DOMAIN = "Ada Example", "rehearsal", "intake-2026"
START_SECONDS, RUN_SECONDS = 180.0, 300.0  # under strace, on a busy machine, a start takes half a minute
_POLICY = """\
format = 1
site = "{site}"
version = 1
changed_by = "{person}"
reason = "first policy"
studies = [{studies}]
purposes = ["research"]
modes = [{modes}]
max_epsilon_per_study = 8.0
allow_non_private = true # for the seeded study, which proves that hospitals and simulation end in the same bits
domains = [
  {{ name = "{domain}", n_patients = 30, epsilon_cap = 16.0, delta = 0.02, small_population = true }},
  {{ name = "{rehearsal}", n_patients = 30, epsilon_cap = 16.0, delta = 0.02, small_population = true }},
]
approvers = [{{ name = "{person}", public_key = "{key}" }}]
"""


@dataclass(kw_only=True)
class Federation:
    """Folders and processes of one federation on the loopback interface."""

    root: Path
    sites: tuple[str, ...]
    say: Callable[[str], None] = print
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def server(self) -> Path:
        """The coordinator's folder."""
        return self.root / "coordinator"

    def hospital(self, site: str) -> Path:
        """A hospital's folder."""
        return self.root / site

    def do(self, *arguments: object, expect: int = 0) -> str:
        """Runs one command and returns what it printed. Raises: RunError where it ends otherwise than expected."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "sottovoce", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=RUN_SECONDS,
        )
        shown = " ".join(str(one) for one in arguments).replace(str(self.root), "…")
        self.say(f"{time.monotonic() - began:6.1f} s  sottovoce {shown}")
        if done.returncode != expect:
            said = (done.stdout + done.stderr)[-2000:]
            raise RunError(f"sottovoce {shown}: expected exit {expect}; came {done.returncode}. {said}")
        return done.stdout

    def start(self, name: str, *arguments: object) -> Child:
        """Starts a command that stays."""
        command = [sys.executable, "-m", "sottovoce", *map(str, arguments)]
        self.children[name] = Child.start(name, command, folder=self.root, extra={})
        return self.children[name]

    def kill(self, name: str) -> None:
        """Kills a process as a power cut does."""
        child = self.children.pop(name)
        os.kill(child.process_id, signal.SIGKILL)
        child.stop()  # it is gone; what it started is not

    def stop(self) -> None:
        """Ends every process, also what a coordinator that was killed, or did not end in time, left behind."""
        for child in self.children.values():
            child.stop()
        end_left_behind(self.server / "run" / "superlink.pid")


@contextmanager
def federation(root: Path, sites: Sequence[str], say: Callable[[str], None] = print) -> Iterator[Federation]:
    """Opens an empty federation in `root`, and ends all of its processes with the block."""
    made = Federation(root=root, sites=tuple(sites), say=say)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        yield made
    finally:
        made.stop()


def found(made: Federation, *, hours: float = 720.0) -> None:
    """Makes the coordinator's folder and starts it."""
    fleet, consortium = free_ports(2)
    made.do(
        *("server", "init", made.server, "--name", "example federation", "--host", "localhost"),
        *("--fleet-port", fleet, "--consortium-port", consortium),
    )
    if hours != 720.0:
        settings = made.server / "server.toml"
        settings.write_text(
            settings.read_text().replace("certificate_hours = 720.0", f"certificate_hours = {hours}")
        )
    start_coordinator(made)


def start_coordinator(made: Federation) -> None:
    """Starts the coordinator and waits until it is there."""
    made.start("coordinator.process", "server", "start", made.server)
    wait_for(lambda: _is_up(made), "the coordinator", START_SECONDS)


def enrol(made: Federation, site: str, data: Mapping[str, Path]) -> None:
    """Invites a hospital and lets it enrol."""
    invitation = made.root / f"{site}.invitation"
    made.do("server", "invite", made.server, site, "--out", invitation)
    folders = [part for name, folder in data.items() for part in ("--data", f"{name}={folder}")]
    made.do("client", "init", made.hospital(site), "--site", site, "--invitation", invitation, *folders)


def approve(
    made: Federation, site: str, studies: Mapping[str, str], *, modes: Sequence[str] = ("local",)
) -> None:
    """A hospital's person makes a policy, has features computed, and approves studies, each in a domain."""
    home, keys = made.hospital(site), made.root / f"{site}.person"
    if not keys.exists():
        told = json.loads(made.do("key", "new", keys, "--person", PERSON, "--json"))
        text = _POLICY.format(
            site=site,
            person=PERSON,
            key=told["public_key"],
            domain=DOMAIN,
            rehearsal=REHEARSAL,
            modes=", ".join(f'"{mode}"' for mode in modes),
            studies=", ".join(f'"{digest}"' for digest in studies),
        )
        (made.root / f"{site}.policy.toml").write_text(text)
        made.do("policy", "adopt", made.root / f"{site}.policy.toml", "--ledger", home / "ledger")
    (key,) = keys.glob("signing-*.pem")
    made.do("client", "offers", home)
    for digest, domain in studies.items():
        made.do("client", "prepare", home, digest)
        made.do(
            *("client", "approve", home, digest, "--domain", domain),
            *("--person", PERSON, "--key", key, "--yes"),
        )


def start_hospital(made: Federation, site: str) -> None:
    """Starts a hospital's agent."""
    made.start(f"{site}.process", "client", "start", made.hospital(site))


def split_by_site(corpus: Path, out: Path) -> dict[str, Path]:
    """Gives each site of a corpus with a manifest a folder of its own recordings, under the same relative names."""
    with (corpus / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    places = {}
    for site in sorted({row["site"] for row in rows}):
        mine = [row for row in rows if row["site"] == site]
        place = places[site] = out / site
        for row in mine:
            (place / row["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(corpus / row["path"], place / row["path"])
        with (place / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(mine[0]))
            writer.writeheader()
            writer.writerows(mine)
    return places


def embedded_corpus(study: Study) -> Path:
    """Makes the embedded corpus of a study, or finds it in the cache."""
    from sottovoce.simulations.voices.corpus import corpus_digest

    (spec,) = study.corpora
    if spec.synthetic is None:
        raise RunError("Expected a study of the embedded corpus.")
    place = cache_folder() / "voices" / f"voices-{corpus_digest(spec.synthetic)[:16]}"
    return synthesize_into(spec.synthetic, place, workers=2, on_event=silent)


def free_ports(n: int) -> list[int]:
    """Returns ports of the loopback interface that nobody uses."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def wait_for(there: Callable[[], bool], what: str, seconds: float) -> None:
    """Waits until something is there. Raises: RunError."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise RunError(f"Expected {what} within {seconds:g} s; it is not there.")
        time.sleep(0.1)


def state_of(made: Federation, run: str) -> dict[str, Any]:
    """Returns where a run has come to."""
    found: dict[str, Any] = json.loads((made.server / "runs" / run / "state.json").read_text())
    return found


def _is_up(made: Federation) -> bool:
    status = made.server / "run" / "status.json"
    child = made.children["coordinator.process"]
    if not child.is_alive:
        raise RunError(f"The coordinator ended: {child.last_words()}")
    return status.exists() and status.stat().st_mtime > time.time() - 2


def _simulated(made: Federation, scenario: Path) -> str:
    """Simulates a study and returns the digest of the weights that its federation ends in."""
    out = made.root / "simulated"
    made.do("simulate", scenario, "--out", out, "--overwrite", "--workers", 1)
    cells = json.loads((out / "run.json").read_text())["cells"]
    (digest,) = {cell["weights_sha256"] for cell in cells if cell["arm"] == "federated"}
    return str(digest)


def _verify(made: Federation, run: str) -> None:
    """Verifies every ledger, with what the coordinator saw of it, and holds the record of sums against them."""
    for site in made.sites:
        made.do("ledger", "verify", made.hospital(site) / "ledger")
        made.do("ledger", "recompute", made.hospital(site) / "ledger")
    record = made.server / "runs" / run / "ledgers" / "federation.jsonl"
    ledgers = [part for site in made.sites for part in ("--site", made.hospital(site) / "ledger")]
    made.do("ledger", "federation", record, *ledgers, "--delta", 0.02)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the whole story and prints what was found. Returns 0 where everything held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/federation"))
    parser.add_argument("--keep", action="store_true", help="keep the folders")
    said = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or the processes would outlive this one
    shutil.rmtree(said.out, ignore_errors=True)
    began = time.monotonic()
    scenarios = [Path(str(files("sottovoce.simulations") / "scenarios" / name)) for name in SCENARIOS]
    studies = [load(path) for path in scenarios]
    places = split_by_site(embedded_corpus(studies[0]), said.out / "recordings")
    (corpus,) = studies[0].corpora
    with federation(said.out, list(places)) as made:
        expected = _simulated(made, scenarios[0])
        found(made)
        for site, folder in places.items():
            enrol(made, site, {corpus.name: folder})
        for scenario in scenarios:
            made.do("server", "offer", made.server, scenario)
        for site in places:
            approve(made, site, {studies[0].digest(): REHEARSAL, studies[1].digest(): DOMAIN})
            start_hospital(made, site)
        fold = studies[0].evaluation.only_folds or (0,)
        made.do("server", "run", made.server, scenarios[0], "--fold", fold[0], "--wait", 60)
        came = state_of(made, studies[0].name)["weights_sha256"]
        made.do("server", "run", made.server, scenarios[1], "--wait", 60)
        _verify(made, studies[1].name)
        made.do("server", "status", made.server)
    same = came == expected
    print(
        f"\nseeded: hospitals  {came}\n        simulation {expected}  {'the same bits' if same else 'NOT THE SAME'}"
    )
    print(f"secret: {len(places)} ledgers verified and recomputed, the record of sums agrees with them")
    print(f"{time.monotonic() - began:.0f} s in all; nothing is left running")
    if not said.keep:
        shutil.rmtree(said.out)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
