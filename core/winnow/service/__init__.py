"""The service: one reranker for other processes, other languages, and the rerank clients that people already run."""

from winnow.errors import MissingExtraError

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise MissingExtraError(error.name or "fastapi", "serve") from error

from winnow.service.app import create_app
from winnow.service.config import ServiceConfig
from winnow.service.keys import keys_in_file
from winnow.service.presets import Preset, read_preset
from winnow.service.server import serve

__all__ = ["Preset", "ServiceConfig", "create_app", "keys_in_file", "read_preset", "serve"]
