"""Which engines run in this process."""

import threading


def engine_threads() -> set[threading.Thread]:
    """The threads of the engines, one each.

    Compare with `<=`, or count what is new: an engine that an earlier test dropped may end at any time.
    """
    return {thread for thread in threading.enumerate() if thread.name == "winnow-engine"}
