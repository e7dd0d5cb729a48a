"""What restricted reading works with: a budget of memory, and values that cannot do anything."""

from collections.abc import Callable

_MEBIBYTE = 2**20
#: Bytes of memory that any file may take, however small it is, and more for each of its own bytes.
BASE_MEMORY = 64 * _MEBIBYTE
MEMORY_PER_BYTE = 8


class Malformed(ValueError):
    """What is wrong with some bytes; the caller adds the name of the file and what to do.

    Attributes:
        advice: what to do about just this, or "" for what is usual.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class Budget:
    """Bytes that a file may still make us allocate; in all, a few times its own size.

    Args:
        size: bytes of the file, or of the pickled value.
    """

    def __init__(self, size: int) -> None:
        self.limit = MEMORY_PER_BYTE * size + BASE_MEMORY
        self.left = self.limit

    def charge(self, amount: int) -> None:
        """Takes `amount` bytes off; raises `Malformed` when there are not so many left."""
        self.left -= amount
        if self.left < 0:
            raise Malformed(
                f"content that would take more than {self.limit // _MEBIBYTE} MiB of memory, many "
                "times the size of the file"
            )


class UnknownGlobal:
    """Stands for a global that is not admitted, or for what calling it would have made."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


class AllowedFunction(UnknownGlobal):
    """An admitted global: `call` stands in for it, on the tuple of arguments.

    One that is left over in a result was never called, and counts as foreign there.
    """

    __slots__ = ("call",)

    def __init__(self, name: str, call: Callable[[tuple[object, ...]], object]) -> None:
        super().__init__(name)
        self.call = call


class Unbuilt:
    """A value that is complete only once the pickle has given its state (BUILD)."""

    __slots__ = ("finish", "memo_keys")

    def __init__(self, finish: Callable[[object], object]) -> None:
        self.finish = finish
        self.memo_keys: list[int] = []


def printable(text: str) -> str:
    """`text` from a file, cut and escaped so that it can be shown on a terminal."""
    start = text if len(text) <= 120 else text[:117] + "..."
    return ascii(start)[1:-1]
