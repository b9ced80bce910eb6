"""The markers of a JPEG file: how many scans it has, and whether they tell of damage (ITU-T T.81, annex B).

Each scan of a progressive file costs time for the whole image, however few bytes it has. Coded data have no checksum,
and decoders fill up what they cannot read, so markers are all that shows most damage.
"""

import re

SCANS = 100
"""Most scans that are read; encoders write about 10."""

IMAGE_START, IMAGE_END, SCAN = 0xD8, 0xD9, 0xDA

BETWEEN_SCANS = {IMAGE_END, SCAN, 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE}
"""Markers that may follow a scan: tables, number of lines, restart interval, applications' data, comments."""

MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
"""A marker; not the zero after 0xFF in coded data, and not those that let a decoder start again."""


def check_scans(content: bytes, *, damaged: bool = False) -> None:
    """Looks at the markers of a JPEG file, up to the end of its first image.

    Args:
        content: the file.
        damaged: whether damage is accepted.

    Raises:
        ValueError: it has more than `SCANS` scans, or it is damaged.
    """
    position, scans = 2, 0
    while found := MARKER.search(content, position):  # A file that is cut off is for the decoder to tell.
        marker, position = found[1][0], found.end()
        if scans and marker not in BETWEEN_SCANS and not damaged:
            raise ValueError(f"the marker 0x{marker:02X} interrupts its data")
        if marker == IMAGE_END:
            rest = content[position:]
            # Cameras append further images and data of their own, which do not end as an image does.
            if rest.endswith(b"\xff\xd9") and b"\xff\xd8\xff" not in rest and not damaged:
                raise ValueError("its data go on behind the marker that ends it")
            return
        scans += marker == SCAN
        if scans > SCANS:
            raise ValueError(f"it has more than {SCANS} scans, each of which costs time for the whole image")
        position += int.from_bytes(content[position : position + 2], "big")
