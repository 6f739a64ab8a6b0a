"""A lock that processes of one or several machines share through a file."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, 524)  # Lustre, DVS, some NFS


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file ``path``, gone afterwards; raises filelock.Timeout if it may not wait.

    Where the file system has no locks, the existence of a second file is the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = acquired(FileLock(path), wait) or acquired(SoftFileLock(f"{path}.soft"), wait)
    if lock is None:
        raise OSError(f"{path}: expected a folder in which files can be locked, found none")
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps an open file
            path.unlink(missing_ok=True)  # filelock notices a file that went before its lock came
        lock.release()


def acquired(lock: BaseFileLock, wait: bool) -> BaseFileLock | None:
    """The lock, held; None where the file system does not know this kind."""
    try:
        lock.acquire(blocking=wait, poll_interval=0.5)
    except OSError as error:  # Timeout is one without a number
        if error.errno not in NO_FLOCK:
            raise
        return None
    return lock
