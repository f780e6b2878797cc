"""Connections of clients that are slow, or silent: none is kept for them longer than the service says.

uvicorn waits without an end for the first byte, for the end of a request's header section, and for a client to take its
answer; a server without a proxy before it would collect such connections.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

# Between two requests. More than the 60 seconds for which load balancers and proxies keep theirs open: who closes first
# must be the one that sends the next request, else that may get lost.
KEEP_ALIVE_SECONDS = 75


def patient_for(seconds: float) -> type[asyncio.Protocol]:
    """The protocol of connections on which a client may be silent for so long when it is its turn.

    It is uvicorn's on h11, because of the limit that h11 has for a header section (64 kB); httptools has none.

    Args:
        seconds: How long a request's header section may take, and how long a client may take nothing of its answer.
    """

    class Connection(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None
        _answer_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
            super().connection_made(transport)
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.trailing_data[0]:  # the beginning of the next request came with the last one
                self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._head_timer, self._answer_timer):
                if timer is not None:
                    timer.cancel()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_answer()

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._answer_timer is not None:
                self._answer_timer.cancel()

        def _watch_head(self) -> None:
            """Begin to wait for a request's header section, or stop, if it has come."""
            if self.cycle is None or self.cycle.response_complete:
                if self._head_timer is None:
                    self._head_timer = self.loop.call_later(seconds, self.transport.close)
            elif self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _watch_answer(self, before: int | None = None) -> None:
            """Look again and again how much of an answer is left, and break the connection off if it is as much."""
            left = self.transport.get_write_buffer_size()
            if before is not None and left >= before:
                self.transport.abort()
            else:
                self._answer_timer = self.loop.call_later(seconds, self._watch_answer, left)

    return Connection
