"""Timestamps as far as they can be believed: what jumps is moved to where it can be.

A packet that lies far from all that came before it in the file (a flipped bit, a bomb, a recording joined to another
one whose clock starts anew) is given the next time on the clock. So the length of a file is bounded by its packets,
and joined files are read to their end.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from av.packet import Packet
from av.stream import Stream

MAX_GAP = 60
"""Seconds without any packet that are believed; twelve in formats whose clock may start anew."""

LONG_GAP, LONG_GAPS = 12, 600
"""Gaps of more than twelve seconds are believed up to ten minutes of them in a file."""

_BACK = 2  # seconds by which a packet may be stored after its turn
_REORDER = 60  # seconds between the decoding and the presentation of a picture
ANEW = frozenset({"mpegts", "mpeg"})
"""Formats that may be joined byte by byte, with clocks that start anew."""

Shifts = dict[int, int]
"""Number of a packet of the stream, from which on so many ticks are added to its timestamps."""


class Clock:
    """Goes through the packets of all streams in the order of the file, and says by how much each has to be moved."""

    def __init__(self, streams: Iterable[Stream], format_name: str) -> None:
        streams = list(streams)
        self.shifts: dict[int, Shifts] = {stream.index: {} for stream in streams}
        self.jumps: list[tuple[Fraction, Fraction]] = []  # (seconds on the clock, by how much a packet was off)
        self._bases = {stream.index: stream.time_base or Fraction(1) for stream in streams}
        self._gap = LONG_GAP if ANEW & set(format_name.split(",")) else MAX_GAP
        self._believed = Fraction(0)
        self._number = dict.fromkeys(self.shifts, 0)
        self._last: dict[int, Fraction] = {}  # of each stream, in seconds
        self._begin: Fraction | None = None  # of all
        self._end: Fraction | None = None
        self._stop = Fraction(0)  # when the last packet so far ends
        self._offset = dict.fromkeys(self.shifts, Fraction(0))  # of each stream
        self._offsets = [Fraction(0)]  # the last few, newest first

    def shift(self, packet: Packet) -> int:
        """Note the next packet of its stream; ticks to add to its timestamps."""
        index = packet.stream_index
        number, base = self._number[index], self._bases[index]
        self._number[index] = number + 1
        mend(packet, 0, base, first=not number)
        stamp = packet.dts if packet.dts is not None else packet.pts
        before = self._offset[index]
        if stamp is not None:
            time = stamp * base
            shown = time if packet.pts is None else packet.pts * base
            offset = next((o for o in (before, *self._offsets) if self._fits(index, time + o)), None)
            if offset is None:
                self.jumps.append((self._stop, shown + before - self._stop))
                offset = self._stop - shown
            if offset != self._offsets[0]:
                self._offsets = [offset, *(o for o in self._offsets if o != offset)][:4]
            now = time + offset
            if self._end is not None and now - self._end > LONG_GAP:
                self._believed += now - self._end
            self._last[index] = now
            self._begin = now if self._begin is None else min(now, self._begin)
            self._end = now if self._end is None else max(now, self._end)
            self._stop = max(self._stop, shown + offset + min((packet.duration or 0) * base, 1))
            if offset != before:
                self._offset[index] = offset
                self.shifts[index][number] = round(offset / base)
        return round(self._offset[index] / base)

    def _fits(self, index: int, time: Fraction) -> bool:
        if self._end is None:
            return True
        if index in self._last:
            if time < self._last[index] - _BACK:
                return False
        elif self._begin is not None and time < self._begin - self._gap:
            # The first one of its stream; all of it may be stored behind the others.
            return False
        ahead = time - self._end
        return ahead <= LONG_GAP or (ahead <= self._gap and self._believed + ahead <= LONG_GAPS)


class Mender:
    """Moves the packets of one stream, read from the beginning of the file, to where :class:`Clock` would have them."""

    def __init__(self, shifts: Shifts, time_base: Fraction) -> None:
        self._shifts = shifts
        self._base = time_base
        self._shift = self._number = 0

    def __call__(self, packet: Packet) -> None:
        """Mend the next packet that is not empty."""
        self._shift = self._shifts.get(self._number, self._shift)
        mend(packet, self._shift, self._base, first=not self._number)
        self._number += 1


def mend(packet: Packet, shift: int, time_base: Fraction, *, first: bool = False) -> None:
    """Move a packet; where its two timestamps lie far apart, only one of them is believed."""
    pts, dts = packet.pts, packet.dts
    if pts is not None and dts is not None and abs(pts - dts) * time_base > _REORDER:
        pts = dts = pts if first else dts
        packet.pts = packet.dts = pts
    if shift:
        packet.pts = None if pts is None else pts + shift
        packet.dts = None if dts is None else dts + shift
