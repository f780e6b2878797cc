"""Token ids become logits: what an engine is, which one runs, and one package or module for each."""

from winnow.engines.base import Engine, EngineScore, FakeEngine, is_logit, name_of
from winnow.engines.choose import create_engine
from winnow.engines.life import EngineLife, Started, Work
from winnow.engines.request_queue import Requests, Turn
from winnow.engines.server_addresses import server_addresses
from winnow.engines.setting_table import ENGINES, FALLBACKS, SETTINGS, check_values, parse_argument, settings_of
from winnow.engines.settings import EngineSettings, check_names, given_settings, resolve, url_in_environment
from winnow.engines.shared import Lease

__all__ = [
    "ENGINES",
    "FALLBACKS",
    "SETTINGS",
    "Engine",
    "EngineLife",
    "EngineScore",
    "EngineSettings",
    "FakeEngine",
    "Lease",
    "Requests",
    "Started",
    "Turn",
    "Work",
    "check_names",
    "check_values",
    "create_engine",
    "given_settings",
    "is_logit",
    "name_of",
    "parse_argument",
    "resolve",
    "server_addresses",
    "settings_of",
    "url_in_environment",
]
