"""Tables fit the width that they are given, whatever stands in them."""

import pytest

from fastdl.inspection.text_table import Group, render, shorten

COLUMNS = ("first", "second", "empty", "third")
GROUPS = [
    Group(
        "a heading",
        [("short", ("1", "20", "", "3×4")), ("a/name/of/forty/characters/that/is/cut", ("100", "2", "", "5"))],
    ),
    Group("another", [("other", ("7", "8", "", "9"))]),
]


def test_numbers_stand_to_the_right_below_their_headings() -> None:
    assert render(COLUMNS, GROUPS, 120) == [
        "                                          first  second  third",
        "a heading",
        "  short                                       1      20    3×4",
        "  a/name/of/forty/characters/that/is/cut    100       2      5",
        "another",
        "  other                                       7       8      9",
    ]


@pytest.mark.parametrize("width", [24, 30, 40, 60, 80, 119])
def test_no_line_is_wider_and_no_cell_is_lost(width: int) -> None:
    lines = render(COLUMNS, GROUPS, width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for cell in ("first", "second", "third", "20", "3×4", "100"):
        assert cell in words
    assert "empty" not in words


def test_what_does_not_fit_goes_on_below_with_the_names_again() -> None:
    lines = render(COLUMNS, GROUPS, 32)
    assert lines.count("a heading") == 2
    assert sum(line.startswith("  short ") for line in lines) == 2
    assert "" in lines


def test_a_name_is_cut_in_its_middle() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghij", 7) == "abc…hij"
    assert shorten("abcdefghij", 6) == "ab…hij"
    assert shorten("abcdefghij", 1) == "…"
