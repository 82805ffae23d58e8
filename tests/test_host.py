"""The C library's memory, in processes of its own: what is set there cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")

RESTART = """
import os, sys
from jaxformer import host
host.SETTING = {setting!r}
host.restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", "none"), sys.argv[1:], os.getpid())
"""
KEEP = """
import numpy
from jaxformer import host

host.SPARED = 100 << 20
host.keep_freed_memory()
kept, sizes = host.KeptMemory(), []

def work(megabytes):
    numpy.ones(megabytes << 17)
    sizes.append(host.resident() >> 20)
    kept.check()
    sizes.append(host.resident() >> 20)

for megabytes in {megabytes}:
    work(megabytes)
print(*sizes)
"""


def run(program: str, *arguments: str, **environment: str) -> str:
    settings = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | environment
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return output.replace(str(process.pid), "the same process").strip()


@pytest.mark.parametrize(
    ("setting", "before", "after"),
    [
        ("always [madvise] never", "", "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.perturb=0", "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=2", "glibc.malloc.hugetlb=2"),
        ("[always] madvise never", "", "none"),
        ("always madvise [never]", "", "none"),
        (None, "", "none"),
    ],
)
def test_a_program_begins_anew_with_huge_pages_once_and_only_where_they_are_for_the_asking(
    tmp_path, setting, before, after
):
    file = tmp_path / "enabled"
    if setting is not None:
        file.write_text(setting)
    output = run(RESTART.format(setting=str(file)), "a", "b c", **({"GLIBC_TUNABLES": before} if before else {}))
    assert output == f"{after} ['a', 'b c'] the same process"


def sizes(*megabytes: int) -> list[int]:
    return list(map(int, run(KEEP.format(megabytes=megabytes)).split()))


def test_freed_memory_is_kept():
    _, small, _, second, _, third = sizes(10, 300, 310)
    assert second - small > 250
    assert third - second < 60


def test_freed_memory_is_given_back_once_a_process_is_much_larger_than_after_its_first_step():
    *_, second, before, after, again, end = sizes(10, 10, 900, 900)
    assert before - second > 800
    assert after - second < 100  # And from then on:
    assert again - second < 100
    assert end - second < 100
