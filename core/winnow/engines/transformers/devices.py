"""What PyTorch runs on: a GPU of any make (CUDA, ROCm, Apple's mps, Intel's xpu), or the CPU."""

from typing import Any

import torch

from winnow.errors import ConfigurationError


def chosen_device(given: Any) -> torch.device:
    """The device of the setting `device`; by default PyTorch's accelerator if there is one. It takes no memory there.

    Raises:
        ConfigurationError: PyTorch has no such device here.
    """
    if given is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(given)
        count = torch.get_device_module(device).device_count()
    except (RuntimeError, TypeError):
        raise ConfigurationError(
            f"device must be one that PyTorch {torch.__version__} can use, such as cpu or cuda:1, but got {given!r}"
        ) from None
    if (device.index or 0) >= count:
        raise ConfigurationError(
            f"device={str(device)!r} is not there: PyTorch {torch.__version__} finds {count} of type {device.type!r}"
        )
    return device


def device_name(given: Any) -> str:
    """The name of the setting's device: a GPU's model where PyTorch tells it."""
    device = torch.device(given) if given else chosen_device(None)
    name: Any = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name else str(device)


def free_unused(device: torch.device) -> None:
    """Give memory that PyTorch keeps for later back to the device."""
    empty: Any = getattr(torch.get_device_module(device), "empty_cache", None)
    if empty:
        empty()
