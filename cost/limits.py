"""Whether a paid call still fits what its UTC day may cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from cost.types import BudgetExhausted, Intent

Scope = Literal["day", "task", "tenant"]


def refusal(intent: Intent, spent: Callable[[Scope, str], int]) -> BudgetExhausted | None:
    """The first limit that the reservation would exceed; None: it may be made.

    `spent(scope, name)`: nano-USD spent or set aside on the day of the call; the name is "" for the whole day.
    """
    limits, estimate = intent.limits, intent.estimate_nano
    wanted: tuple[tuple[Scope, str, str, int | None], ...] = (
        ("day", "", "the day's", limits.day),
        ("task", intent.task, f"task {intent.task}'s", limits.task),
        ("tenant", intent.tenant, f"tenant {intent.tenant}'s", limits.tenant),
    )
    for scope, name, whose, limit in wanted:
        if limit is not None and (before := spent(scope, name)) + estimate > limit:
            return BudgetExhausted(
                f"{whose} budget of ${limit / 1e9:.4f} is used up: ${before / 1e9:.4f} is spent or set aside, "
                f"this call may cost ${estimate / 1e9:.6f}"
            )
    return None
