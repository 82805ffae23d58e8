"""Memory allocation settings of the host, for training on the CPU.

XLA on CPU allocates a step's buffers again at every step. The kernel zeroes large buffers page by page, which takes a
sixth of the step's time with small pages. Huge pages are faster.
"""

import os
import platform
import sys

HUGE_PAGES = "glibc.malloc.hugetlb=1"
SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"


def restart_with_huge_pages() -> None:
    """Restarts this program with huge pages if the C library supports them, otherwise does nothing.

    glibc reads the setting only when a process starts, so this must be called at the very beginning of a program.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables or platform.libc_ver()[0] != "glibc" or not sys.executable:
        return
    try:
        with open(SETTING, encoding="ascii") as file:
            if "[madvise]" not in file.read():
                return  # The system setting is "always" or "never", so the restart would change nothing.
    except OSError:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, HUGE_PAGES]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
