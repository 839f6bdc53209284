"""Rules decide at their boundaries as their text says."""

import math

import pytest

from thalweg.studies.verdicts import Rule, at_least, between, check_rules, effect_of, judge, otherwise

RULES = {"reproduced": at_least(2), "direction only": at_least(1.1), "not reproduced": otherwise}
TIE = {"reproduced": between(0.95, 1.05), "not reproduced": otherwise}


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (math.inf, "reproduced"),
        (2, "reproduced"),
        (math.nextafter(2, 0), "direction only"),
        (1.1, "direction only"),
        (math.nextafter(1.1, 0), "not reproduced"),
        (-5, "not reproduced"),
        (-math.inf, "not reproduced"),
        (math.nan, "not reproduced"),
    ],
)
def test_the_first_rule_that_holds_is_the_verdict(effect, verdict):
    assert judge(RULES, effect) == verdict


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (0.95, "reproduced"),
        (1.05, "reproduced"),
        (math.nextafter(0.95, 0), "not reproduced"),
        (math.nextafter(1.05, 2), "not reproduced"),
    ],
)
def test_a_tie_has_two_ends(effect, verdict):
    assert judge(TIE, effect) == verdict


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (at_least(2), "effect >= 2"),
        (at_least(-0.05), "effect >= -0.05"),
        (at_least(1e-9), "effect >= 1e-09"),
        (between(0.95, 1.05), "0.95 <= effect <= 1.05"),
        (otherwise, "otherwise"),
    ],
)
def test_a_rule_is_its_text(rule, text):
    assert str(rule) == text
    assert Rule.parse(text) == rule


@pytest.mark.parametrize("text", ["effect > 2", "effect >= two", "", "always", "1 <= effect"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="a rule must read"):
        Rule.parse(text)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({}, "must end with its only 'otherwise'"),
        ({"reproduced": at_least(2)}, "must end with its only 'otherwise'"),
        ({"reproduced": otherwise, "not reproduced": at_least(1)}, "must end with its only 'otherwise'"),
        ({"reproduced": otherwise, "not reproduced": otherwise}, "must end with its only 'otherwise'"),
        ({"reproducd": at_least(2), "not reproduced": otherwise}, "did you mean reproduced"),
        ({"reproduced": "effect >= 2", "not reproduced": otherwise}, "must be a rule"),
    ],
)
def test_rules_that_could_leave_no_verdict_are_refused(rules, said):
    with pytest.raises(ValueError, match=said):
        check_rules(rules)


def test_an_interval_must_not_be_empty():
    with pytest.raises(ValueError, match=r"low must be at most high = 1, got 2"):
        between(2, 1)


@pytest.mark.parametrize(
    ("formula", "effect"),
    [
        ("baseline / method", 4 / 5),
        ("method / baseline", 5 / 4),
        ("baseline - method", -1),
        ("method - baseline", 1),
    ],
)
def test_an_effect_is_what_its_formula_says(formula, effect):
    assert effect_of(formula, baseline=4, method=5) == effect


def test_a_method_that_reaches_zero_has_a_finite_ratio():
    assert effect_of("baseline / method", 1, 0) == 1e12


def test_unknown_formulas_are_refused():
    with pytest.raises(ValueError, match="effect must be one of"):
        effect_of("method", 1, 1)
