"""Memory that the C library would keep for itself: a small board needs it more.

glibc gives each thread an arena of its own, and returns what is free at an arena's top only for the first
one. So a single import of ten megabytes would leave a thread twenty megabytes larger for good. Other C
libraries have neither of the two functions, and less need of them.
"""

import ctypes

_M_ARENA_MAX = -8


def share_one_arena() -> None:
    """Let all threads share one arena; to be called before there are any. They take turns anyway."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return what is free to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
