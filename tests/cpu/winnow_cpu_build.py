"""Makes vLLM's CPU build run in full and without noise in the development environment; `make` installs it there.

vLLM imports Qwen3-VL only with torchvision. Package indexes hold its CUDA builds, whose compiled operators do not load
beside a CPU build of torch. Then it fails to import, because it adds to the operators `nms` and `qnms`, which nothing
has declared. Image processing needs none of them, so they are declared here, without an implementation.

xgrammar brings triton, of which vLLM's CPU build makes no use. Each of vLLM's processes warns of that, before it has
read how much it is to log.

Both is done when the package in question is first imported, in every process of the environment, because vLLM starts
processes of its own.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_libraries: list[object] = []  # a declaration lasts as long as its library


def _declare_operators() -> None:
    import torch

    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "FRAGMENT")
        arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            library.define(operator + arguments)
        _libraries.append(library)


def _say_nothing_of_triton() -> None:
    import logging

    logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)


class _BeforeImport(MetaPathFinder):
    """Finds nothing, and does what is to be done before a package is imported."""

    def __init__(self) -> None:
        self._to_do = {"torchvision": _declare_operators, "vllm": _say_nothing_of_triton}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if (do := self._to_do.pop(fullname, None)) is not None:
            do()
        return None  # the usual finders go on


sys.meta_path.insert(0, _BeforeImport())
