"""The picture states the finding, has units, and reads without colour."""

import pytest

from thalweg.studies.plot import finding, plot_evidence
from thalweg.studies.runner import run_study


@pytest.fixture
def evidence(toys, tmp_path):
    return run_study("toy-quadratic", studies=toys, folder=tmp_path / "evidence")


def test_the_finding_is_one_line_with_effect_range_and_verdict(evidence):
    assert finding(evidence) == "small / large = 6.19 (from 6.19 to 6.19): reproduced"


def test_an_svg_holds_title_axes_and_arms_and_is_the_same_every_time(evidence, tmp_path):
    text = plot_evidence(evidence, tmp_path / "one.svg").read_text()
    for words in ("toy-quadratic, tuned: small / large", "steps", "distance", "small", "large", "none"):
        assert f"<!-- {words}" in text
    assert "<dc:date>" not in text


def test_a_png_of_a_setting_with_diverged_runs_is_drawn(evidence, tmp_path):
    path = plot_evidence(evidence, tmp_path / "one.png", "far too large")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [("one.pdf", None, r"\.png, \.svg"), ("one.png", "tund", "did you mean tuned")],
)
def test_other_endings_and_settings_are_refused(evidence, tmp_path, name, setting, said):
    with pytest.raises(ValueError, match=said):
        plot_evidence(evidence, tmp_path / name, setting)
