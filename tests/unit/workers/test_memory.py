"""Slot memory: sealed against its other user, and given back."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from muelle.workers.memory import ALIGNMENT, Region, aligned


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1, mmap.PAGESIZE - 1, mmap.PAGESIZE * 2, 10_000_000])
def test_nobody_can_change_the_size(size: int) -> None:
    """Shrinking would crash the other side with SIGBUS: the seal refuses it, growing too."""
    region = Region.create(size)
    try:
        for wanted in (0, region.size - 1, region.size + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(region.fd, wanted)
        assert os.fstat(region.fd).st_size == region.size >= max(size, 1)
    finally:
        region.close()


def test_an_unsealed_memfd_can_be_shrunk() -> None:
    """Negative control: without the seal the same call works."""
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4096)
        os.ftruncate(fd, 0)
        assert os.fstat(fd).st_size == 0
    finally:
        os.close(fd)


def test_the_seal_cannot_be_taken_off() -> None:
    """Nor another be added."""
    import fcntl

    region = Region.create(1)
    try:
        with pytest.raises(PermissionError):
            fcntl.fcntl(region.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        region.close()


def test_both_sides_see_the_same_bytes() -> None:
    """What one mapping writes the other reads, with no copy."""
    ours = Region.create(100)
    theirs = Region.receive(os.dup(ours.fd))
    try:
        ours.view[:5] = b"hello"
        assert bytes(theirs.view[:5]) == b"hello"
        assert theirs.size == ours.size
    finally:
        ours.close()
        theirs.close()


def test_closing_gives_everything_back() -> None:
    """Twice is once; an array that still looks at the memory keeps it until the array goes."""
    before = descriptors()
    region = Region.create(4096)
    region.close()
    region.close()
    assert descriptors() == before
    region = Region.create(4096)
    array = np.frombuffer(region.view[:8], dtype=np.uint8)
    region.close()
    assert array.tolist() == [0] * 8
    del array, region
    assert descriptors() == before


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 10**12 + 1])
def test_alignment(nbytes: int) -> None:
    """Rounded up to the cache line, never down, by less than one line."""
    assert aligned(nbytes) % ALIGNMENT == 0
    assert 0 <= aligned(nbytes) - nbytes < ALIGNMENT
