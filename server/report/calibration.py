"""Drawing and words of the report's section on how sure a model is, and how right."""

from markupsafe import Markup

from sottovoce.common.summary import Arm, Calibration
from sottovoce.server.report import draw, text


def reliability(arm: Arm, css: str) -> Markup:
    """Draws accuracy over confidence before and after the temperature; nothing where nobody could be calibrated on."""
    found = arm.calibration
    if found is None:
        return Markup("")
    series = (
        ("as the model said it", "plain", [(one.confidence, one.accuracy) for one in found.bins_before]),
        ("at its temperature", css, [(one.confidence, one.accuracy) for one in found.bins]),
    )
    return draw.diagonal(
        series,
        title="Confidence and accuracy",
        description=(
            f"Mean distance from the diagonal: {text.points(found.error_before.value)} points as the model said it, "
            f"{text.points(found.error.value)} at its temperature."
        ),
        x_label="how sure the model is, %",
        y_label="right, %",
    )


def temperatures(arm: Arm) -> str:
    """Returns the range of an arm's temperatures, and what it means where all mean the same."""
    if arm.calibration is None:
        return ""
    values = [one.temperature for one in arm.calibration.temperatures]
    span = f"{min(values):.2f} to {max(values):.2f}"
    if min(values) > 1.0:
        return f"{span} (the model was too sure)"
    return f"{span} (the model was not sure enough)" if max(values) < 1.0 else span


def line(found: Calibration) -> str:
    """Returns the calibration of an arm in one sentence, for a terminal."""
    share = next(one for one in found.coverages if one.coverage == 0.7)
    sets = next(one for one in found.sets if one.units == "speakers")
    return (
        f"Calibration error {text.points(found.error.value)} points (95 % interval {_interval(found)}; "
        f"{text.points(found.error_before.value)} before the temperature); of the surest 70 %, "
        f"{text.percent(share.accuracy.value)} are right; sets hold the right emotion in "
        f"{text.percent(sets.coverage.value)}, with {sets.mean_size:.1f} emotions on average."
    )


def _interval(found: Calibration) -> str:
    error = found.error
    if error.low is None or error.high is None:
        return "none"
    return f"{text.points(error.low)} to {text.points(error.high)}"
