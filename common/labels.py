"""The one vocabulary of emotions, and how each corpus's own labels map to it, with the losses stated."""

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
