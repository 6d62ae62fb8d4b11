"""Whether bfloat16 is worth asking for."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def use_bfloat16(asked: bool, x: Tensor) -> bool:
    """Whether layers over `x` compute in bfloat16: where it was asked for and the device has instructions for it."""
    return asked and multiplies_bfloat16(x.device.type)


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Whether devices of this type multiply bfloat16 themselves; it does not change while the process lives.

    A processor without the instructions does as it is told, many times slower than in float32.
    """
    if device != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
