"""`hf_overrides`: values that replace those of a model's config.json, in the same way for every engine."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

_ROPE_NAMES = ("rope_scaling", "rope_parameters")  # before transformers 5, and since


def merged(own: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    """`own`, changed by the values of `user`. If both have a mapping under a name, the two are merged, at any depth."""
    result = dict(own)
    for name, value in user.items():
        both = isinstance(value, Mapping) and isinstance(own.get(name), Mapping)
        result[name] = merged(own[name], value) if both else value
    return result


def completed(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides, with the config's values added to each of their mappings, so that they change nothing else.

    vLLM merges nested configurations such as `text_config`, but replaces any other mapping (`_apply_dict_overrides` in
    vllm/config/model.py). All rope settings, also under their older names, become one `rope_parameters`: if a config
    has two of these names, transformers and vLLM read one and ignore the other.

    Args:
        config: The contents of config.json.
        overrides: The user's `hf_overrides`.
    """
    result = {}
    for name, value in overrides.items():
        own = config.get(name)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            nested = name.endswith("_config") and name != "quantization_config"
            value = completed(own, value) if nested else merged(own, value)
        result[name] = value
    if rope := _rope(config, overrides):
        result = {name: value for name, value in result.items() if name not in _ROPE_NAMES} | {"rope_parameters": rope}
        if "rope_theta" in config:
            result["rope_theta"] = rope.get("rope_theta", config["rope_theta"])
    return result


def overridden(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of config.json, changed by the overrides.

    Args:
        config: The contents of config.json.
        overrides: The overrides, as `completed` returns them.
    """
    stale = _ROPE_NAMES if "rope_parameters" in overrides else ()
    result = {name: value for name, value in config.items() if name not in stale}
    for name, value in overrides.items():
        own = result.get(name)
        result[name] = overridden(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return result


def misspelt(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names in the overrides that are similar to a field of the config, but are not one; each with that field.

    Names that are not similar to any field are not returned: vLLM, or the model's own code, may know them.

    Args:
        config: The contents of config.json.
        overrides: The user's `hf_overrides`.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    own: Any = CONFIG_MAPPING[kind]() if kind in CONFIG_MAPPING else None
    known = [*config, *_ROPE_NAMES, *(own.to_dict() if own else ()), *(own.attribute_map if own else ())]
    for name, value in overrides.items():
        if name in known or name in dir(own):
            if isinstance(value, Mapping) and isinstance(part := config.get(name), Mapping) and "model_type" in part:
                yield from misspelt(part, value)
        elif near := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            yield name, near[0]


def _rope(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All rope settings, if the overrides change one. The others keep the config's values, above all `rope_theta`."""
    own, given = _settings_of_rope(config), _settings_of_rope(overrides)
    if any(overrides.get(name, "") is None for name in _ROPE_NAMES):
        given |= {"rope_type": "default"}
    if not given or not (own.keys() | given.keys()) - {"rope_theta"}:  # rope_theta alone stays a field of its own
        return {}
    kinds = [name for name, value in own.items() if isinstance(value, Mapping)]
    if kinds and not any(isinstance(value, Mapping) for value in given.values()):  # one mapping for each kind of layer
        given = dict.fromkeys(kinds, given)
    return merged(own, given)


def _settings_of_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {} if config.get("rope_theta") is None else {"rope_theta": config["rope_theta"]}
    for name in _ROPE_NAMES:
        if isinstance(given := config.get(name), Mapping):  # the engine refuses anything else
            found |= {"rope_type" if key == "type" else key: value for key, value in given.items()}
    return found
