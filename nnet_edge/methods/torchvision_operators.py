"""Import of torchvision that also works where its compiled operators do not load; the only one.

torchvision's wheels bring operators compiled against one build of torch. Beside another build (a CPU wheel of torch, say)
they do not load, and the import fails with 'operator torchvision::nms does not exist' although the networks need none of
them. Only then the two names that the import looks for are declared, and it is tried again.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch

_DETECTION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # torch forgets the declarations with the object


def import_torchvision() -> ModuleType:
    """The module torchvision, imported; call it before importing timm, which imports torchvision itself."""
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # left half-made by the import that failed
        _library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _library.define(operator + _DETECTION)
        import torchvision
    return torchvision
