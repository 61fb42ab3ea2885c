from dataclasses import dataclass

from services.pipeline import rules


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


def test_confidences_below_080_are_for_a_person() -> None:
    assert [rules.wants_review(confidence) for confidence in (None, 0.0, 0.799, 0.8, 1.0)] == [
        False,
        True,
        True,
        False,
        False,
    ]
