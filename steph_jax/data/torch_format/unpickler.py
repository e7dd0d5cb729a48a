"""A pickle machine that cannot run anything: it builds plain containers and nothing else.

Pickle is a small program for a stack machine, and `pickle.Unpickler` runs it with all of Python at
its disposal; even with `find_class` locked down, its C code allocates whatever a length field
asks for and recurses as deep as the file likes. This machine knows only the opcodes that PyTorch,
NumPy and pickle protocols 2 to 5 write for tensors in plain containers. Lengths are checked
against the bytes that are there, every allocation is charged to a `Budget`, and a global is
looked up in a given table of stand-ins (`AllowedFunction`); any other becomes an inert
`UnknownGlobal`, which absorbs calls, state and items and is never called.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping

from steph_jax.data.torch_format.containers import KeyCheck, check_result
from steph_jax.data.torch_format.placeholders import (
    AllowedFunction,
    Budget,
    Malformed,
    Unbuilt,
    UnknownGlobal,
    printable,
)

#: Bytes of an integer; the longest that PyTorch writes is the magic number of its old format.
MAX_INT_BYTES = 16


def run(
    data: memoryview,
    start: int,
    admitted: Mapping[str, UnknownGlobal],
    persistent: Callable[[object], object],
    budget: Budget,
) -> tuple[object, int]:
    """Runs the pickle at `data[start:]`.

    Args:
        data: read-only bytes; binary strings of the result are views of it.
        start: offset of the pickle.
        admitted: stand-ins by the full name of the global they stand for.
        persistent: value of a persistent id.
        budget: charged for everything that is made.

    Returns:
        the value (None, bool, int, float, str, memoryview for binary strings, tuple, list, dict,
        OrderedDict, set, `UnknownGlobal`, and whatever the stand-ins make) and the offset after it.

    Raises:
        Malformed: anything that is not such a pickle; the globals that are not admitted are named.
    """
    machine = _Machine(data, start, admitted, persistent, budget)
    try:
        value = machine.run()
        check_result(value)
    except Malformed as error:
        if machine.foreign:
            names = ", ".join(list(machine.foreign)[:5])
            raise Malformed(f"{error} (in a pickle that names {names})") from None
        raise
    return value, machine.position


class _Machine:
    """One run over one pickle: a stack, the stacks set aside by marks, and the memo."""

    def __init__(
        self,
        data: memoryview,
        start: int,
        admitted: Mapping[str, UnknownGlobal],
        persistent: Callable[[object], object],
        budget: Budget,
    ) -> None:
        self.data = data
        self.position = start
        self.admitted = admitted
        self.persistent = persistent
        self.budget = budget
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.foreign: dict[str, None] = {}
        self.keys = KeyCheck()

    def run(self) -> object:
        while True:
            code = self.take(1)[0]
            if code == _STOP:
                return self.pop()
            step = _STEPS.get(code)
            if step is None:
                raise Malformed(
                    f"pickle opcode {bytes([code])!r} at byte {self.position - 1}, which tensors "
                    "in plain containers do not need"
                )
            action, cost = step
            self.budget.charge(cost)
            action(self)

    # Bytes of the pickle.

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            raise Malformed(
                f"a pickle that wants {count} bytes at byte {self.position} of {len(self.data)}"
            )
        view = self.data[self.position : end]
        self.position = end
        return view

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, count: int) -> str:
        # A character takes up to 4 bytes in memory.
        self.budget.charge(4 * count)
        return _decoded(self.take(count))

    def line(self) -> str:
        end = bytes(self.data[self.position : self.position + 512]).find(b"\n")
        if end < 0:
            raise Malformed(f"a pickle without an end of line after byte {self.position}")
        line = _decoded(self.take(end))
        self.take(1)
        return line

    # The stack.

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        if not self.stack:
            raise Malformed(f"a pickle with an empty stack at byte {self.position}")
        return self.stack.pop()

    def top(self) -> object:
        if not self.stack:
            raise Malformed(f"a pickle with an empty stack at byte {self.position}")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            raise Malformed(f"a pickle without a mark at byte {self.position}")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def push_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def memoize(self, key: int) -> None:
        # Picklers number what they store; others could choose numbers that fall on one place of
        # the table.
        if key > self.position:
            raise Malformed(f"a pickle that numbers a value {key} at byte {self.position}")
        value = self.top()
        if isinstance(value, Unbuilt):
            value.memo_keys.append(key)
        self.memo[key] = value

    def recall(self, key: int) -> None:
        if key not in self.memo:
            raise Malformed(f"a pickle that recalls an unknown value at byte {self.position}")
        self.push(self.memo[key])

    # Globals, calls, state.

    def look_up(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a global whose name is no text")
        full_name = f"{module}.{name}"
        allowed = self.admitted.get(full_name)
        if allowed is None:
            allowed = UnknownGlobal(printable(full_name))
            self.foreign[allowed.name] = None
        self.push(allowed)

    def call(self) -> None:
        arguments = self.pop()
        function = self.pop()
        if not isinstance(function, UnknownGlobal) or not isinstance(arguments, tuple):
            raise Malformed(f"a call of something that is no global at byte {self.position}")
        self.push(_called(function, arguments))

    def make_new(self) -> None:
        """NEWOBJ, NEWOBJ_EX: instances of classes, none of which are admitted."""
        instance = self.pop()
        if not isinstance(instance, UnknownGlobal):
            raise Malformed(f"an instance of something that is no class at byte {self.position}")
        self.push(UnknownGlobal(instance.name))

    def make_new_with_keywords(self) -> None:
        self.pop()
        self.pop()
        self.make_new()

    def make_new_with_arguments(self) -> None:
        self.pop()
        self.make_new()

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Unbuilt):
            value = target.finish(state)
            self.stack[-1] = value
            for key in target.memo_keys:
                self.memo[key] = value
        elif not isinstance(target, (UnknownGlobal, OrderedDict)):
            # An OrderedDict's state is attributes (a state dict's `_metadata`): not needed.
            raise Malformed(f"state for a {type(target).__name__} at byte {self.position}")

    def load_persistent(self) -> None:
        self.push(self.persistent(self.pop()))

    # Items of containers.

    def set_items(self, items: list[object]) -> None:
        target = self.top()
        if len(items) % 2:
            raise Malformed(f"a dict key without a value at byte {self.position}")
        self.budget.charge(64 * len(items))
        if isinstance(target, dict):
            for i in range(0, len(items), 2):
                target[self.keys.check(items[i])] = items[i + 1]
        elif not isinstance(target, UnknownGlobal):
            raise Malformed(f"items for a {type(target).__name__} at byte {self.position}")

    def set_item(self) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def extend(self, items: list[object]) -> None:
        target = self.top()
        self.budget.charge(16 * len(items))
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, UnknownGlobal):
            raise Malformed(f"items for a {type(target).__name__} at byte {self.position}")

    def add_items(self) -> None:
        items = self.pop_to_mark()
        target = self.top()
        self.budget.charge(128 * len(items))
        if isinstance(target, set):
            target.update(map(self.keys.check, items))
        elif not isinstance(target, UnknownGlobal):
            raise Malformed(f"items for a {type(target).__name__} at byte {self.position}")

    def push_int(self, width: int) -> None:
        if width > MAX_INT_BYTES:
            raise Malformed(f"an integer of {width} bytes at byte {self.position}")
        self.push(int.from_bytes(self.take(width), "little", signed=True))

    def check_protocol(self) -> None:
        protocol = self.unsigned(1)
        if not 2 <= protocol <= 5:
            raise Malformed(f"pickle protocol {protocol}, expected 2 to 5")

    def check_frame(self) -> None:
        length = self.unsigned(8)
        if length > len(self.data) - self.position:
            raise Malformed(f"a pickle frame of {length} bytes at byte {self.position}")


def _decoded(view: memoryview) -> str:
    try:
        return str(view, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("text that is not UTF-8") from None


def _called(function: UnknownGlobal, arguments: tuple[object, ...]) -> object:
    """What `function(*arguments)` stands for; foreign if any of them is."""
    if not isinstance(function, AllowedFunction):
        return UnknownGlobal(function.name)
    for argument in arguments:
        if type(argument) is UnknownGlobal:
            return UnknownGlobal(argument.name)
    return function.call(arguments)


_STOP = ord(".")

#: Action and cost in bytes of memory (what the value, its place on the stack and, for containers,
#: the final check of the result take) by opcode.
_STEPS: dict[int, tuple[Callable[[_Machine], None], int]] = {
    ord(code): step
    for code, step in {
        b"\x80": (_Machine.check_protocol, 0),
        b"\x95": (_Machine.check_frame, 0),
        b"N": (lambda m: m.push(None), 16),
        b"\x88": (lambda m: m.push(True), 16),
        b"\x89": (lambda m: m.push(False), 16),
        b"J": (lambda m: m.push_int(4), 48),
        b"K": (lambda m: m.push(m.unsigned(1)), 48),
        b"M": (lambda m: m.push(m.unsigned(2)), 48),
        b"\x8a": (lambda m: m.push_int(m.unsigned(1)), 64),
        b"G": (lambda m: m.push(struct.unpack(">d", m.take(8))[0]), 40),
        b"U": (lambda m: m.push(m.text(m.unsigned(1))), 96),
        b"T": (lambda m: m.push(m.text(m.unsigned(4))), 96),
        b"\x8c": (lambda m: m.push(m.text(m.unsigned(1))), 96),
        b"X": (lambda m: m.push(m.text(m.unsigned(4))), 96),
        b"\x8d": (lambda m: m.push(m.text(m.unsigned(8))), 96),
        b"C": (lambda m: m.push(m.take(m.unsigned(1))), 256),
        b"B": (lambda m: m.push(m.take(m.unsigned(4))), 256),
        b"\x8e": (lambda m: m.push(m.take(m.unsigned(8))), 256),
        b"\x96": (lambda m: m.push(m.take(m.unsigned(8))), 256),
        b"(": (_Machine.mark, 96),
        b"0": (_Machine.pop, 0),
        b"1": (_Machine.pop_to_mark, 0),
        b"2": (lambda m: m.push(m.top()), 16),
        b")": (lambda m: m.push(()), 16),
        b"\x85": (lambda m: m.push_tuple(1), 320),
        b"\x86": (lambda m: m.push_tuple(2), 320),
        b"\x87": (lambda m: m.push_tuple(3), 320),
        b"t": (lambda m: m.push(tuple(m.pop_to_mark())), 320),
        b"]": (lambda m: m.push([]), 320),
        b"}": (lambda m: m.push({}), 512),
        b"\x8f": (lambda m: m.push(set()), 512),
        b"a": (lambda m: m.extend([m.pop()]), 0),
        b"e": (lambda m: m.extend(m.pop_to_mark()), 0),
        b"s": (_Machine.set_item, 0),
        b"u": (lambda m: m.set_items(m.pop_to_mark()), 0),
        b"\x90": (_Machine.add_items, 0),
        b"q": (lambda m: m.memoize(m.unsigned(1)), 128),
        b"r": (lambda m: m.memoize(m.unsigned(4)), 128),
        b"\x94": (lambda m: m.memoize(len(m.memo)), 128),
        b"h": (lambda m: m.recall(m.unsigned(1)), 16),
        b"j": (lambda m: m.recall(m.unsigned(4)), 16),
        b"c": (lambda m: m.look_up(m.line(), m.line()), 512),
        b"\x93": (lambda m: m.look_up(*reversed([m.pop(), m.pop()])), 512),
        b"R": (_Machine.call, 640),
        b"\x81": (_Machine.make_new_with_arguments, 64),
        b"\x92": (_Machine.make_new_with_keywords, 64),
        b"b": (_Machine.build, 64),
        b"Q": (_Machine.load_persistent, 256),
    }.items()
}
