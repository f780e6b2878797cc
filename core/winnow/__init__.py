"""LLM rerankers on vLLM, exact to the last prompt token. `Reranker` is the way in."""

from winnow.engines import Engine, EngineScore, FakeEngine
from winnow.errors import (
    ConfigurationError,
    DocumentError,
    EngineDeadError,
    EngineError,
    EngineLoadError,
    EngineUnavailableError,
    MissingExtraError,
    ModelError,
    TemplateError,
    WinnowError,
)
from winnow.models import ModelRecipe
from winnow.observability import metrics
from winnow.prompts import Prompt
from winnow.ranking import Calibration, CallLimits, Reranker, RerankerConfig
from winnow.types import Document, RankedDocument, Ranking, RankStats

__all__ = [
    "Calibration",
    "CallLimits",
    "ConfigurationError",
    "Document",
    "DocumentError",
    "Engine",
    "EngineDeadError",
    "EngineError",
    "EngineLoadError",
    "EngineScore",
    "EngineUnavailableError",
    "FakeEngine",
    "MissingExtraError",
    "ModelError",
    "ModelRecipe",
    "Prompt",
    "RankStats",
    "RankedDocument",
    "Ranking",
    "Reranker",
    "RerankerConfig",
    "TemplateError",
    "WinnowError",
    "metrics",
]
