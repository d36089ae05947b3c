"""What a study takes from a public corpus: figures, a reduction of features, weights. Public constants, no arithmetic.

All three come from one file, which `sottovoce server pretrain` makes and signs (`common/initial.py`). A study names it
by its SHA-256, and whose signature it must bear. How it is applied is in `common/transfer.py`.

| the study says                               | what it means                                                       |
|----------------------------------------------|---------------------------------------------------------------------|
| `normalisation.from_initial = SHA256`        | public mean and deviation of each stream, instead of numbers in TOML |
| `streams.reduction = { sha256, columns }`    | a public linear map of the stream, after normalisation               |
| `[transfer] kind = "model"`                  | the federation starts from the file's weights                        |
| `[transfer] kind = "feature"`                | so it does, and trains the head alone                                |
| `[transfer] kind = "parameter"`              | so it does; lower layers move slowly, all are pulled to the start    |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from sottovoce.common.config import Interval
from sottovoce.common.privacy_specs import DistributedPrivacy, LocalPrivacy

if TYPE_CHECKING:
    from sottovoce.common.study import Study

Sha256 = Annotated[str, Interval(64, 64)]
PublicKey = Annotated[str, Interval(64, 64)]


@dataclass(frozen=True, kw_only=True)
class ModelTransfer:
    """Weights of a public corpus to start from; all of them are trained on. Private noise goes to all of them."""

    kind: Literal["model"]
    initial_sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class FeatureTransfer:
    """The body of a public corpus as it is, and a head that is trained: few numbers, little private noise.

    With `head = "fresh"` the head starts from the study's seed; else from the file's, if that tells the same classes.
    """

    kind: Literal["feature"]
    initial_sha256: Sha256
    head: Literal["initial", "fresh"] = "initial"


@dataclass(frozen=True, kw_only=True)
class ParameterTransfer:
    """Weights of a public corpus that training leaves only as far as private data insist.

    A layer d layers below the head learns at `layer_rate_decay` to the d-th of the rate (Howard and Ruder 2018). `pull`
    is alpha of L2-SP (Li, Grandvalet and Davoine 2018): `pull` * (weight - initial weight) is added to the gradient of
    each weight that came from the file.
    """

    kind: Literal["parameter"]
    initial_sha256: Sha256
    layer_rate_decay: Annotated[float, Interval(0.01, 1.0)] = 0.7
    pull: Annotated[float, Interval(0.0, 100.0)] = 0.01


Transfer = ModelTransfer | FeatureTransfer | ParameterTransfer


def initials_of(study: "Study") -> list[tuple[str, str]]:
    """Returns where the study names an initial file, and by which SHA-256."""
    named = [
        (f"streams.{stream.name}.reduction.sha256", stream.reduction.sha256)
        for stream in study.streams
        if stream.reduction is not None
    ]
    if study.normalisation.from_initial is not None:
        named.append(("normalisation.from_initial", study.normalisation.from_initial))
    if study.transfer is not None:
        named.append(("transfer.initial_sha256", study.transfer.initial_sha256))
    return named


def is_needed_at_sites(study: "Study") -> bool:
    """Says whether sites must have the initial file. Weights to start from come with the first round's message.

    Figures and reductions are applied at the sites, and there a parameter transfer pulls.
    """
    reduced = any(stream.reduction for stream in study.streams)
    pulled = isinstance(study.transfer, ParameterTransfer)
    return reduced or pulled or study.normalisation.from_initial is not None


def problems(study: "Study") -> list[str]:
    """Returns what is wrong between what is taken from a public corpus and the rest of a study."""
    return [*_naming_problems(study), *_figure_problems(study), *_transfer_problems(study)]


def _naming_problems(study: "Study") -> Iterator[str]:
    named = initials_of(study)
    for key, digest in named:
        if not set(digest) <= set("0123456789abcdef"):
            yield f"{key}: expected 64 lower-case hexadecimal digits; came {digest[:20]!r}…"
    if len({digest for _, digest in named}) > 1:
        keys = ", ".join(key for key, _ in named)
        yield f"{keys}: expected one initial file; came several. Weights, figures and reductions belong together."
    if named and study.initial_signed_by is None:
        yield f"initial_signed_by: missing; {named[0][0]} expects the public key that signed the file."
    if not named and study.initial_signed_by is not None:
        yield "initial_signed_by: expected with an initial file; the study names none."


def _figure_problems(study: "Study") -> Iterator[str]:
    spec = study.normalisation
    if spec.from_initial is None:
        return
    if spec.mean or spec.deviation:
        yield "normalisation.from_initial: expected no mean and no deviation beside it; came both."
    if spec.scheme == "utterance":
        yield "normalisation.from_initial: expected another scheme than 'utterance', which has no public figures."


def _transfer_problems(study: "Study") -> Iterator[str]:
    if study.transfer is not None and study.model.kind in ("discriminator", "moments"):
        yield f"transfer: expected a model that classifies; {study.model.kind!r} is one that makes rows."
        return
    match study.transfer:
        case FeatureTransfer():
            yield from (f"transfer: kind 'feature' expects {wanted}." for wanted in _feature_wants(study))
        case ParameterTransfer():
            yield from (f"transfer: kind 'parameter' expects {wanted}." for wanted in _parameter_wants(study))
        case _:
            return


def _feature_wants(study: "Study") -> Iterator[str]:
    if study.model.kind == "linear":
        yield "a model with a body; a linear one is all head"
    if isinstance(study.privacy, LocalPrivacy) and study.privacy.trained != "head":
        yield f"privacy.trained = 'head'; came {study.privacy.trained!r}"
    if isinstance(study.privacy, DistributedPrivacy):
        yield "mode 'none' or 'local': in 'distributed' all of a model is trained"
    if study.federation.compression is not None:
        yield "no federation.compression: what it rounds would move the body"
    if study.federation.personalisation is not None:
        yield "no federation.personalisation: a model of a site's own is trained in all of its parts"


def _parameter_wants(study: "Study") -> Iterator[str]:
    if study.model.kind == "linear":
        yield "a model with layers below its head; a linear one has none. Take 'model'"
    if isinstance(study.privacy, LocalPrivacy) and study.privacy.trained != "all":
        yield f"privacy.trained = 'all'; came {study.privacy.trained!r}"
    if isinstance(study.privacy, DistributedPrivacy):
        yield "mode 'none' or 'local': in 'distributed' the coordinator takes the steps"
    if study.federation.strategy.kind == "scaffold":
        yield "another strategy than 'scaffold', whose control is drawn from steps of one rate"
    if study.federation.personalisation is not None:
        yield "no federation.personalisation: a model of a site's own has one rate and a pull of its own"
