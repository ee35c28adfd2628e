"""The errors that a user can mend."""


class AVQAError(Exception):
    """Bad input. The message names the file, the field and the remedy; the command line prints it as it is."""
