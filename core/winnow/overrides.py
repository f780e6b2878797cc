"""`hf_overrides`: values that go over a model's config.json, the same way for every engine."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

_ROPE_NAMES = ("rope_scaling", "rope_parameters")  # before transformers 5, and since


def merged(own: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    """`own` with the values of `user` over it. Where both have a mapping, the two are merged, at any depth."""
    result = dict(own)
    for name, value in user.items():
        both = isinstance(value, Mapping) and isinstance(own.get(name), Mapping)
        result[name] = merged(own[name], value) if both else value
    return result


def completed(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides with what each of their mappings leaves out, so that setting them changes nothing else.

    vLLM merges nested configurations such as `text_config`, but replaces any other mapping (`_apply_dict_overrides` in
    vllm/config/model.py). All settings of rope, under their older names, too, become one `rope_parameters`: with two of
    these names in one config, transformers and vLLM heed one and ignore the other.

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
    """The contents of config.json as they would be if the overrides stood there.

    Args:
        config: The contents of config.json.
        overrides: What `completed` returns for them.
    """
    stale = _ROPE_NAMES if "rope_parameters" in overrides else ()
    result = {name: value for name, value in config.items() if name not in stale}
    for name, value in overrides.items():
        own = result.get(name)
        result[name] = overridden(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return result


def misspelt(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names in the overrides that only look like fields of the config, and may change nothing; each with the nearest.

    Names like none of them are left alone: vLLM, or code of the model's own, may know them.

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
    """All settings of rope, if the overrides change one of them. What they leave out stays, above all `rope_theta`."""
    own, given = _settings_of_rope(config), _settings_of_rope(overrides)
    if any(overrides.get(name, "") is None for name in _ROPE_NAMES):
        given |= {"rope_type": "default"}
    if not given or not (own.keys() | given.keys()) - {"rope_theta"}:  # as it stands, beside the other fields
        return {}
    kinds = [name for name, value in own.items() if isinstance(value, Mapping)]
    if kinds and not any(isinstance(value, Mapping) for value in given.values()):  # settings of each kind of layer
        given = dict.fromkeys(kinds, given)
    return merged(own, given)


def _settings_of_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {} if config.get("rope_theta") is None else {"rope_theta": config["rope_theta"]}
    for name in _ROPE_NAMES:
        if isinstance(given := config.get(name), Mapping):  # anything else is for the engine to refuse
            found |= {"rope_type" if key == "type" else key: value for key, value in given.items()}
    return found
