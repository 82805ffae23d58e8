"""This process's memory on the host, where the CPU is the device.

XLA on CPU allocates a step's buffers anew each time. Large ones come from the kernel, small page by zeroed small page,
and go back to it: up to half of a step's time. Huge pages are quicker to get, and memory that is kept need not be got.
"""

import ctypes
import functools
import math
import mmap
import os
import platform
import sys

HUGE_PAGES = "glibc.malloc.hugetlb=1"
SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGE, NEVER = 32 << 20, -1
"""Bytes; from `LARGE` on an allocation is the kernel's own again, as large as glibc lets that limit be."""
GROWTH, SPARED = 2, 1 << 30
"""How many times its first size the process may have, and bytes beside, before freed memory is no longer kept."""


def restart_with_huge_pages() -> None:
    """Starts this program anew where the C library would then take its memory in huge pages, else does nothing.

    glibc reads that setting when a process begins, and at no other time. For the very beginning of a program.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or platform.libc_ver()[0] != "glibc" or not sys.executable:
        return
    try:
        with open(SETTING, encoding="ascii") as file:
            if "[madvise]" not in file.read():
                return  # All programs have them, or none has.
    except OSError:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, HUGE_PAGES]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@functools.cache
def keep_freed_memory() -> None:
    """Tells the C library to keep freed memory for the next step instead of giving it back.

    Each thread may have an allocator of its own for what is small: in one with a step's buffers, small things would lie
    where the next step's would have found room. Does nothing where the C library is not glibc.
    """
    _set_malloc({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER})


class KeptMemory:
    """Sees to it that kept memory is used again: its holes may be a little too small, step after step."""

    def __init__(self):
        self._steps, self._most = 0, math.inf

    def check(self) -> None:
        """Before each step: keeps freed memory no longer where the process is much larger than after its first."""
        self._steps += 1
        if self._steps == 2:
            self._most = GROWTH * resident() + SPARED
        elif resident() > self._most:
            release_freed_memory()
            self._most = math.inf


@functools.cache
def release_freed_memory() -> None:
    """Gives freed memory back to the kernel, now and from now on."""
    _set_malloc({M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: 2 * LARGE})
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _set_malloc(values: dict[int, int]) -> None:
    if (libc := _glibc()) is not None:
        for name, value in values.items():
            libc.mallopt(name, value)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
