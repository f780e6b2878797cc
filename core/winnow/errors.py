"""The errors that Winnow raises.

```
WinnowError
├── ConfigurationError (ValueError)     an argument or a combination of arguments is wrong
│   ├── TemplateError                   a prompt template is missing or broken, or ignores a text
│   └── ModelError                      a model is not found, is not a reranker, or cannot be read
├── DocumentError (ValueError)          one document (or query) cannot be scored; `index` says which
├── MissingExtraError (ImportError)     an optional dependency is not installed
└── EngineError (RuntimeError)          the engine failed
    ├── EngineLoadError                 it did not start
    ├── EngineDeadError                 it died; the next call starts it again, `max_restarts` times in a row
    └── EngineUnavailableError          its servers gave no score; the next call asks them again
```

Arguments that every reranking library would refuse (a blank query, `top_k=0`) are a plain `ValueError`.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class WinnowError(Exception):
    """Base class of Winnow's errors."""


class ConfigurationError(WinnowError, ValueError):
    """An argument, or a combination of arguments, is wrong."""


class TemplateError(ConfigurationError):
    """A prompt template is missing or broken, or ignores the query, the document or the instruction."""


class ModelError(ConfigurationError):
    """A model is not found, is not a reranker, or its files cannot be read."""


class DocumentError(WinnowError, ValueError):
    """One document, or the query, cannot be scored.

    Attributes:
        index: Position of the document in the call, or None for the query.
    """

    def __init__(self, message: str, index: int | None = None):
        super().__init__(message)
        self.index = index


class MissingExtraError(WinnowError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: The import name of the missing package.
        extra: The extra of this distribution that installs it.
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f'{package} is not installed. To install it: pip install "winnow-rerank[{extra}]"')
        self.package = package
        self.extra = extra


class EngineError(WinnowError, RuntimeError):
    """The engine failed to score."""


class EngineLoadError(EngineError):
    """The engine did not start."""


class EngineDeadError(EngineError):
    """The engine died while it was in use, or hung.

    The next call starts it again, at most `max_restarts` times in a row; the message says whether it will.
    """


class EngineUnavailableError(EngineError):
    """The servers that score gave no score in all tries; the next call asks them again."""


@contextmanager
def as_engine_error(what: str, kind: type[EngineError] = EngineError) -> Iterator[None]:
    """Turns every error of an engine into an `EngineError`, so that a fallback can rank.

    `SystemExit` is turned, too: a model's own code may call `sys.exit`, which would end the event loop. Ctrl-C is never
    raised here, but in the main thread. A `CancelledError` is left only if this task was cancelled: one that an engine
    raises by itself would end a `TaskGroup`'s task without an error, as if it had done its work.

    Args:
        what: What failed, for the message.
        kind: The class of the new error.
    """
    try:
        yield
    except WinnowError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
            raise
        raise kind(f"{what}: {type(error).__name__}: {error}") from error
