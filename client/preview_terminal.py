"""A preview, for a person at a terminal: what comes, what goes, what it costs, who can learn what."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from sottovoce.client.preview import Point, Preview, Release
from sottovoce.client.traffic import FROM, TO, Field, MessageKind
from sottovoce.common.privacy_specs import NOT_PRIVATE
from sottovoce.common.terminal import Row, facts, table


def preview_lines(shown: Preview, *, at_rest: str = "") -> Iterator[RenderableType]:
    """Yields the preview, for `print_lines`; `at_rest` says how the features lie on this hospital's disk."""
    style = "bold red" if NOT_PRIVATE in shown.stamp else "bold"
    yield Text(f"{shown.study} at {shown.site}: {shown.stamp}", style=style)
    yield facts(_facts(shown, at_rest))
    yield from _messages(shown)
    yield table("what is released, computed from recordings", map(_release, shown.releases))
    if shown.epsilon:
        yield table("given away by then", map(_point, shown.epsilon))
    yield table("who can learn what", ({"who": who, "what": what} for who, what in shown.learned))
    yield table("not covered by any figure", ({"": f"- {line}"} for line in shown.not_covered))
    if shown.refusals is not None:
        yield from _refusals(shown.refusals)
    yield Text("\nFor the ethics board", style="bold")
    yield Text(shown.paragraph)


def _facts(shown: Preview, at_rest: str) -> Row:
    reference = f" ({shown.purpose_reference})" if shown.purpose_reference else ""
    model, federation = shown.model, shown.federation
    said = {
        "digest": shown.digest,
        "purpose": f"{shown.purpose}{reference}",
        "model": f"{model['kind']}, {model['parameters']:,} numbers, {_size(model['bytes'])}",
        "classes": ", ".join(model["classes"]),
        **({"starts from": "\n".join(shown.starts_from)} if shown.starts_from else {}),
        "hospitals": _hospitals(shown),
        "rounds": f"{federation['rounds']}, evaluated {federation['evaluations']} times; in a round "
        f"{federation['in_a_round']} hospitals are asked and {federation['needed_in_a_round']} must answer within "
        f"{federation['deadline_seconds']:g} s",
        "code": f"sottovoce {shown.code['version']}, SHA-256 {shown.code['sha256']}",
    }
    if shown.standing is not None:
        one = shown.standing
        said["budget"] = (
            f"domain {one.domain} at delta {one.delta:g}: epsilon {one.promised_before:.4f} promised before, "
            f"{one.promised_after:.4f} with this study, of {one.cap:g}"
        )
    if at_rest:
        said["features here"] = at_rest
    return said


def _hospitals(shown: Preview) -> str:
    names = f": {', '.join(shown.hospitals)}" if shown.hospitals else ""
    return f"{shown.federation['hospitals']}{names}"


def _messages(shown: Preview) -> Iterator[RenderableType]:
    for direction, title in ((TO, "what comes to this site"), (FROM, "what leaves this site")):
        mine = [one for one in shown.messages if one.direction == direction]
        yield table(title, map(_message, mine))
        total = sum(one.n * one.n_bytes for one in mine)
        most = sum(one.n_most * one.n_bytes for one in mine)
        yield Text(f"{_size(total)} in a run without failures, at most {_size(most)}", style="dim")
    yield Text(
        "Each travels in an envelope that its sender signed. In the place of an answer this site may send a refusal, "
        "which is one of a few fixed texts.",
        style="dim",
    )


def _message(message: MessageKind) -> Row:
    times = f"{message.n}" if message.n == message.n_most else f"{message.n}, at most {message.n_most}"
    return {
        "message": message.phase,
        "holds": "\n".join(_fields(message.fields)) or "nothing",
        "size": f"{'' if message.exact else 'up to '}{_size(message.n_bytes)}",
        "times": times,
    }


def _fields(fields: Sequence[Field]) -> Iterator[str]:
    arrays = [field for field in fields if field.record == "arrays"]
    if arrays:
        n_bytes = sum(field.n_bytes for field in arrays)
        yield f"arrays: {len(arrays)} of float32, {n_bytes // 4:,} numbers, the whole model"
    for record in dict.fromkeys(field.record for field in fields if field.record != "arrays"):
        yield f"{record}: {', '.join(_field(field) for field in fields if field.record == record)}"


def _field(field: Field) -> str:
    if field.shape is not None:
        return f"{field.name} {field.dtype}{list(field.shape)}"
    return f"{field.name} {field.dtype}{f'[{field.n_bytes:,}]' if field.dtype in ('bytes', 'text') else ''}"


def _release(release: Release) -> Row:
    most = "not counted" if release.n_most is None else f"{release.n_most:,}"
    return {
        "release": f"{release.what}: {release.form}",
        "times": release.n,
        "at most": most,
        "charge": release.charge or "none: nothing is promised",
    }


def _point(point: Point) -> Row:
    return {
        "after": point.after,
        "updates": point.updates,
        "counts": point.counts,
        "epsilon": f"{point.epsilon:.4f}",
    }


def _refusals(found: Sequence[str]) -> Iterator[RenderableType]:
    if not found:
        yield Text("\nThe policy in force allows this study, if one of its approvers signs.", style="bold")
        return
    yield Text("\nTHE POLICY REFUSES THIS STUDY", style="bold red")
    for line in found:
        yield Text(f"- {line}")


def _size(n_bytes: int) -> str:
    if n_bytes < 10_000:
        return f"{n_bytes:,} B"
    return f"{n_bytes / 1000:,.1f} kB" if n_bytes < 10_000_000 else f"{n_bytes / 1e6:,.1f} MB"
