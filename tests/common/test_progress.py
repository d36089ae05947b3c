"""What a person at a terminal sees."""

import io

import pytest
from rich.console import Console

from sottovoce.common.progress import Note, Step, show_progress, silent, tables


def printed(described: dict[str, object]) -> str:
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    for table in tables("corpus", described):
        console.print(table)
    return shown.getvalue()


def test_nested_counts_become_rows_and_empty_lists_say_none() -> None:
    shown = printed(
        {"speakers": 24, "problems": [], "minutes": None, "groups": {"sex": {"female": {"speakers": 12}}}}
    )
    assert "problems" in shown
    assert "none" in shown
    assert "minutes" not in shown
    assert [word for word in ("sex", "female", "12") if word in shown] == ["sex", "female", "12"]


def test_markup_in_a_name_is_shown_and_not_obeyed() -> None:
    assert "[red]x[/red]" in printed({"labels": {"[red]x[/red]": 3}, "rows": [{"[b]": "[bold]y"}]})


def test_without_a_terminal_a_stage_is_few_lines_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress(quiet=False) as on_event:
        for done in range(1, 1001):
            on_event(Step(stage="rounds", done=done, total=1000))
        on_event(Note(text="skipped: [one] file"))
    out, err = capsys.readouterr()
    assert out == ""
    assert 2 <= err.count("rounds") <= 12
    assert "skipped: [one] file" in err


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(quiet=True) as on_event:
        on_event(Note(text="x"))
        assert on_event is silent
    assert capsys.readouterr() == ("", "")
