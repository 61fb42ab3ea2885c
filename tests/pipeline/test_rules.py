from dataclasses import dataclass
from typing import Any

from services.pipeline import reviewing, rules
from services.pipeline.reviewing import Passed, ReviewPolicy


@dataclass
class Phase:
    state: str
    started: bool = False


Where = tuple[str, str, bool]  # preparation, and state and `started` of the current phase


def moves(number: int, preparation: str, state: str) -> set[Where]:
    """Returns the states that phase `number` may have next."""
    follow = {
        (preparation, to, to != "pending" or preparation == "done")
        for to in rules.PHASE_STATES[state]
    }
    if number == 1 and preparation == "pending":
        return {(to, state, False) for to in ("done", "failed")} | {("pending", "stopped", False)}
    if number == 1 and preparation == "failed":
        return {("pending", "pending", False), ("failed", "stopped", False)}
    return follow


def product(number: int, where: Where) -> str:
    """Returns the product's state when phase `number` is the current one."""
    preparation, state, started = where
    phases = [
        *[Phase("completed", True)] * (number - 1),
        Phase(state, started),
        *[Phase("pending")] * (4 - number),
    ]
    return rules.product_state(preparation, phases)[0]


def test_a_product_can_follow_every_move_of_its_phases() -> None:
    for number in rules.PHASES:
        seen: set[Where] = set()
        ahead: set[Where] = {("pending" if number == 1 else "done", "pending", False)}

        while ahead:
            where = ahead.pop()
            seen.add(where)

            for to in moves(number, *where[:2]):
                here, there = product(number, where), product(number, to)
                assert there == here or there in rules.PRODUCT_STATES[here], (
                    number,
                    where,
                    to,
                    here,
                    there,
                )
                ahead |= {to} - seen
        assert {state for _, state, _ in seen} == set(rules.PHASE_STATES)


def test_a_product_is_what_its_phases_are() -> None:
    assert rules.product_state("pending", [Phase("pending")] * 4) == ("uploaded", False)
    assert rules.product_state("failed", [Phase("pending")] * 4) == ("error", False)
    assert rules.product_state("done", [Phase("pending", True), *[Phase("pending")] * 3]) == (
        "processing",
        True,
    )
    assert rules.product_state("done", [Phase("completed"), *[Phase("pending")] * 3]) == (
        "processing",
        False,
    )
    assert rules.product_state(
        "done", [Phase("completed"), Phase("running"), *[Phase("pending")] * 2]
    ) == ("processing", True)
    assert rules.product_state("done", [Phase("completed")] * 4) == ("completed", False)


def test_a_reviewers_fields_replace_the_models() -> None:
    model = {"name": "a", "brands": ["x", "y"], "condition": "new"}

    assert rules.effective(model, {"brands": ["z"]}, []) == {
        "name": "a",
        "brands": ["z"],
        "condition": "new",
    }
    assert rules.effective(model, {"brands": ["z"]}, ["brands", "name"]) == {
        "brands": ["z"],
        "condition": "new",
    }
    assert rules.effective(model, {"name": "b", "condition": "used"}, ["name"]) == {
        **model,
        "name": "b",
    }


def policy(**fields: Any) -> ReviewPolicy:
    values = {"below": dict.fromkeys(rules.PHASES, 0.8), "sample": 0, "decisions": 1}
    return ReviewPolicy(**{**values, "due_in": None, **fields})


def test_what_a_model_is_not_sure_of_wants_a_review() -> None:
    figures = (None, 0.0, 0.799, 0.8, 1.0)
    asks = [policy().wants_review(1, confidence, "service") for confidence in figures]
    assert asks == [False, True, True, False, False]

    sampled = [policy(sample=1).wants_review(1, each, "runner") for each in figures]
    assert sampled == [False, True, True, True, True]
    assert not policy(sample=1).wants_review(1, 1.0, "reviewer")


def test_a_review_ends_when_enough_persons_agree_or_the_last_one_has_decided() -> None:
    assert reviewing.is_settled(1, 1, 1)
    assert not reviewing.is_settled(2, 1, 1) and not reviewing.is_settled(2, 2, 1)
    assert reviewing.is_settled(2, 2, 2) and reviewing.is_settled(2, 3, 1)


def test_the_sample_stands_for_all_that_the_model_was_sure_of() -> None:
    # 100 confident ones, 10 sampled of which 1 wrong; 20 others, all decided, of which 10 wrong.
    of = Passed(passed=120, confident=100, checked=30, wrong=11, sampled=10, sampled_wrong=1)
    assert reviewing.miss_rate(of) == (100 * 0.1 + 20 * 0.5) / 120
    assert "a sample of 10" in reviewing.caution(of)

    unseen = Passed(passed=100, confident=100, checked=0, wrong=0, sampled=0, sampled_wrong=0)
    assert reviewing.miss_rate(unseen) is None and "REVIEW_SAMPLE" in reviewing.caution(unseen)
    few = Passed(passed=9, confident=0, checked=9, wrong=3, sampled=0, sampled_wrong=0)
    assert reviewing.miss_rate(few) == 1 / 3 and "9 cases" in reviewing.caution(few)
