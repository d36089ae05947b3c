"""Claims of tables at a terminal."""

import pytest

from sottovoce.common.terminal import facts, print_lines, table


def test_names_that_others_chose_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2Jb\x07\x9bc\u202ed"
    print_lines([table("models", [{"name": name}]), facts({"name": name})])
    shown = capsys.readouterr().out
    assert shown.count("a?[2Jb??c?d") == 2
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
