"""Who speaks what where: sites, speakers and recordings of an embedded corpus, drawn before any sound.

Guarantees:
  - The plan is a function of the specification (its seed included) and the parameters.
  - Every site has a speaker, every speaker at least one recording, and no emotion is missing by chance from
    more than a few speakers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sottovoce.common.errors import CorpusError
from sottovoce.common.streams import stream
from sottovoce.common.study import Synthetic
from sottovoce.simulations.voices.acting import Sex, Voice, draw_voice
from sottovoce.simulations.voices.parameters import PARAMETERS, Parameters
from sottovoce.simulations.voices.rooms import Channel, draw_channel

AGE_BANDS = ((18, "18-34"), (35, "35-54"), (55, "55-80"))  # from this age on; the corpus states the band


@dataclass(frozen=True, kw_only=True)
class Site:
    """One site: its sound, whom it sees, and how often each emotion is recorded there (1 is the mean)."""

    name: str
    channel: Channel
    language: str
    female_share: float
    emotion_weights: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """One speaker at one site, with the number of recordings of each emotion."""

    voice: Voice
    site: Site
    counts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording to make. `path` is relative to the corpus."""

    path: str
    speaker: Speaker
    emotion: str
    take: int
    text: str


def check(spec: Synthetic, parameters: Parameters = PARAMETERS) -> None:
    """Refuses a specification that cannot be spoken. Raises: CorpusError, with every problem in one line."""
    problems = []
    if not 12 <= spec.n_speakers <= 10_000:
        problems.append(f"n_speakers={spec.n_speakers} in [12, 10000]")
    if not 1 <= spec.n_sites <= spec.n_speakers:
        problems.append(f"n_sites={spec.n_sites} in [1, n_speakers={spec.n_speakers}]")
    if not 1 <= spec.utterances_per_emotion <= 100:
        problems.append(f"utterances_per_emotion={spec.utterances_per_emotion} in [1, 100]")
    for name in ("label_skew", "sex_skew"):
        if not 0 <= getattr(spec, name) <= 1:
            problems.append(f"{name}={getattr(spec, name)} in [0, 1]")
    unknown = [emotion for emotion in spec.emotions if emotion not in parameters.prototypes]
    if unknown or len(spec.emotions) < 2 or len(set(spec.emotions)) < len(spec.emotions):
        known = ", ".join(parameters.prototypes)
        problems.append(f"emotions={list(spec.emotions)} at least two different of {known}")
    if problems:
        raise CorpusError(f"Expected of the embedded corpus: {'; '.join(problems)}.")


def speakers(spec: Synthetic, parameters: Parameters = PARAMETERS) -> Iterator[Speaker]:
    """Draws the speakers in order, in equal blocks over the sites."""
    for site_index in range(spec.n_sites):
        first = site_index * spec.n_speakers // spec.n_sites
        beyond = (site_index + 1) * spec.n_speakers // spec.n_sites
        site = _site(spec, site_index, parameters)
        sexes = _sexes(spec, site, beyond - first)
        for index, sex in zip(range(first, beyond), sexes, strict=True):
            yield _speaker(spec, site, f"s{index + 1:05d}", sex, parameters)


def recordings(speaker: Speaker, seed: int, parameters: Parameters = PARAMETERS) -> Iterator[Recording]:
    """Draws a speaker's recordings, in order of emotion and take."""
    voice = speaker.voice
    sentences = parameters.sentences[voice.language]
    for emotion, count in speaker.counts.items():
        texts = stream(seed, "voices/texts", voice.name, emotion).integers(len(sentences), size=count)
        for take in range(count):
            path = f"{speaker.site.name}/{voice.name}/{emotion}-{take + 1:03d}.flac"
            text = sentences[int(texts[take])]
            yield Recording(path=path, speaker=speaker, emotion=emotion, take=take, text=text)


def age_band(years: int) -> str:
    """
    >>> age_band(40)
    '35-54'
    """
    return [band for first, band in AGE_BANDS if years >= first][-1]


def _site(spec: Synthetic, index: int, parameters: Parameters) -> Site:
    name = f"site-{index + 1:0{len(str(spec.n_sites))}d}"
    draws = stream(spec.seed, "voices/site", name)
    languages = tuple(parameters.sentences)
    skew = spec.label_skew * parameters.sites.label_skew_log_weight
    weights = 2.0 ** (skew * draws.standard_normal(len(spec.emotions)))
    weights /= weights.mean()
    return Site(
        name=name,
        channel=draw_channel(spec.seed, name, parameters),
        language=languages[index % len(languages)],
        female_share=0.5 + spec.sex_skew * float(draws.uniform(-0.5, 0.5)),
        emotion_weights=dict(zip(spec.emotions, map(float, weights), strict=True)),
    )


def _sexes(spec: Synthetic, site: Site, n: int) -> list[Sex]:
    draws = stream(spec.seed, "voices/sexes", site.name)
    n_female = int(n * site.female_share + draws.random())
    order = draws.permutation(n)
    return ["female" if place < n_female else "male" for place in order]


def _speaker(spec: Synthetic, site: Site, name: str, sex: Sex, parameters: Parameters) -> Speaker:
    draws = stream(spec.seed, "voices/speaker", name)
    languages = tuple(parameters.sentences)
    at_home = draws.random() < parameters.sites.home_language_share
    language = site.language if at_home else languages[int(draws.integers(len(languages)))]
    youngest, oldest = parameters.speakers.age_years
    age = int(draws.integers(youngest, oldest + 1))
    means = [spec.utterances_per_emotion * site.emotion_weights[emotion] for emotion in spec.emotions]
    # Rounded up or down by chance, so that the mean holds; then at least one, but for a rare gap.
    rounded = [max(1, int(mean + draw)) for mean, draw in zip(means, draws.random(len(means)), strict=True)]
    gaps = draws.random(len(means)) < parameters.sites.emotion_missing_prob
    gaps[0] = False
    counts = [0 if gap else count for gap, count in zip(gaps, rounded, strict=True)]
    return Speaker(
        voice=draw_voice(spec.seed, name, language=language, sex=sex, age=age, parameters=parameters),
        site=site,
        counts=dict(zip(spec.emotions, counts, strict=True)),
    )
