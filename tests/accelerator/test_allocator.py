"""Memory that was freed is used again without asking the kernel for it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys, torch
from megatron_soaes.accelerator.allocator import keep_freed_memory
assert sys.argv[1] == "given back" or keep_freed_memory()

def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

# The C library needs some rounds until what lies between the tensors leaves room for a whole one.
for tensor in range(40):
    before = page_faults()
    torch.ones(64 * 2**20, dtype=torch.uint8)
print(page_faults() - before)
"""


def page_faults_of_the_last_tensor(policy: str) -> int:
    command = [sys.executable, "-c", PROGRAM, policy]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_freed_tensor_leaves_its_pages_to_the_next() -> None:
    assert page_faults_of_the_last_tensor("kept") < 16
    # 32 pages if the kernel deals in huge ones, 16384 if not.
    assert page_faults_of_the_last_tensor("given back") >= 32
