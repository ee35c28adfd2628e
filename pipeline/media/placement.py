"""Where the packets of an audio stream stand in time, although timestamps wobble, drift or are wrong.

Samples are contiguous, each packet after the one before it. Where the timestamps say otherwise by more than 50 ms for
all of the following second, there is a jump. Forwards it is a gap, and the packet stands at its timestamp; backwards it
is an overlap, and samples whose time is taken are dropped. A stream with many jumps has wrong timestamps: its samples
are contiguous from the first one on.
"""

import numpy as np

_JUMP = 0.05  # seconds
_LASTING = 1  # seconds
_LASTING_AT_END = 0.04  # seconds, where the stream ends before
_FEW, _FEW_PER_SECOND = 8, 0.2  # jumps that a stream may have
_FEW_PACKETS = 0.5  # of all packets, those at which there may be a jump
_MORE = 2  # seconds after those that are wanted whose jumps count too


def place(stamps: np.ndarray, sizes: np.ndarray, rate: int, seconds: int) -> dict[int, int]:
    """The jumps in the first `seconds` seconds of a stream whose packets have these timestamps and sizes, in samples.

    By the number of a packet: how many samples of silence come before it, or (negative) how many it loses at its
    beginning.
    """
    begins = np.cumsum(sizes) - sizes
    most = _FEW + _FEW_PER_SECOND * min(seconds, begins[-1] / rate)
    jumps, packets = _jumps(stamps - stamps[0] - begins, begins, sizes, rate, seconds + _MORE, most)
    if len(jumps) > _FEW_PACKETS * packets:
        return {}
    shift, seen = 0, {}
    for packet, change in jumps.items():
        if begins[packet] + shift < (seconds + _MORE) * rate:
            seen[packet] = change
        shift += change
    return seen if len(seen) <= most else {}


def _jumps(
    offsets: np.ndarray, begins: np.ndarray, sizes: np.ndarray, rate: int, seconds: int, most: float
) -> tuple[dict[int, int], int]:
    """All jumps, one more than `most` at most, and the number of packets up to the last of them.

    `offsets`: of each timestamp from where its packet would begin.
    """
    jumps: dict[int, int] = {}
    shift, packet, first, latest = 0, 0, None, -1  # latest: the packet of the last jump
    while packet < len(offsets) and begins[packet] < seconds * rate and len(jumps) <= most:
        found = None
        if abs(offsets[packet] - shift) <= _JUMP * rate:
            first = None
        else:
            first = packet if first is None else first  # since which all deviate
            end = begins[packet] + sizes[packet]
            if end - begins[first] >= _LASTING * rate:
                found = first
            elif packet == len(offsets) - 1:
                goes_on = latest >= 0 and end - begins[latest] < _LASTING * rate
                found = first if goes_on else _last_jump(abs(offsets - shift), begins, sizes, first, rate)
        if found is None:
            packet += 1
            continue
        jumps[found] = max(int(offsets[found]) - shift, -int(sizes[found]))  # an overlap takes at most all of it
        shift += jumps[found]
        packet, first, latest = found + 1, None, found
    return jumps, packet


def _last_jump(deviations: np.ndarray, begins: np.ndarray, sizes: np.ndarray, first: int, rate: int) -> int | None:
    """Where a jump is among the last packets, from `first` on, which are less than a second.

    A few packets are a jump if all deviate more than any of the second before; otherwise the last ones of timestamps
    that wobble would be taken for one.
    """
    if begins[-1] + sizes[-1] - begins[first] >= _LASTING_AT_END * rate:
        return first
    for packet in range(first, len(deviations)):
        before = deviations[np.searchsorted(begins, begins[packet] - _LASTING * rate) : packet]
        if not len(before) or deviations[packet:].min() > before.max():
            return packet
    return None
