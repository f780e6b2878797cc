"""One query and five texts, which the tests of all integrations rank with `engine="fake"`."""

QUERY = "capital of China"
TEXTS = [
    "Rice and noodles.",
    "Beijing is the capital of China.",
    "The capital of France.",
    "Paris.",
    "Shanghai is in China.",
]
BEST_FIRST = [1, 2, 4, 3, 0]  # by shared words; then the shorter text
