"""The decision, as pure functions: is the local answer good enough, and if not, what may be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from router.config import Escalate, OverLength, Policy


class Rules(msgspec.Struct, frozen=True):
    """One task's policy for one request: the config narrowed by the caller's key and the request."""

    threshold: float
    labels: Mapping[str, float]
    may_escalate: bool
    over_length: OverLength

    def threshold_of(self, label: str) -> float:
        return self.labels.get(label, self.threshold)


def rules_for(
    policy: Policy, over_length: OverLength | None, *, tenant: Escalate, route: Literal["auto", "local"], provider: bool
) -> Rules:
    """The strictest of task, tenant and request decides: one "never" is enough to keep a text in the house."""
    may_escalate = policy.escalate == "auto" and tenant == "auto" and route == "auto"
    default: OverLength = "escalate" if provider else "reject"
    return Rules(policy.threshold, policy.labels, may_escalate, over_length or default)


def accepts(rules: Rules, label: str, confidence: float, *, truncated: bool = False) -> bool:
    """Whether the local answer stands. Without a way out it stands whatever its confidence: that is the caller's
    choice (`route: "local"`, `escalate = "never"`) and no degradation."""
    if truncated and too_long(rules) == "reject":  # kept when another rule held
        return False
    if not rules.may_escalate:
        return True
    if truncated and rules.over_length == "escalate":
        return False
    return confidence >= rules.threshold_of(label)


def too_long(rules: Rules) -> Literal["truncate", "escalate", "reject"]:
    """What to do with a text the model can't read whole. What may not leave the house can't be escalated."""
    if rules.over_length == "escalate" and not rules.may_escalate:
        return "reject"
    return rules.over_length
