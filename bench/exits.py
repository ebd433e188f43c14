"""Exit statuses of the command line."""

OK = 0
SOME_FAILED = 1
USAGE = 2
NOTHING_LOADED = 3
BAD_BOARD = 4
INTERRUPTED = 130
