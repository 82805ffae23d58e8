"""This process's memory on the host, where the CPU is the device."""

import ctypes
import functools
import mmap
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX, MADV_HUGEPAGE = -1, -4, -8, 14
RESERVED = 4 << 30


@functools.cache
def keep_freed_memory() -> None:
    """Tells the C library to keep freed memory for the next step, in huge pages, instead of giving it back.

    XLA on CPU allocates a step's buffers anew each time. Large ones would come from the kernel, small page by zeroed
    small page, and go back to it: up to a third of a step's time. Threads that run already may have allocators of their
    own, which this does not reach: call it before jax starts its threads.

    It reserves addresses, not memory: a page that nobody writes to takes none. Does nothing where the C library is not
    glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # Never.
    mallopt(M_ARENA_MAX, 1)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if block := libc.malloc(RESERVED):
        first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(first, RESERVED - mmap.PAGESIZE, MADV_HUGEPAGE)
        libc.free(block)
