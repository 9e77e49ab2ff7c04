"""A module that is imported when a function runs, and counts."""

count = 0


def called():
    """How often this was called in this process."""
    global count
    count += 1
    return count
