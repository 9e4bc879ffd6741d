"""The decision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router import policy
from router.config import Policy

PROBABILITY = st.floats(0, 1)
ESCALATE = st.sampled_from(["auto", "never"])
ROUTE = st.sampled_from(["auto", "local"])
OVER_LENGTH = st.sampled_from([None, "escalate", "truncate", "reject"])


def rules(threshold: float = 0.8, labels: dict[str, float] | None = None, **more: object) -> policy.Rules:
    wanted = {"tenant": "auto", "route": "auto", "provider": True, "over_length": None, **more}
    over_length = wanted.pop("over_length")
    return policy.rules_for(Policy(threshold=threshold, labels=labels or {}), over_length, **wanted)


@given(PROBABILITY, PROBABILITY)
def test_an_answer_stands_exactly_from_its_threshold_on(threshold: float, confidence: float) -> None:
    """Equal is enough."""
    assert policy.accepts(rules(threshold), "a", confidence) == (confidence >= threshold)


@given(PROBABILITY, PROBABILITY, PROBABILITY)
def test_a_higher_threshold_accepts_nothing_more(one: float, other: float, confidence: float) -> None:
    """Monotone: raising the threshold only ever sends more to the frontier."""
    low, high = sorted((one, other))
    assert policy.accepts(rules(high), "a", confidence) <= policy.accepts(rules(low), "a", confidence)


@given(PROBABILITY, PROBABILITY, PROBABILITY)
def test_a_label_threshold_replaces_the_tasks(threshold: float, own: float, confidence: float) -> None:
    """Only for its own label."""
    mixed = rules(threshold, {"a": own})
    assert policy.accepts(mixed, "a", confidence) == (confidence >= own)
    assert policy.accepts(mixed, "b", confidence) == (confidence >= threshold)


@given(ESCALATE, ESCALATE, ROUTE, OVER_LENGTH, st.booleans())
def test_one_never_keeps_a_text_in_the_house(
    task: str, tenant: str, route: str, over_length: str | None, provider: bool
) -> None:
    """Task, tenant and request: the strictest decides, and then every local answer stands."""
    found = policy.rules_for(Policy(escalate=task), over_length, tenant=tenant, route=route, provider=provider)
    assert found.may_escalate == (task == tenant == route == "auto")
    if not found.may_escalate:
        assert policy.accepts(found, "a", 0.0)
        assert policy.too_long(found) != "escalate"


def test_a_truncated_reading_does_not_stand_where_long_texts_escalate() -> None:
    """Whatever its confidence; where truncation is the rule, it does."""
    assert not policy.accepts(rules(0.5), "a", 1.0, truncated=True)
    assert policy.accepts(rules(0.5, over_length="truncate"), "a", 1.0, truncated=True)


def test_without_a_provider_long_texts_are_rejected_by_default() -> None:
    """There is nobody to escalate to."""
    assert policy.too_long(rules(provider=False)) == "reject"
    assert policy.too_long(rules(provider=True)) == "escalate"
