"""Readers of foreign bytes refuse damaged and hostile input with their own errors. `hostile.py` tries many more."""

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", hostile.targets())
def test_hostile_input_is_refused_with_one_line(name, tmp_path_factory):
    fuzzer = hostile.Fuzzer(name, tmp_path_factory.mktemp("fuzz"))

    @settings(max_examples=25, database=None, derandomize=True)
    @given(st.integers(0, 10**6))
    def check(seed):
        fuzzer.run(seed)

    check()
    assert fuzzer.slowest < hostile.LONGEST
