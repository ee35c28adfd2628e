"""The errors that a user can mend."""

import errno
import os


class AVQAError(Exception):
    """Bad input. The message names the file, the field and the remedy; the command line prints it as it is."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether this or what led to it is a lack of memory, of a GPU or of the machine.

    PyTorch has an error of its own for a GPU (told by its name, so that PyTorch need not be imported) and none for the
    machine's memory.
    """
    if error is None:
        return False
    named = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate" in str(error)
    return named or isinstance(error, MemoryError) or out_of_memory(error.__context__)


def forbidden(error: BaseException) -> bool:
    """Whether a file may not be read or written: permissions, a file system that is read only, or a file where a folder
    should be and the other way round."""
    numbers = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
    return isinstance(error, OSError) and error.errno in numbers


def out_of_space(error: BaseException | None) -> bool:
    """Whether this or what led to it is a full disk; not every library says so by an OSError with its number."""
    if error is None:
        return False
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    named = any(os.strerror(number) in str(error) for number in numbers)
    return named or getattr(error, "errno", None) in numbers or out_of_space(error.__context__)
