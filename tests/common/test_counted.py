"""Which round of each site counted last: what all sites of a sum are told alike."""

import pytest

from sottovoce.common import counted

SITES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "site", "last", "is_right"),
    [
        ("3,0,2", "a", 3, True),
        ("3,0,2", "b", 0, True),
        ("3,0,2", "a", 2, False),  # not what this site itself was told
        ("3,0,2", "d", 3, False),  # not on the roster
        ("3,0", "a", 3, False),
        ("3,0,4", "a", 3, False),  # this round is no earlier one
        ("3,00,2", "a", 3, False),  # the same said in another way has another digest
        ("3,-1,2", "a", 3, False),
        ("3,\u0663,2", "a", 3, False),
        ("3," + "9" * 5000 + ",2", "a", 3, False),
        (None, "a", 3, False),
        (3, "a", 3, False),
    ],
)
def test_a_text_is_of_earlier_rounds_of_all_sites_and_says_what_this_one_was_told(
    text: object, site: str, last: int, is_right: bool
) -> None:
    assert counted.says(text, SITES, site=site, counted=last, round=4) is is_right


def test_the_digest_that_a_sum_agrees_on_changes_with_any_sites_last_round() -> None:
    texts = [None, *(counted.told({"a": n}, SITES) for n in (0, 1, 12))]
    assert len({counted.bound_to("m", text) for text in texts}) == 4
    assert max(len(text or "") for text in texts) <= counted.longest(n_sites=3, rounds=12)
