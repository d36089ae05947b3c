"""Tables into frozen trees: every problem, each with its key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.common.config import Interval, build, canonical


@dataclass(frozen=True, kw_only=True)
class Circle:
    kind: Literal["circle"]
    radius: Annotated[float, Interval(0, low_open=True)]


@dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square"]
    side: int = 1


@dataclass(frozen=True, kw_only=True)
class Drawing:
    title: Annotated[str, Interval(1, 5)]
    shape: Circle | Square
    shapes: tuple[Circle | Square, ...] = ()
    visible: bool = True
    colours: Mapping[str, int] = field(default_factory=dict)
    scale: Annotated[float, Interval(0, 10)] | None = None


GOOD: dict[str, Any] = {"title": "a", "shape": {"kind": "circle", "radius": 1}}


def problems_of(table: object) -> list[str]:
    problems: list[str] = []
    built = build(Drawing, table, "", problems)
    assert (built is None) == bool(problems)
    return problems


def test_a_good_table_becomes_the_tree() -> None:
    tree = build(Drawing, GOOD, "", [])
    assert tree == Drawing(title="a", shape=Circle(kind="circle", radius=1.0))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"titel": "x"}, "titel: unknown key; expected one of title,"),
        ({"title": 3}, "title: expected a text in [1, 5]; came 3."),
        ({"title": "abcdef"}, "title: expected a length in [1, 5]; came 'abcdef'."),
        ({"visible": 1}, "visible: expected true or false; came 1."),
        ({"shape": {"kind": "cone"}}, "shape.kind: expected one of circle, square; came 'cone'."),
        ({"shape": 5}, "shape.kind: expected one of circle, square; came 5."),
        ({"shape": {"kind": "circle", "radius": 0}}, "shape.radius: expected a number in (0, inf); came 0."),
        ({"shape": {"kind": "circle", "radius": True}}, "shape.radius: expected a finite number in (0, inf)"),
        (
            {"shape": {"kind": "circle", "radius": float("nan")}},
            "shape.radius: expected a finite number in (0, inf)",
        ),
        ({"shape": {"kind": "circle"}}, "shape.radius: missing; expected a finite number in (0, inf)."),
        ({"shape": {"kind": "square", "side": 1.0}}, "shape.side: expected an integer; came 1.0."),
        ({"shapes": [{"kind": "square"}, 4]}, "shapes[1].kind: expected one of circle, square; came 4."),
        ({"shapes": "square"}, "shapes: expected a list of"),
        ({"colours": {"red": "a"}}, "colours.red: expected an integer; came 'a'."),
        ({"colours": 2}, "colours: expected a table; came 2."),
        ({"scale": 11}, "scale: expected a number in [0, 10]; came 11."),
    ],
)
def test_each_problem_names_its_key_what_was_expected_and_what_came(
    change: dict[str, Any], expected: str
) -> None:
    (problem,) = problems_of(GOOD | change)
    assert problem.startswith(expected)


def test_all_problems_come_at_once() -> None:
    assert len(problems_of({"titel": "x", "shape": {"kind": "circle", "radius": -1}, "visible": "yes"})) == 4


def test_canonical_text_does_not_depend_on_order_or_on_writing_a_default_out() -> None:
    one = build(Drawing, GOOD, "", [])
    two = build(Drawing, {"visible": True, "shape": {"radius": 1.0, "kind": "circle"}, "title": "a"}, "", [])
    assert canonical(one) == canonical(two)
    assert canonical(one) != canonical(build(Drawing, GOOD | {"visible": False}, "", []))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["title", "shape", "kind", "radius", "side", "shapes", "colours", "x"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_no_table_crashes_the_builder(table: object) -> None:
    problems_of(table)


@dataclass(frozen=True, kw_only=True)
class Choice:
    layers: Literal["last", "all"] | tuple[Annotated[int, Interval(1, 9)], ...] = "last"


def test_a_word_or_a_list_is_told_apart_by_what_came() -> None:
    assert build(Choice, {"layers": [2, 3]}, "", []) == Choice(layers=(2, 3))
    assert build(Choice, {"layers": "all"}, "", []) == Choice(layers="all")
    problems: list[str] = []
    build(Choice, {"layers": "first"}, "", problems)
    build(Choice, {"layers": [2, 10]}, "", problems)
    build(Choice, {"layers": 2}, "", problems)
    assert problems == [
        "layers: expected one of last, all; came 'first'.",
        "layers[1]: expected a number in [1, 9]; came 10.",
        "layers: expected one of last, all; came 2.",
    ]
