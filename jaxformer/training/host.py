"""This process's memory on the host, where the CPU is the device.

XLA on CPU allocates a step's buffers again each time. Large ones come from the kernel, small page by zeroed small page,
and go back to it: a sixth of a step's time. Huge pages are quicker to get.
"""

import os
import platform
import sys

HUGE_PAGES = "glibc.malloc.hugetlb=1"
SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"


def restart_with_huge_pages() -> None:
    """Restarts this program if the C library will then take its memory in huge pages, else does nothing.

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
