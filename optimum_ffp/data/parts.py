"""Which windows of a text without splits are for calibration, search and test: three parts, in this order."""

# Shares of the windows that are for the search and for the test. The others are for calibration.
SEARCH_SHARE, TEST_SHARE = 0.2, 0.2
# Part of the tokens that is left out between windows of rows that were tokenised alone, which have somewhat other
# tokens than one text, and windows of the text.
MARGIN = 0.01


def part_for_test(count: int, reported: bool = True) -> range:
    """Return the indices of the test windows.

    Args:
        count: Number of all windows of their length.
        reported: Whether there must be one.
    """
    return range(count - max(int(reported), round(TEST_SHARE * count)), count)


def part_for_search(count: int, before: int) -> range:
    """Return the indices of the search windows; those before them are for calibration.

    Args:
        count: Number of all windows of their length.
        before: Number of those that end before the test windows, which may have another length.
    """
    return range(max(0, before - max(1, round(SEARCH_SHARE * count))), before)
