"""Whether bfloat16 is worth asking for."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def use_bfloat16(asked: bool, x: Tensor) -> bool:
    """Whether layers over `x` compute in bfloat16: where it was asked for and the device has instructions for it.

    A processor without them does as it is told, and takes about a hundred times as long as in float32.
    """
    return asked and _multiplies_bfloat16(x.device.type)


@cache
def _multiplies_bfloat16(device: str) -> bool:
    """A fact of the machine, which does not change while the process lives."""
    if device != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
