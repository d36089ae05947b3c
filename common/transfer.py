"""What a study takes from its initial file, applied: figures and reductions at the site, weights to start from.

    figures, maps = public_figures(study)                # in a hospital, in a simulation: the same
    begun = start(study, widths, seed=0)                 # begun.weights, begun.taken, begun.fresh

The file is found by its SHA-256 (`common/pretrained.py`) and must bear the signature of `initial_signed_by`.

Guarantees:
  - A study that names no initial file is none the wiser: the same figures, the same weights, to the bit.
  - A file of another SHA-256, key, or of features computed in another way is refused, never used in part.
  - Each tensor of the start is the file's, to the bit, or the seed's, to the bit; which one is recorded.
  - A head that was trained to tell other classes is never taken, whatever its shape.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.common import pretrained
from sottovoce.common.config import canonical
from sottovoce.common.corpus import Corpus
from sottovoce.common.errors import CorpusError, WeightsError
from sottovoce.common.initial import Initial, load, verify
from sottovoce.common.model_size import widths_of
from sottovoce.common.model_specs import streams_read
from sottovoce.common.run_files import InitialFacts
from sottovoce.common.study import Normalisation, Study
from sottovoce.common.transfer_specs import FeatureTransfer, initials_of, is_needed_at_sites
from sottovoce.common.weights import Array, from_state_dict

HEAD = "head."


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that a federation starts from; names of the tensors that came from the file, and of the others."""

    weights: Mapping[str, Array]
    taken: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


def initial_of(study: Study) -> Initial | None:
    """Returns the initial file that a study names; None where it names none.

    Raises:
        WeightsError: it is not on this machine, damaged, signed by another key, or does not fit the study.
    """
    named = initials_of(study)
    if not named:
        return None
    found = _found(named[0][1])
    verify(found, study.initial_signed_by or "")
    if problems := misfits(study, found):
        raise WeightsError(
            "\n  ".join(
                [
                    f"The initial file {found.sha256[:16]}… does not fit the study:",
                    *problems,
                    "Make one for this study: `sottovoce server pretrain`.",
                ]
            )
        )
    return found


def public_figures(study: Study) -> tuple[Normalisation, dict[str, npt.NDArray[np.float64]]]:
    """Returns how features are standardised, with all figures, and the public map of each stream that has one.

    A site asks for it before it trains: a file that is missing, and needed there for whatever, is then an error.

    Raises:
        WeightsError: see `initial_of`.
    """
    initial = initial_of(study) if is_needed_at_sites(study) else None
    if initial is None:
        return study.normalisation, {}
    maps = {
        stream.name: initial.reduction[stream.name][:, : stream.reduction.columns]
        for stream in study.streams
        if stream.reduction is not None
    }
    if study.normalisation.from_initial is None:
        return study.normalisation, maps
    names = [stream.name for stream in study.streams]
    figures = replace(
        study.normalisation,
        from_initial=None,
        mean={name: tuple(initial.mean[name].tolist()) for name in names},
        deviation={name: tuple(initial.deviation[name].tolist()) for name in names},
    )
    return figures, maps


def start(study: Study, widths: Mapping[str, int], *, seed: int) -> Start:
    """Returns the weights that a federation of the study starts from, under this seed.

    Raises:
        WeightsError: see `initial_of`; or nothing of the file fits the study's model.
    """
    from sottovoce.common.models import build  # torch takes a second, and figures need none

    weights = from_state_dict(build(study.model, widths, len(study.labels.classes), seed).state_dict())
    found = taken(study, weights)
    return Start(
        weights={name: np.array(found.get(name, weights[name])) for name in weights},
        taken=tuple(found),
        fresh=tuple(name for name in weights if name not in found) if found else (),
    )


def taken(study: Study, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the tensors of the initial file that take the place of a model's own; none without a transfer.

    Raises:
        WeightsError: see `initial_of`; or nothing of the file fits the study's model.
    """
    initial = initial_of(study) if study.transfer else None
    if initial is None:
        return {}
    names = [name for name in weights if _fits(study, initial, name, weights[name])]
    has_body = not all(map(is_head, weights))
    if not initial.weights:
        raise WeightsError(
            f"transfer: expected an initial file with weights to begin with; {initial.sha256[:16]}… was made by "
            "--method statistics and has figures alone. Make one by another, or leave [transfer] out."
        )
    if not [name for name in names if not (has_body and is_head(name))]:
        raise WeightsError(
            f"transfer: expected an initial file with weights of this model; of {initial.sha256[:16]}… none of the "
            f"{len(initial.weights)} tensors fits by name and shape. Pretrain with this [model] and these streams."
        )
    return {name: initial.weights[name] for name in names}


def check_apart(study: Study, corpora: Collection[Corpus]) -> None:
    """Refuses to score speakers by what was learned from them.

    It knows a corpus by its manifest's digest: a part of one under another manifest is not noticed.

    Raises:
        CorpusError: the study's initial file was learned from one of these corpora.
    """
    initial = initial_of(study)
    public = {corpus.manifest_sha256 for corpus in initial.statement.corpora} if initial else set()
    for corpus in corpora:
        if corpus.manifest_digest() in public:
            raise CorpusError(
                f"corpora.{corpus.name}: expected other recordings than the initial file was learned from; these are "
                "the same, and speakers would be scored whom the start has heard. Pretrain on another corpus."
            )


def facts_of(study: Study) -> InitialFacts | None:
    """Returns what a run records of its initial file; None where the study names none.

    Raises:
        WeightsError: see `initial_of` and `taken`.
    """
    initial = initial_of(study)
    if initial is None:
        return None
    begun = start(study, widths_of(study), seed=0)
    statement = initial.statement
    return InitialFacts(
        sha256=initial.sha256,
        signed_by=statement.signed_by,
        public_key=initial.public_key,
        corpora=tuple(
            f"{corpus.name} (manifest {corpus.manifest_sha256[:16]}…, {corpus.n_recordings:,} recordings of "
            f"{corpus.n_speakers:,} speakers)"
            for corpus in statement.corpora
        ),
        method=statement.method,
        figures=tuple(sorted(initial.mean)) if study.normalisation.from_initial else (),
        reductions=tuple(
            f"{stream.name} to {stream.reduction.columns} columns, by {statement.reduction_by}"
            for stream in study.streams
            if stream.reduction
        ),
        taken=begun.taken,
        fresh=begun.fresh,
    )


def in_words(facts: InitialFacts) -> list[str]:
    """Returns what an initial file gives to a study, a sentence each."""
    said = [
        f"initial file {facts.sha256[:16]}…, signed by {facts.signed_by} (key {facts.public_key[:16]}…), "
        f"learned from {', '.join(facts.corpora)} alone"
    ]
    if facts.figures:
        said.append(f"from it, mean and deviation of {', '.join(facts.figures)}")
    said += [f"from it, a public reduction of {line}" for line in facts.reductions]
    if facts.taken:
        rest = f"; {len(facts.fresh)} from the seed: {', '.join(facts.fresh)}" if facts.fresh else ""
        said.append(f"from it, {len(facts.taken)} tensors that weights begin with ({facts.method}){rest}")
    return said


def misfits(study: Study, initial: Initial) -> list[str]:
    """Returns what a study asks for that the file does not have, or has of other features."""
    problems = []
    ours = feature_digests(study)
    for name in _needed(study):
        if initial.statement.features.get(name) != ours[name]:
            problems.append(
                f"streams.{name}: expected figures of the same parts, frames and audio; the file has "
                f"{'those of others' if name in initial.statement.features else 'none'}."
            )
    for stream in study.streams:
        if stream.reduction is not None:
            public_map = initial.reduction.get(stream.name)
            if public_map is None:
                problems.append(
                    f"streams.{stream.name}.reduction: the file has none of this stream (--reduction makes one)."
                )
            elif (n_columns := public_map.shape[1]) < stream.reduction.columns:
                problems.append(
                    f"streams.{stream.name}.reduction.columns: expected at most {n_columns}; "
                    f"came {stream.reduction.columns}."
                )
    return problems


def feature_digests(study: Study) -> dict[str, str]:
    """Returns a digest for each stream of what its numbers are computed by, before normalisation."""
    audio: dict[str, Any] = {
        name: getattr(study.audio, name)
        for name in ("sample_rate_hz", "trim_silence_db", "pre_emphasis", "denoise")
    }
    return {
        stream.name: hashlib.sha256(
            b"sottovoce/stream/1\n"
            + canonical([audio, study.frames, replace(stream, name="-", reduction=None)]).encode()
        ).hexdigest()
        for stream in study.streams
    }


def is_head(name: str) -> bool:
    """Says whether a tensor is a classifier's, by its name."""
    return f".{HEAD}" in f".{name}"


def _needed(study: Study) -> Collection[str]:
    """The streams of which the file must have figures: all, or those that are reduced or that the model reads."""
    if study.normalisation.from_initial is not None:
        return [stream.name for stream in study.streams]
    read = streams_read(study.model) if study.transfer else set()
    return [stream.name for stream in study.streams if stream.reduction or stream.name in read]


def _fits(study: Study, initial: Initial, name: str, weights: Array) -> bool:
    if is_head(name):
        fresh = isinstance(study.transfer, FeatureTransfer) and study.transfer.head == "fresh"
        if fresh or initial.statement.classes != study.labels.classes:
            return False
    return name in initial.weights and initial.weights[name].shape == weights.shape


def _found(sha256: str) -> Initial:
    path = pretrained.find(sha256, what="initial")
    about = path.stat()
    found = _loaded(path, about.st_mtime_ns, about.st_size)
    if found.sha256 != sha256:  # it was changed between the search and the reading
        raise WeightsError(f"{path}: expected the SHA-256 {sha256[:16]}…; came {found.sha256[:16]}….")
    return found


@lru_cache(maxsize=4)
def _loaded(path: Path, _mtime_ns: int, _size: int) -> Initial:
    return load(path)
