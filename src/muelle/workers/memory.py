"""Slot memory: anonymous, sealed memfds that the server makes and both sides map.

The server creates every region and seals its size, so that a hostile worker cannot shrink it under
the server's feet (which would be a SIGBUS), and there is no name in /dev/shm to guess or to leak.
Not for layout: who puts what where is the channel's business.
"""

from __future__ import annotations

import fcntl
import mmap
import os

PAGE = mmap.PAGESIZE
ALIGNMENT = 64


def aligned(nbytes: int) -> int:
    """Round up to the cache line, where every tensor of a slot begins."""
    return (nbytes + ALIGNMENT - 1) & -ALIGNMENT


class Region:
    """One mapped memfd. Owned by whoever made it; `close` gives descriptor and mapping back."""

    __slots__ = ("_map", "fd", "size", "view")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, nbytes: int) -> Region:
        """Make a sealed region of at least nbytes. Pages cost memory only once they are touched."""
        size = max(PAGE, (nbytes + PAGE - 1) & -PAGE)
        fd = os.memfd_create("muelle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(
                fd,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
            )
            return cls(fd, size)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def receive(cls, fd: int) -> Region:
        """Map a region that came over the channel."""
        return cls(fd, os.fstat(fd).st_size)

    def close(self) -> None:
        """Give the descriptor back; the mapping goes when the last array over it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            # An array still looks at it; the memory is freed with that array.
            pass
