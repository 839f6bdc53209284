"""Moments and days as people say them."""

import pytest

from thalweg.desk.times import ago, iso, spoken


@pytest.mark.parametrize(
    ("past", "said"),
    [
        (0, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (3599, "59 minutes ago"),
        (3600, "1 hour ago"),
        (86399, "23 hours ago"),
        (86400, "1 day ago"),
        (40 * 86400, "40 days ago"),
        (-5, "just now"),
    ],
)
def test_how_long_ago(past, said):
    assert ago(1e9 - past, 1e9) == said


def test_a_moment_in_iso():
    assert iso(1e9) == "2001-09-09T01:46:40Z"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("2024-05", "May 2024"),
        ("2024-05-17", "Friday, 17 May 2024"),
        ("2024-W20", "Week 20 of 2024"),
        ("Newest papers", "Newest papers"),
        ("2024-13", "2024-13"),
    ],
)
def test_periods(name, said):
    assert spoken(name) == said
