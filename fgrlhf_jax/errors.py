"""The one exception that is meant for the user's eyes."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the file, line or field and says what to do. The commands
    in ``launch/`` print it without a traceback and exit with status 2.
    """
