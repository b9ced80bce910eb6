"""A safe unpickler: it builds plain values and inert stand-ins, and nothing else.

Python's unpickler imports whatever a file names, and calls it. This one imports nothing:

- A name (GLOBAL) is looked up in a table of stand-ins; REDUCE applies only the `Constructor`s of that table,
  BUILD sets only the state of `Stateful` stand-ins.
- It knows the opcodes that PyTorch and NumPy write (protocols 2 to 5), and refuses all others.
- It refuses a length greater than the number of bytes left, and limits the number of operations, each of which
  takes at most about a hundred bytes; so memory and time are bounded by the size of the file.
- Nested values and the hashing of dictionary keys (text or small integers) need no recursion.

`pickletools` in the standard library documents every opcode.
"""

import io
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

from rlpips_jax.errors import UnsafeCheckpoint, WeightsCorrupt, WeightsError

BASE_OPERATIONS = 65_536
"""Operations allowed for any file, enough for two thousand tensors; one more for every 128 bytes of its size."""

LONG_TEXT = 65_536
"""Longer text must be Latin-1, as array data is: one emoji would make it four times as large in memory."""


@dataclass(frozen=True, slots=True)
class Constructor:
    """A function of this library that REDUCE may apply to arguments from the pickle."""

    build: Callable[..., object]


class Stateful:
    """A stand-in whose state BUILD may set."""

    __slots__ = ()

    def set_state(self, state: object) -> None:
        raise NotImplementedError


def printable(text: object) -> str:
    """Makes a name from a file fit for a message: short, quoted, control characters escaped."""
    shown = str(text) if isinstance(text, str | int) else f"a {type(text).__name__}"
    return repr(shown if len(shown) <= 80 else shown[:77] + "...")


def refuse_persistent(identity: object) -> object:
    """The default for persistent ids: refuses them."""
    raise UnsafeCheckpoint("its pickle refers to an external object, which this format does not have")


@no_type_check  # checks at run time, where tests install them, would cost fifty times the work of an opcode
class PickleReader:
    """Reads consecutive pickles from `length` bytes of a file.

    Args:
        file: positioned at the first pickle; each `load` moves it to the end of a pickle.
        length: number of bytes that may be read from there.
        stand_ins: what each (module, name) becomes.
        persistent: what each persistent id becomes.
        operations: the limit on opcodes, for all pickles together.
    """

    def __init__(
        self,
        file: io.BufferedIOBase,
        length: int,
        stand_ins: Mapping[tuple[str, str], object],
        persistent: Callable[[object], object] = refuse_persistent,
        operations: int = BASE_OPERATIONS,
    ) -> None:
        self._file = file
        self._left = length
        self._stand_ins = stand_ins
        self._persistent = persistent
        self._operations = operations

    def load(self) -> object:
        """Reads the next pickle: returns None, bool, int, float, str, bytes, list, tuple, dict or a stand-in.

        Raises:
            UnsafeCheckpoint: the pickle asks for something that is not in the table, or exceeds the limit.
            WeightsCorrupt: the pickle is cut off or invalid.
        """
        self._stack: list = []
        self._below: list[list] = []  # the stacks under each MARK
        self._memo: dict[int, object] = {}
        try:
            return self._run()
        except WeightsError:
            raise
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise WeightsCorrupt(f"its pickle is invalid ({type(error).__name__})") from error

    def _run(self) -> object:
        while True:
            self._spend(1)
            opcode = self._take(1)
            if opcode == pickle.STOP:
                return self._stack.pop()
            if opcode in LITERALS:
                self._stack.append(LITERALS[opcode](self))
            elif not (self._remembers(opcode) or self._collects(opcode) or self._makes(opcode)):
                self._frames(opcode)

    def _remembers(self, opcode: bytes) -> bool:
        """Runs the opcode and returns True if it works on the memo."""
        stack, memo = self._stack, self._memo
        match opcode:
            case pickle.BINGET:
                stack.append(memo[self._integer("<B")])
            case pickle.LONG_BINGET:
                stack.append(memo[self._integer("<I")])
            case pickle.BINPUT:
                memo[self._integer("<B")] = stack[-1]
            case pickle.LONG_BINPUT:
                memo[self._integer("<I")] = stack[-1]
            case pickle.MEMOIZE:
                memo[len(memo)] = stack[-1]
            case _:
                return False
        return True

    def _collects(self, opcode: bytes) -> bool:
        """Runs the opcode and returns True if it works on tuples, lists or dictionaries."""
        stack = self._stack
        match opcode:
            case pickle.MARK:
                self._below.append(stack)
                self._stack = []
            case pickle.EMPTY_TUPLE:
                stack.append(())
            case pickle.TUPLE:
                items = self._since_mark()
                self._stack.append(tuple(items))
            case pickle.TUPLE1:
                stack[-1:] = [(stack[-1],)]
            case pickle.TUPLE2:
                stack[-2:] = [(stack[-2], stack[-1])]
            case pickle.TUPLE3:
                stack[-3:] = [(stack[-3], stack[-2], stack[-1])]
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.APPEND:
                item = stack.pop()
                _append(stack[-1], [item])
            case pickle.APPENDS:
                items = self._since_mark()
                _append(self._stack[-1], items)
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.SETITEM:
                value, key = stack.pop(), stack.pop()
                set_items(stack[-1], [key, value])
            case pickle.SETITEMS:
                items = self._since_mark()
                set_items(self._stack[-1], items)
            case _:
                return False
        return True

    def _makes(self, opcode: bytes) -> bool:
        """Runs the opcode and returns True if it names or makes an object; only stand-ins are made."""
        stack = self._stack
        match opcode:
            case pickle.GLOBAL:
                stack.append(self._stand_in(self._line(), self._line()))
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                stack.append(self._stand_in(module, name))
            case pickle.REDUCE:
                arguments, constructor = stack.pop(), stack.pop()
                stack.append(self._construct(constructor, arguments))
            case pickle.BUILD:
                state = stack.pop()
                _set_state(stack[-1], state)
            case pickle.BINPERSID:
                stack.append(self._persistent(stack.pop()))
            case _:
                return False
        return True

    def _frames(self, opcode: bytes) -> None:
        """Checks the opcodes that describe the pickle itself; refuses every other opcode."""
        match opcode:
            case pickle.PROTO:
                if (protocol := self._integer("<B")) > pickle.HIGHEST_PROTOCOL:
                    raise WeightsCorrupt(f"it claims pickle protocol {protocol}, which does not exist")
            case pickle.FRAME:  # advice on how much to read at once
                if self._integer("<Q") > self._left:
                    raise WeightsCorrupt("its pickle is cut off")
            case pickle.INST:
                self._stand_in(self._line(), self._line())
                _refuse(opcode)
            case _:
                _refuse(opcode)

    def _since_mark(self) -> list:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _spend(self, operations: int) -> None:
        self._operations -= operations
        if self._operations < 0:
            raise UnsafeCheckpoint("its pickle takes far more operations than a state dict of its size")

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            raise WeightsCorrupt("its pickle is cut off")
        self._left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise WeightsCorrupt("its pickle is cut off")
        return data

    def _line(self) -> str:
        line = self._file.readline(min(self._left, 256))
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise WeightsCorrupt("a name in its pickle is cut off or too long")
        return line[:-1].decode()

    def _integer(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _long(self) -> int:
        if (count := self._integer("<B")) > 16:
            raise WeightsCorrupt(f"its pickle holds an integer of {count} bytes")
        return int.from_bytes(self._take(count), "little", signed=True)

    def _bytes(self, length_layout: str) -> bytes:
        return self._take(self._integer(length_layout))

    def _text(self, length_layout: str) -> str:
        data = self._bytes(length_layout)
        if len(data) > LONG_TEXT and re.search(rb"[\xc4-\xff]", data):
            raise WeightsCorrupt(f"its pickle holds a text of {len(data)} bytes, neither a name nor an array")
        return data.decode()

    def _stand_in(self, module: object, name: object) -> object:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise WeightsCorrupt("its pickle asks for something whose name is not text")
        if (module, name) not in self._stand_ins:
            asked = printable(f"{module}.{name}")
            raise UnsafeCheckpoint(f"its pickle asks for {asked}, which no state dict needs")
        return self._stand_ins[module, name]

    def _construct(self, constructor: object, arguments: object) -> object:
        if not isinstance(constructor, Constructor):
            raise UnsafeCheckpoint(f"its pickle calls {printable(constructor)} as if it were a function")
        if type(arguments) is not tuple:
            raise WeightsCorrupt("its pickle calls a function without a tuple of arguments")
        # A constructor may copy a list; without this, one long list could be copied a million times.
        self._spend(sum(len(argument) for argument in arguments if isinstance(argument, list)))
        return constructor.build(*arguments)


LITERALS: dict[bytes, Callable[[Any], object]] = {
    pickle.NONE: lambda reader: None,
    pickle.NEWTRUE: lambda reader: True,
    pickle.NEWFALSE: lambda reader: False,
    pickle.BININT: lambda reader: reader._integer("<i"),
    pickle.BININT1: lambda reader: reader._integer("<B"),
    pickle.BININT2: lambda reader: reader._integer("<H"),
    pickle.LONG1: lambda reader: reader._long(),
    pickle.BINFLOAT: lambda reader: struct.unpack(">d", reader._take(8))[0],
    pickle.BINUNICODE: lambda reader: reader._text("<I"),
    pickle.SHORT_BINUNICODE: lambda reader: reader._text("<B"),
    pickle.BINUNICODE8: lambda reader: reader._text("<Q"),
    # Python 2's strings: text and bytes alike.
    pickle.SHORT_BINSTRING: lambda reader: reader._bytes("<B").decode("latin-1"),
    pickle.BINSTRING: lambda reader: reader._bytes("<i").decode("latin-1"),
    pickle.SHORT_BINBYTES: lambda reader: reader._bytes("<B"),
    pickle.BINBYTES: lambda reader: reader._bytes("<I"),
    pickle.BINBYTES8: lambda reader: reader._bytes("<Q"),
    pickle.BYTEARRAY8: lambda reader: reader._bytes("<Q"),
}
"""The opcodes that push one plain value onto the stack, and how each value is read."""


def set_items(target: object, items: list) -> None:
    """Puts the alternating keys and values of `items` into the dictionary `target`."""
    if type(target) is not dict or len(items) % 2:
        raise WeightsCorrupt("its pickle sets items of something that is not a dictionary")
    for index in range(0, len(items), 2):
        key = items[index]
        # Other keys could be nested (hashing recurses), or chosen to collide (inserting them is quadratic).
        if not (isinstance(key, str) or (isinstance(key, int) and key.bit_length() < 32)):
            raise WeightsCorrupt(f"the key {printable(key)} of a dictionary is neither text nor a small integer")
        target[key] = items[index + 1]


def _append(target: object, items: list) -> None:
    if type(target) is not list:
        raise WeightsCorrupt("its pickle appends to something that is not a list")
    target.extend(items)


def _set_state(target: object, state: object) -> None:
    if isinstance(target, Stateful):
        target.set_state(state)
    elif type(target) is not dict:  # the attributes of an OrderedDict, a module's `_metadata`, are not needed
        raise UnsafeCheckpoint(f"its pickle sets the attributes of {printable(target)}")


def _refuse(opcode: bytes) -> None:
    import pickletools

    for known in pickletools.opcodes:
        if known.code == opcode.decode("latin-1"):
            raise UnsafeCheckpoint(f"its pickle uses the opcode {known.name}, which no state dict needs")
    raise WeightsCorrupt(f"its pickle holds the byte 0x{opcode.hex()} where an opcode should be")
