"""The one vocabulary of emotions, and how each corpus's own labels map to it, with the losses stated.

Guarantees:
  - Every map ends in `EMOTIONS`; a label that no map knows is never guessed.
  - What a map loses (a nuance, a whole label) is written beside the label, so that a report can say it.

>>> CORPUS_LABELS["tess"].meaning("ps")
Meaning(emotion='surprised', loss='pleasant surprise: that it was pleasant is lost')
>>> CORPUS_LABELS["iemocap"].meaning("xxx")
Meaning(emotion=None, loss='the raters did not agree')
>>> WORDS.meaning("Anger").emotion
'angry'
>>> WORDS.meaning("wistful") is None
True
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

EMOTIONS = (
    "neutral",
    "calm",
    "happy",
    "sad",
    "angry",
    "fearful",
    "disgust",
    "surprised",
    "boredom",
    "excited",
    "frustrated",
    "contempt",
    "other",
)


@dataclass(frozen=True)
class Meaning:
    """What a corpus's label becomes: an emotion, or None for a label that is left out; and what is lost."""

    emotion: str | None
    loss: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """A corpus's labels, by their lower-case spelling."""

    emotions: Mapping[str, str]
    losses: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def meaning(self, label: str) -> Meaning | None:
        """Returns what `label` becomes, whatever its case; None for a label the corpus does not publish."""
        spelling = " ".join(label.lower().replace("_", " ").split())
        if spelling in self.left_out:
            return Meaning(None, self.left_out[spelling])
        emotion = self.emotions.get(spelling)
        return None if emotion is None else Meaning(emotion, self.losses.get(spelling))


_SPELLINGS = {
    "neutral": "neutral neutrality neu",
    "calm": "calm calmness",
    "happy": "happy happiness joy joyful hap",
    "sad": "sad sadness",
    "angry": "angry anger ang",
    "fearful": "fearful fear afraid scared fea",
    "disgust": "disgust disgusted dis",
    "surprised": "surprised surprise sur",
    "boredom": "boredom bored boredem",  # "boredem": so spelt in EmoBox's copy of EMO-DB
    "excited": "excited excitement exc",
    "frustrated": "frustrated frustration fru",
    "contempt": "contempt contemptuous",
    "other": "other oth",
}
_WORDS = {word: emotion for emotion, words in _SPELLINGS.items() for word in words.split()}
_PLEASANT = "pleasant surprise: that it was pleasant is lost"
_PLEASANT_SPELLINGS = ("ps", "pleasant surprise", "pleasant surprised")

WORDS = LabelMap(
    emotions=_WORDS | dict.fromkeys(_PLEASANT_SPELLINGS, "surprised"),
    losses=dict.fromkeys(_PLEASANT_SPELLINGS, _PLEASANT),
    left_out={"xxx": "the raters did not agree"},
)
"""English words and the usual three letters: for manifests and whatever has no codes of its own."""

CORPUS_LABELS: Mapping[str, LabelMap] = {
    "ravdess": LabelMap(
        emotions={
            "01": "neutral",
            "02": "calm",
            "03": "happy",
            "04": "sad",
            "05": "angry",
            "06": "fearful",
            "07": "disgust",
            "08": "surprised",
        }
    ),
    "crema-d": LabelMap(
        emotions={
            "neu": "neutral",
            "hap": "happy",
            "sad": "sad",
            "ang": "angry",
            "fea": "fearful",
            "dis": "disgust",
        }
    ),
    "emo-db": LabelMap(
        emotions={
            "w": "angry",
            "l": "boredom",
            "e": "disgust",
            "a": "fearful",
            "f": "happy",
            "t": "sad",
            "n": "neutral",
        },
        losses={"a": "anxiety or fear: the corpus does not tell them apart"},
    ),
    "tess": LabelMap(
        emotions={
            "angry": "angry",
            "disgust": "disgust",
            "fear": "fearful",
            "happy": "happy",
            "neutral": "neutral",
            "ps": "surprised",
            "sad": "sad",
        },
        losses={"ps": _PLEASANT},
    ),
    "savee": LabelMap(
        emotions={
            "a": "angry",
            "d": "disgust",
            "f": "fearful",
            "h": "happy",
            "n": "neutral",
            "sa": "sad",
            "su": "surprised",
        }
    ),
    "subesco": LabelMap(
        emotions={
            "angry": "angry",
            "disgust": "disgust",
            "fear": "fearful",
            "happy": "happy",
            "neutral": "neutral",
            "sad": "sad",
            "surprise": "surprised",
        }
    ),
    "urdu": LabelMap(emotions={"a": "angry", "h": "happy", "n": "neutral", "s": "sad"}),
    "iemocap": LabelMap(
        emotions={
            "neu": "neutral",
            "hap": "happy",
            "sad": "sad",
            "ang": "angry",
            "fea": "fearful",
            "dis": "disgust",
            "sur": "surprised",
            "exc": "excited",
            "fru": "frustrated",
            "oth": "other",
        },
        left_out={"xxx": "the raters did not agree"},
    ),
    "meld": LabelMap(
        emotions={
            "neutral": "neutral",
            "joy": "happy",
            "sadness": "sad",
            "anger": "angry",
            "fear": "fearful",
            "disgust": "disgust",
            "surprise": "surprised",
        },
        losses={"surprise": "pleasant and unpleasant surprise are one label"},
    ),
}
"""The codes each corpus publishes, by adapter."""
