"""Memory that a training keeps from step to step, in huge pages.

A step takes and gives back a gigabyte in tensors of tens of megabytes. glibc asks the kernel for each anew, and every page of
4 KiB is cleared and mapped when it is first written: a tenth of a step's time. So freed memory stays with the process while
it trains, and the part of the heap that the next tensors come from is advised to be of 2 MiB pages. Elsewhere than on glibc
nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
from collections.abc import Iterator

AHEAD = 1 << 30  # bytes of address space, not of memory: what is never used is never mapped
HUGE_PAGE = 2 << 20
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt, malloc.h
USUAL = {TRIM_THRESHOLD: 64 << 20, MMAP_MAX: 1 << 16}
KEEPING = {TRIM_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Keep what is freed; give it back to the kernel at the end."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for option, value in KEEPING.items():
        libc.mallopt(option, value)
    try:
        advise_huge_pages(libc)
        yield
    finally:
        for option, value in USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(ctypes.c_size_t(0))


def advise_huge_pages(libc: ctypes.CDLL) -> None:
    """Let the next AHEAD bytes of the heap be of huge pages, where the kernel has room for them."""
    libc.malloc.restype = ctypes.c_void_p
    start = libc.malloc(ctypes.c_size_t(AHEAD))
    if not start:  # a limit on address space
        return
    first = -(-start // HUGE_PAGE) * HUGE_PAGE
    length = (start + AHEAD - first) // HUGE_PAGE * HUGE_PAGE
    libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    libc.free(ctypes.c_void_p(start))
