"""A run in LangChain's traces: below the caller's callbacks, or else below the run that the call is made in.

It is a chain run. Interfaces that gather sources take the documents of every retriever run: a retriever run for the
reranker would show them twice, once as found and once as reranked.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager, Callbacks
from langchain_core.runnables import ensure_config


@contextmanager
def traced(
    name: str, inputs: dict[str, Any], metadata: dict[str, Any], callbacks: Callbacks | None
) -> Iterator[dict[str, Any]]:
    """Trace the code in this context as a chain run; an error ends the run and is raised.

    Args:
        name: The run's name.
        inputs: The run's inputs.
        metadata: Metadata of this run alone.
        callbacks: The caller's; None for those of the run that this is called in.

    Yields:
        An empty dict; its contents at the end become the run's outputs.
    """
    manager = CallbackManager.configure(_callbacks(callbacks), local_metadata=metadata)
    run = manager.on_chain_start(None, inputs, name=name)
    outputs: dict[str, Any] = {}
    try:
        yield outputs
    except BaseException as error:
        run.on_chain_error(error)
        raise
    run.on_chain_end(outputs)


@asynccontextmanager
async def atraced(
    name: str, inputs: dict[str, Any], metadata: dict[str, Any], callbacks: Callbacks | None
) -> AsyncIterator[dict[str, Any]]:
    """`traced` for event loops."""
    manager = AsyncCallbackManager.configure(_callbacks(callbacks), local_metadata=metadata)
    run = await manager.on_chain_start(None, inputs, name=name)
    outputs: dict[str, Any] = {}
    try:
        yield outputs
    except BaseException as error:
        await run.on_chain_error(error)
        raise
    await run.on_chain_end(outputs)


def _callbacks(callbacks: Callbacks | None) -> Callbacks | None:
    return ensure_config()["callbacks"] if callbacks is None else callbacks
