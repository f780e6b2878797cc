"""What a logit means."""

import math


def sigmoid(logit: float) -> float:
    """1 / (1 + e^−logit): the relevance, from 0 to 1."""
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0  # exp overflows beyond
