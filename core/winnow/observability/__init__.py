"""What is seen of a ranking from outside: metrics and spans."""

from winnow.observability.rank_span import DEADLINE_PASSED, observed

__all__ = ["DEADLINE_PASSED", "observed"]
