from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.data.parts import part_for_search, part_for_test


@given(st.integers(3, 10_000))
def test_three_parts_are_all_windows_and_none_is_empty(count):
    tests = part_for_test(count)
    search = part_for_search(count, tests.start)
    assert 0 < search.start < search.stop == tests.start < tests.stop == count
    for part in (search, tests):
        assert abs(len(part) - count / 5) <= 0.8


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_what_is_searched_ends_before_the_test_windows(count, before):
    before = min(before, count)
    search = part_for_search(count, before)
    assert search.stop == before and (len(search) > 0) == (before > 0)


def test_a_short_text_gives_a_test_window_if_it_must():
    assert [*part_for_test(1)] == [0] and not part_for_test(1, reported=False) and not part_for_test(0, reported=False)
