"""How many engines run in this process."""

import threading


def engine_threads() -> int:
    """Each engine has a thread; other threads come and go."""
    return sum(thread.name == "winnow-engine" for thread in threading.enumerate())
