"""A program that restarts itself, in processes of its own."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")

RESTART = """
import os, sys
from jaxformer.training import host
host.SETTING = {setting!r}
host.restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES", "none"), sys.argv[1:], os.getpid())
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
def test_a_program_restarts_once_with_huge_pages_and_only_where_programs_may_request_them(
    tmp_path, setting, before, after
):
    file = tmp_path / "enabled"
    if setting is not None:
        file.write_text(setting)
    output = run(RESTART.format(setting=str(file)), "a", "b c", **({"GLIBC_TUNABLES": before} if before else {}))
    assert output == f"{after} ['a', 'b c'] the same process"
