"""Spares Python's cyclic garbage collector from walking vLLM's and PyTorch's heap again and again.

Their objects, some hundred thousand, stay as long as the engine. Scoring makes enough objects that Python walks all of
them every few thousand pairs, which stops all threads for tenths of a second. vLLM freezes the heap in its own
processes (`freeze_gc_heap` in vllm/utils/gc_utils.py). This process is the user's, whose objects must not stay for
ever. So what a full collection has found alive is frozen, but now and then a full collection walks all: at most once a
minute, and for at most a thousandth of the time.
"""

import gc
import math
import sys
import time

from winnow.locks import ForkSafeLock

_SECONDS_BETWEEN_WALKS = 60.0
_SHARE_OF_TIME = 0.001

_lock = ForkSafeLock()
_engines: set[int] = set()
_last_walk = -math.inf  # when it began
_walks = False
_walk_seconds = 0.0  # how long it took


def freeze_heap(engine: object) -> None:
    """Free all garbage, and freeze what is left, until `thaw_heap` was called for all engines.

    A program that has frozen its heap itself, or turned the collector off, is left alone. So is Python 3.14, whose
    collector is incremental: it makes no full collections of its own.
    """
    with _lock:
        if not _engines:
            if gc.get_freeze_count() or not gc.isenabled() or sys.version_info >= (3, 14):
                return
            gc.callbacks.append(_on_collection)
        _engines.add(id(engine))
    gc.collect()


def thaw_heap(engine: object) -> None:
    """Let the collector walk all objects again, as without Winnow, if no other engine keeps them frozen."""
    global _last_walk
    with _lock:
        if id(engine) not in _engines:
            return
        _engines.remove(id(engine))
        if _engines:
            _last_walk = -math.inf  # the next full collection frees what this engine leaves
        else:
            gc.callbacks.remove(_on_collection)
            gc.unfreeze()


def _on_collection(phase: str, info: dict[str, int]) -> None:
    """Called by the collector, in any thread and at any point of our code, so it takes no lock."""
    global _last_walk, _walk_seconds, _walks
    if info["generation"] < 2:
        return
    now = time.monotonic()
    if phase == "stop":
        if _walks:
            _walks, _walk_seconds = False, now - _last_walk
        gc.freeze()
        if not _engines:  # another thread has just closed the last one
            gc.unfreeze()
    elif now - _last_walk >= max(_SECONDS_BETWEEN_WALKS, _walk_seconds / _SHARE_OF_TIME):
        _walks, _last_walk = True, now
        gc.unfreeze()
