"""The one exception of the examples."""


class UserError(Exception):
    """Something the person at the command line can put right; shown without a traceback."""
