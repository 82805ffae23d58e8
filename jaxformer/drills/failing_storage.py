"""A library that makes writing to a folder fail, for processes on Linux that are started with it (`LD_PRELOAD`)."""

import os
import shutil
import subprocess
from pathlib import Path

UNDER, FAULT = "JAXFORMER_DRILL_UNDER", "JAXFORMER_DRILL_FAULT"
"""Names of the environment variables with the folder, and with the path of the file that contains the current fault."""
FAULTS = {"full": "no space left on device", "failing": "input/output error", "read-only": "read-only file system"}
"""Maps the faults that can be written to the file to the messages of the operating system. Another one is `slow`: each
write takes `SLOW_MS` milliseconds. Without the file, nothing fails.
"""
SLOW_MS = 50

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

static int fault(const char *path) {
  const char *under = getenv("JAXFORMER_DRILL_UNDER"), *control = getenv("JAXFORMER_DRILL_FAULT");
  char mode[16] = {0};
  if (!under || !control || strncmp(path, under, strlen(under))) return 0;
  int file = NEXT(int (*)(const char *, int, ...), "open")(control, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  if (read(file, mode, sizeof mode - 1) < 0) mode[0] = 0;
  close(file);
  if (!strncmp(mode, "full", 4)) return ENOSPC;
  if (!strncmp(mode, "failing", 7)) return EIO;
  if (!strncmp(mode, "read-only", 9)) return EROFS;
  if (!strncmp(mode, "slow", 4)) {
    struct timespec wait = {0, SLOW_MS * 1000000L};
    nanosleep(&wait, NULL);
  }
  return 0;
}

static int fault_of(int file) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return fault(path);
}

static int fault_beside(int folder, const char *path) {
  char whole[PATH_MAX], found[PATH_MAX];
  if (path[0] != '/' && folder != AT_FDCWD) return fault_of(folder);
  strncpy(whole, path, sizeof whole - 1);
  whole[sizeof whole - 1] = 0;
  char *end = strrchr(whole, '/');
  if (!end) strcpy(whole, ".");
  else if (end == whole) whole[1] = 0;
  else *end = 0;
  return realpath(whole, found) ? fault(found) : 0;
}

#define REFUSE(problem) do { int number = problem; if (number) { errno = number; return -1; } } while (0)

ssize_t write(int file, const void *data, size_t size) {
  REFUSE(fault_of(file));
  return NEXT(ssize_t (*)(int, const void *, size_t), "write")(file, data, size);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  REFUSE(fault_of(file));
  return NEXT(ssize_t (*)(int, const void *, size_t, off_t), "pwrite")(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
  REFUSE(fault_of(file));
  return NEXT(ssize_t (*)(int, const void *, size_t, off64_t), "pwrite64")(file, data, size, at);
}
ssize_t writev(int file, const struct iovec *data, int count) {
  REFUSE(fault_of(file));
  return NEXT(ssize_t (*)(int, const struct iovec *, int), "writev")(file, data, count);
}
ssize_t pwritev(int file, const struct iovec *data, int count, off_t at) {
  REFUSE(fault_of(file));
  return NEXT(ssize_t (*)(int, const struct iovec *, int, off_t), "pwritev")(file, data, count, at);
}
int fsync(int file) {
  REFUSE(fault_of(file));
  return NEXT(int (*)(int), "fsync")(file);
}
int mkdir(const char *path, mode_t mode) {
  REFUSE(fault_beside(AT_FDCWD, path));
  return NEXT(int (*)(const char *, mode_t), "mkdir")(path, mode);
}
int rename(const char *from, const char *to) {
  REFUSE(fault_beside(AT_FDCWD, to));
  return NEXT(int (*)(const char *, const char *), "rename")(from, to);
}
#define OPEN(name)                                                        \
  int name(const char *path, int flags, ...) {                            \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = va_arg(rest, mode_t);                                   \
    va_end(rest);                                                         \
    if (flags & (O_CREAT | O_WRONLY | O_RDWR)) REFUSE(fault_beside(AT_FDCWD, path)); \
    return NEXT(int (*)(const char *, int, ...), #name)(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                      \
  int name(int folder, const char *path, int flags, ...) {                \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = va_arg(rest, mode_t);                                   \
    va_end(rest);                                                         \
    if (flags & (O_CREAT | O_WRONLY | O_RDWR)) REFUSE(fault_beside(folder, path)); \
    return NEXT(int (*)(int, const char *, int, ...), #name)(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)
"""


def library(folder: Path) -> Path | None:
    """Compiles the library in a folder, and returns its path. None if this machine has no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or os.uname().sysname != "Linux":
        return None
    source, built = folder / "failing_storage.c", folder / "failing_storage.so"
    source.write_text(_SOURCE, encoding="utf-8")
    command = [compiler, "-shared", "-fPIC", "-O1", f"-DSLOW_MS={SLOW_MS}", "-o", str(built), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, check=False)
    return None if done.returncode else built


def environment(built: Path, under: Path, control: Path) -> dict[str, str]:
    """Returns the environment variables of a process whose writes to `under` fail as long as the file `control`
    contains a fault.
    """
    return {"LD_PRELOAD": str(built), UNDER: str(under.resolve()), FAULT: str(control)}
