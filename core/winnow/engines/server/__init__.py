"""vLLM servers over HTTP."""

from winnow.engines.server.engine import ServerEngine, serve_command

__all__ = ["ServerEngine", "serve_command"]
