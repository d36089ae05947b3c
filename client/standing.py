"""Where a hospital stands: what its agent does, which studies lie here and what became of each, in plain rows.

Guarantees:
  - Nothing is locked and nothing is written: it can be asked while training goes on.
  - No number here was computed from a patient's data.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from sottovoce.client.agent_files import is_locked, read_status, stop_of
from sottovoce.client.features_at_rest import at_rest
from sottovoce.client.home import Hospital
from sottovoce.client.offered import OFFER_FILE, digest_of, digests, open_offer
from sottovoce.client.tls_folder import TlsFolder
from sottovoce.common.errors import DeploymentError, SottovoceError
from sottovoce.common.ledger.reading import read_ledger, readable_entries
from sottovoce.common.ledger.state import State, fold
from sottovoce.common.pretrained import looking_in
from sottovoce.common.study import load
from sottovoce.common.terminal import facts, table

if TYPE_CHECKING:
    from sottovoce.client.preview import Preview


def standing(hospital: Hospital) -> dict[str, Any]:
    """Returns it as plain data, for JSON."""
    try:
        coordinator = hospital.coordinator
        whom: dict[str, Any] | None = {
            "name": coordinator.name, "fleet": coordinator.fleet, "consortium": coordinator.consortium,
        }  # fmt: skip
    except DeploymentError:
        whom = None
    pair = TlsFolder(hospital.tls).current()
    return {
        "site": hospital.site,
        "coordinator": whom,
        "certificate_ends": None if pair is None else pair.peer.not_after,
        "running": is_locked(hospital.run),
        "stopped": stop_of(hospital.run) is not None,
        "agent": dict(read_status(hospital.run)),
        "studies": study_rows(hospital),
    }


def study_rows(hospital: Hospital) -> list[dict[str, Any]]:
    """Returns a row for each study that lies here."""
    state = state_of(hospital)
    return [_study_row(hospital, digest, state) for digest in digests(hospital)]


def has_approved(hospital: Hospital, digest: str) -> bool:
    """Says whether an approval of a study stands in this hospital's ledger."""
    state = state_of(hospital)
    grants = () if state is None else state.grants.values()
    return any(one.approval.study == digest and not one.closed for one in grants)


def state_of(hospital: Hospital) -> State | None:
    """Returns what the ledger says, read beside whoever writes it; None where there is none."""
    if not hospital.ledger.is_dir():
        return None
    entries, _ = readable_entries(read_ledger(hospital.ledger).ledger)
    return fold(entries)


def previewed(hospital: Hospital, said: str, domain: str | None) -> "Preview":
    """Returns the preview of an offered study, with this hospital's policy and budget; or of any study file.

    Raises:
        DeploymentError, StudyError, LedgerError, PrivacyError: each says what to mend.
    """
    from sottovoce.client.preview import preview

    file = Path(said)
    study = load(file) if file.is_file() else load(hospital.study_file(digest_of(hospital, said)))
    kept = hospital.study_folder(study.digest()) / OFFER_FILE
    roster = open_offer(hospital, study.digest()).roster if kept.exists() else None
    state = state_of(hospital)
    with looking_in(hospital.weights):
        return preview(
            study,
            site=hospital.site,
            policy=None if state is None else state.policy,
            roster=roster,
            state=state,
            domain=domain or (None if state is None else _only(state.domains)),
        )


def at_rest_in_words(hospital: Hospital, digest: str) -> str:
    """Returns how features lie, or would lie, on this hospital's disk."""
    match at_rest(hospital, digest):
        case "sealed":
            return "sealed on the disk under this hospital's key"
        case "plain":
            return "UNENCRYPTED on the disk (hospital.toml: features_key)"
        case "missing" if hospital.settings.features_key is None:
            return "not prepared yet; they will lie UNENCRYPTED on the disk (hospital.toml: features_key)"
        case _:
            return "not prepared yet; they will be sealed on the disk"


def standing_lines(plain: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yields it for a person at a terminal."""
    yield Text(f"{plain['site']}: {_agent(plain)}", style="bold")
    yield facts(_facts(plain))
    if plain["studies"]:
        yield table("studies", ({**row, "digest": row["digest"][:16]} for row in plain["studies"]))


def _agent(plain: Mapping[str, Any]) -> str:
    if plain["stopped"]:
        return "STOPPED by its operator"
    if not plain["running"]:
        return "the agent is not running"
    agent = plain["agent"]
    return "connected" if agent.get("connected") else f"not connected: {agent.get('error') or 'not yet'}"


def _facts(plain: Mapping[str, Any]) -> dict[str, str]:
    whom, agent = plain["coordinator"], plain["agent"]
    said = {"coordinator": "none: this hospital has not enrolled" if whom is None else _whom(whom)}
    if plain["certificate_ends"] is not None:
        ends = datetime.fromtimestamp(plain["certificate_ends"], UTC)
        said["certificate"] = f"until {ends:%Y-%m-%d %H:%M} UTC; renewed by the agent"
    if last := agent.get("last"):
        said["last message"] = (
            f"{last.get('when')}: {last.get('round')}, {last.get('phase')}, {last.get('outcome')} {last.get('why')}"
        )
    if counts := agent.get("counts"):
        said["counts"] = ", ".join(f"{name.replace('_', ' ')} {n:g}" for name, n in counts.items())
    for name, chore in (agent.get("chores") or {}).items():
        if chore.get("error"):
            said[name] = f"FAILED: {chore['error']}"
    return said


def _whom(whom: Mapping[str, str]) -> str:
    return f"{whom['name']} at {whom['fleet']} and {whom['consortium']}"


def _study_row(hospital: Hospital, digest: str, state: State | None) -> dict[str, Any]:
    try:
        study = load(hospital.study_file(digest))
        name, mode = study.name, str(study.privacy.mode)
    except SottovoceError:
        name, mode = "cannot be read", ""
    grants = [] if state is None else [one for one in state.grants.values() if one.approval.study == digest]
    is_open = any(not one.closed for one in grants)
    listed = state is not None and state.policy is not None and digest in state.policy.studies
    return {
        "digest": digest,
        "name": name,
        "mode": mode,
        "approved": "yes" if is_open and listed else "no" if not grants else "not any more",
        "features": at_rest(hospital, digest),
    }


def _only(names: Mapping[str, object]) -> str | None:
    return next(iter(names)) if len(names) == 1 else None
