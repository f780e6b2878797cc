"""Arguments of the Haystack ranker: refused with what was given and what is wanted, or as types that can be saved."""

from collections.abc import Mapping, Sequence
from typing import Any

from haystack import Document
from haystack.core.errors import SerializationError
from haystack.utils import ComponentDevice, Secret


def checked_fields(names: Sequence[str] | None) -> list[str]:
    """`meta_fields_to_embed`, if it is several names."""
    if isinstance(names, str):
        raise TypeError(f"meta_fields_to_embed must be a list of names, but got the text {names!r}")
    return list(names or ())


def checked_flag(name: str, flag: bool) -> bool:
    """A flag, if it is one: most texts, "false" too, would count as True."""
    if not isinstance(flag, bool):
        raise TypeError(f"{name} must be True or False, but got {flag!r}")
    return flag


def checked_text(name: str, text: str) -> str:
    """A text, if it is one: None would be put into prompts as "None"."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a text, but got {text!r}")
    return text


def checked_secret(name: str, secret: Secret | None) -> Secret | None:
    """`api_key` or `token`, if it is a secret: a text would be written into saved pipelines."""
    if secret is not None and not isinstance(secret, Secret):
        raise TypeError(f"{name} must be a Secret: use Secret.from_env_var or Secret.from_token")
    return secret


def checked_device(device: ComponentDevice | str | None) -> ComponentDevice | None:
    """`device`, if it is one device."""
    if isinstance(device, str):
        device = ComponentDevice.from_str(device)
    if device is not None and not isinstance(device, ComponentDevice):
        raise TypeError(f"device must be a ComponentDevice or a text such as 'cuda:1', but got {device!r}")
    if device is not None and device.has_multiple_devices:
        raise ValueError("device must be a single device, but got a device map")
    return device


def with_device_names(engine_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """`engine_kwargs`, with Haystack's devices by their names."""
    return {
        name: value.to_torch_str() if isinstance(value, ComponentDevice) else value
        for name, value in (engine_kwargs or {}).items()
    }


def check_savable(value: Any, name: str = "") -> None:
    """Refuse parameters that YAML cannot hold.

    Args:
        value: All parameters, or one of them, or a part of one, as plain data.
        name: What it is, for the error.

    Raises:
        SerializationError: The message names the parameter, and where in it the fault is.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise SerializationError(f"{name} has the key {key!r}, but a saved pipeline holds only texts as keys")
            check_savable(inner, f"{name}[{key!r}]" if name else key)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            check_savable(inner, f"{name}[{at}]")
    elif type(value) not in _SAVABLE:
        raise SerializationError(
            f"{name} is a {type(value).__name__}, which cannot be saved with a pipeline: give what it stands for, as "
            "texts, numbers, lists and dictionaries, or leave it out and set it after loading"
        )


_SAVABLE = (str, int, float, bool, type(None))


def check_documents(documents: Any) -> None:
    """Refuse what is no list of documents.

    Raises:
        TypeError: The message says what was given, and where.
    """
    if not isinstance(documents, Sequence) or isinstance(documents, str):
        raise TypeError(f"documents must be a list of Document, but got a {type(documents).__name__}")
    for at, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(f"documents[{at}] must be a Document, but got a {type(document).__name__}")
