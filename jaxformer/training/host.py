"""Settings of the process: memory allocation on the host, for training on the CPU, and the cache of compiled programs.

XLA on CPU allocates a step's buffers again at every step. The operating system zeroes large buffers page by page, which
takes a sixth of the step's time with small pages. Huge pages are faster.
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


def start_jax() -> None:
    """Configures JAX to cache compiled programs on disk, in JAX_COMPILATION_CACHE_DIR or by default in the user's cache
    directory.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "jaxformer", "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
