"""Freed memory is kept, so that large tensors need no new pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from wmgym import allocator

FAULTS = """
import resource, sys
import torch
from torch import nn
from wmgym.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 64))
batch = torch.randn(50_000, 64)


def learn(updates):
    for _ in range(updates):
        net(batch).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


print(learn(3) * -1 + learn(5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_updates_with_large_tensors_need_few_new_pages() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 4 * faults("kept") < faults("as it is")


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not allocator.keep_freed_memory()
