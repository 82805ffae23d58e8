"""The one exception for what a person can put right."""


class InputError(ValueError):
    """Something given from outside is wrong: a field, a file, a folder.

    The message is one line that says what is wrong, where, and what would be right. The command line
    prints it without a traceback and exits with status 2.
    """
