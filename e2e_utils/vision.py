"""torchvision beside a torch that was built for CPU only."""

import importlib
import sys
from functools import cache
from types import ModuleType

import torch


@cache
def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    A torchvision built for CUDA beside a CPU torch stops with "operator torchvision::nms does not
    exist". Declaring the two operators that its Python code registers kernels for lets it load:
    models, transforms, datasets and utils work, ``ops.nms`` and ``torchvision.io`` do not.
    Libraries that import torchvision themselves (timm) work after this call.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision = importlib.import_module("torchvision")
    torchvision.declared_operators = library  # they last as long as this object
    return torchvision
