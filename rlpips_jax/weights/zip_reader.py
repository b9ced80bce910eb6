"""Reads untrusted zip archives: nothing is extracted to disk, and no size is believed before it is checked.

Python's `zipfile` makes an object for every entry that the directory lists, and detects overlaps and wrong sizes
late or not at all. This reader checks the whole directory first: entries must lie within the file, must not overlap,
must agree with their local headers, must have distinct names, and must not inflate to many times the file's size.
Layout: section 4.3 of PKWARE's APPNOTE.TXT.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rlpips_jax.errors import UnsafeCheckpoint, WeightsCorrupt
from rlpips_jax.weights.pickle_reader import printable

MAX_ENTRIES = 20_000
MAX_INFLATION = 2
INFLATION_ALLOWANCE = 1 << 20
"""Bytes that any archive may inflate to, however small it is: zeros compress to almost nothing."""

_CHUNK = 1 << 20
_STORED, _DEFLATED = 0, 8
_WIDE = 0xFFFFFFFF  # marks a number too large for its field; the zip64 extra field holds it
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")


class Entry(NamedTuple):
    """One file in the archive; its (compressed) bytes begin at offset `start`."""

    method: int
    checksum: int
    compressed: int
    size: int
    start: int


class ZipReader:
    """Checks the directory of the zip archive in `file`; `entries` maps each name to its entry.

    Raises:
        WeightsCorrupt: the archive is cut off, damaged, inconsistent, encrypted, or not compressed by deflate.
        UnsafeCheckpoint: the archive would inflate to many times its size, or has more than `MAX_ENTRIES` entries.
    """

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self._file = file
        self._size = size
        offset, length, count = self._find_directory()
        if count > MAX_ENTRIES:
            raise UnsafeCheckpoint(f"its zip archive has {count} entries; the limit is {MAX_ENTRIES}")
        self.entries: dict[str, Entry] = {}
        spans = []
        for name, header, flags, entry in self._directory(self._read_at(offset, length), count):
            if name in self.entries:
                raise WeightsCorrupt(f"its zip directory lists two entries named {printable(name)}")
            self.entries[name] = entry = self._locate(name, header, flags, entry)
            spans.append((header, entry.start + entry.compressed))
        spans.sort()
        if any(end > start for (_, end), (start, _) in pairwise([*spans, (offset, offset)])):
            raise WeightsCorrupt("entries of its zip archive overlap")
        inflated = sum(entry.size for entry in self.entries.values())
        if inflated > MAX_INFLATION * size + INFLATION_ALLOWANCE:
            raise UnsafeCheckpoint(f"its {size} bytes would inflate to {inflated}, more than any checkpoint needs")

    def read(self, name: str) -> np.ndarray:
        """Returns the inflated bytes of one entry as a new uint8 array; verifies the checksum."""
        if name not in self.entries:
            raise WeightsCorrupt(f"its zip archive has no entry {printable(name)}")
        entry = self.entries[name]
        data = np.empty(entry.size, np.uint8)
        filled, checksum = 0, 0
        for piece in self._pieces(entry):
            if filled + len(piece) > entry.size:
                raise WeightsCorrupt(f"the zip entry {printable(name)} is larger than its directory says")
            data[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
            checksum = zlib.crc32(piece, checksum)
        if filled != entry.size or checksum != entry.checksum:
            raise WeightsCorrupt(f"the zip entry {printable(name)} does not match its checksum")
        return data

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        """Yields the entry's inflated bytes in pieces of at most one mebibyte."""
        starts = range(entry.start, entry.start + entry.compressed, _CHUNK)
        raw = (self._read_at(start, min(_CHUNK, starts.stop - start)) for start in starts)
        return raw if entry.method == _STORED else _inflate(raw)

    def _find_directory(self) -> tuple[int, int, int]:
        """Returns the offset, length and number of entries of the central directory, as the record at the end says."""
        tail_start = max(self._size - _END.size - 0xFFFF, 0)
        tail = self._read_at(tail_start, self._size - tail_start)
        found = tail.rfind(b"PK\5\6")
        if found < 0 or len(tail) - found < _END.size:
            raise WeightsCorrupt("it begins like a zip archive but has no directory at its end: it is cut off")
        _, disk, _, _, count, length, offset, comment = _END.unpack_from(tail, found)
        end = tail_start + found
        if end + _END.size + comment != self._size:
            raise WeightsCorrupt("the length of its zip archive is not what its end record says")
        if end >= _LOCATOR64.size:
            signature, _, end64, _ = _LOCATOR64.unpack(self._read_at(end - _LOCATOR64.size, _LOCATOR64.size))
            if signature == b"PK\6\7":
                record = _END64.unpack(self._read_at(end64, _END64.size))
                signature, _, _, _, disk, _, _, count, length, offset = record
                if signature != b"PK\6\6":
                    raise WeightsCorrupt("the zip64 record of its zip archive is damaged")
                end = end64
        if disk != 0 or offset + length != end:
            raise WeightsCorrupt("the directory of its zip archive is not where its end record says")
        return offset, length, count

    def _directory(self, directory: bytes, count: int) -> Iterator[tuple[str, int, int, Entry]]:
        """Yields, per directory entry: name, offset of the local header, flags, and the entry with `start` still 0."""
        position = 0
        for _ in range(count):
            if len(directory) - position < _CENTRAL.size:
                raise WeightsCorrupt("the directory of its zip archive is cut off")
            fields = _CENTRAL.unpack_from(directory, position)
            signature, _, _, flags, method, _, _, checksum, compressed, size = fields[:10]
            name, extra, comment, _, _, _, header = fields[10:]
            position += _CENTRAL.size
            if signature != b"PK\1\2" or position + name + extra + comment > len(directory):
                raise WeightsCorrupt("the directory of its zip archive is damaged")
            wide = _wide_fields(directory[position + name : position + name + extra])
            size, compressed, header = (next(wide, -1) if n == _WIDE else n for n in (size, compressed, header))
            if min(size, compressed, header) < 0:
                raise WeightsCorrupt("the zip64 fields of its zip archive are damaged")
            entry = Entry(method, checksum, compressed, size, 0)
            yield _decode(directory[position : position + name]), header, flags, entry
            position += name + extra + comment
        if position != len(directory):
            raise WeightsCorrupt("the directory of its zip archive is longer than its number of entries allows")

    def _locate(self, name: str, header: int, flags: int, entry: Entry) -> Entry:
        """Checks the local header against the directory and returns the entry with its `start`."""
        if flags & 1 or entry.method not in (_STORED, _DEFLATED):
            raise WeightsCorrupt(f"the zip entry {printable(name)} is encrypted, or not compressed by deflate")
        if entry.method == _STORED and entry.compressed != entry.size:
            raise WeightsCorrupt(f"the zip entry {printable(name)} is not compressed, but its two sizes differ")
        fields = _LOCAL.unpack(self._read_at(header, _LOCAL.size))
        signature, _, local_flags, method, _, _, *numbers, name_length, extra_length = fields
        local_name = self._read_at(header + _LOCAL.size, name_length)
        if signature != b"PK\3\4" or method != entry.method or _decode(local_name) != name:
            raise WeightsCorrupt(f"the zip entry {printable(name)} is not where the directory says")
        streamed = local_flags & 8  # sizes follow the data
        wide = _WIDE in numbers[1:]  # sizes are in an extra field
        if not (streamed or wide or numbers == [entry.checksum, entry.compressed, entry.size]):
            raise WeightsCorrupt(f"the zip entry {printable(name)} has a header that differs from the directory")
        return entry._replace(start=header + _LOCAL.size + name_length + extra_length)

    def _read_at(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise WeightsCorrupt("its zip archive is cut off")
        self._file.seek(offset, os.SEEK_SET)
        data = self._file.read(length)
        if len(data) != length:
            raise WeightsCorrupt("its zip archive is cut off")
        return data


def _inflate(pieces: Iterator[bytes]) -> Iterator[bytes]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in pieces:
            while piece:
                yield stream.decompress(piece, _CHUNK)
                piece = stream.unconsumed_tail
        while held := stream.decompress(b"", _CHUNK):
            yield held
    except zlib.error as error:
        raise WeightsCorrupt(f"its zip archive cannot be inflated ({error})") from error
    if not stream.eof or stream.unused_data:
        raise WeightsCorrupt("its zip archive cannot be inflated: an entry has too few or too many bytes")


def _wide_fields(extra: bytes) -> Iterator[int]:
    """Yields the 64-bit numbers of the zip64 extra field, in order."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            field = extra[position + 4 : position + 4 + length]
            yield from (number for (number,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8]))
            return
        position += 4 + length


def _decode(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise WeightsCorrupt("a name in its zip archive is not UTF-8") from None
