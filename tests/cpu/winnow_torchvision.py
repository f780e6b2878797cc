"""Lets torchvision import beside a CPU build of torch, for the development environment; `make` installs it there.

vLLM imports Qwen3-VL only with torchvision. Package indexes hold its CUDA builds, whose compiled operators do not load
beside a CPU build of torch. Then it fails to import, because it adds to the operators `nms` and `qnms`, which nothing
has declared. Image processing needs none of them, so they are declared here, without an implementation, when
torchvision is first imported; in every process of the environment, because vLLM imports models in processes of its own.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_libraries: list[object] = []  # a declaration lasts as long as its library


class _Declare(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None:
            library = torch.library.Library("torchvision", "FRAGMENT")
            arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            for operator in ("nms", "qnms"):
                library.define(operator + arguments)
            _libraries.append(library)
        return None  # the usual finders go on


sys.meta_path.insert(0, _Declare())
