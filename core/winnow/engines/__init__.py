"""Token ids become logits: what an engine is, which one runs, and one package or module for each."""

from winnow.engines.base import Engine, EngineScore, WatchedEngine, is_logit, name_of
from winnow.engines.choose import configured_checkpoint, create_engine
from winnow.engines.cpu_dtype import dtype_on_cpu
from winnow.engines.fake import FakeEngine
from winnow.engines.life import EngineLife, Started, Work
from winnow.engines.records import SERVER, register_engine
from winnow.engines.registry import (
    AUTO,
    EngineRecord,
    EngineSettings,
    changes_scores,
    check_names,
    engine_names,
    fallback_names,
    names_with_url,
    needs_url,
    reads_model,
    record_of,
    settings_of,
)
from winnow.engines.request_queue import Requests, Turn
from winnow.engines.server_addresses import server_addresses
from winnow.engines.setting_table import SETTINGS, Setting, check_values, parse_argument
from winnow.engines.setting_values import Values
from winnow.engines.settings import given_settings, resolve, url_in_environment
from winnow.engines.shared import Lease

__all__ = [
    "AUTO",
    "SERVER",
    "SETTINGS",
    "Engine",
    "EngineLife",
    "EngineRecord",
    "EngineScore",
    "EngineSettings",
    "FakeEngine",
    "Lease",
    "Requests",
    "Setting",
    "Started",
    "Turn",
    "Values",
    "WatchedEngine",
    "Work",
    "changes_scores",
    "check_names",
    "check_values",
    "configured_checkpoint",
    "create_engine",
    "dtype_on_cpu",
    "engine_names",
    "fallback_names",
    "given_settings",
    "is_logit",
    "name_of",
    "names_with_url",
    "needs_url",
    "parse_argument",
    "reads_model",
    "record_of",
    "register_engine",
    "resolve",
    "server_addresses",
    "settings_of",
    "url_in_environment",
]
