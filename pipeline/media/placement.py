"""Where the packets of an audio stream stand in time, although timestamps wobble, drift or are wrong.

Samples are contiguous, each packet after the one before it. Where the timestamps say otherwise by more than 50 ms for
all of the following second, there is a jump. Forwards it is a gap, and the packet stands at its
timestamp; backwards it is an overlap, and samples whose time is taken are dropped. A stream with many jumps has wrong
timestamps: its samples are contiguous from the first one on.
"""

from typing import NamedTuple

import numpy as np

_JUMP = 0.05  # seconds
_LASTING = 1  # seconds
_LASTING_AT_END = 0.04  # seconds, where the stream ends before
_FEW, _FEW_PER_SECOND = 8, 0.2  # jumps that a stream may have


class Run(NamedTuple):
    """Samples `first` to `last` (exclusive) of a stream are contiguous and begin at the sample `position` of time."""

    first: int
    last: int
    position: int


def place(stamps: np.ndarray, sizes: np.ndarray, rate: int, seconds: int) -> list[Run]:
    """The contiguous runs of a stream whose packets have these timestamps and sizes, both int64 in samples.

    Positions count from the first packet's timestamp and ascend. Only the first `seconds` seconds are given.
    """
    begins = np.cumsum(sizes) - sizes
    jumps = _jumps(stamps - stamps[0] - begins, begins, sizes, rate, seconds)
    if len(jumps) > _FEW + _FEW_PER_SECOND * min(seconds, begins[-1] / rate):
        jumps = []
    runs, first, shift = [], 0, 0
    for packet, new_shift in jumps:
        begin = int(begins[packet])
        runs.append(Run(first, begin, first + shift))
        # Backwards, the packet loses its first samples, and the next ones follow on the run before.
        first, shift = begin + max(0, shift - new_shift), new_shift
    runs.append(Run(first, int(begins[-1] + sizes[-1]), first + shift))
    cut = [run._replace(last=min(run.last, run.first + seconds * rate - run.position)) for run in runs]
    return [run for run in cut if run.last > run.first]


def _jumps(
    offsets: np.ndarray, begins: np.ndarray, sizes: np.ndarray, rate: int, seconds: int
) -> list[tuple[int, int]]:
    """The packets at which there is a jump, each with the shift of the samples from there on.

    `offsets`: of each timestamp from where the packet would begin if all were contiguous.
    """
    jumps, shift, packet, first = [], 0, 0, None
    most = _FEW + _FEW_PER_SECOND * seconds
    while packet < len(offsets) and begins[packet] + shift < seconds * rate and len(jumps) <= most:
        found = None
        if abs(offsets[packet] - shift) <= _JUMP * rate:
            first = None
        else:
            first = packet if first is None else first  # since which all deviate
            if begins[packet] + sizes[packet] - begins[first] >= _LASTING * rate:
                found = first
            elif packet == len(offsets) - 1:
                in_last_second = jumps and begins[packet] + sizes[packet] - begins[jumps[-1][0]] < _LASTING * rate
                found = first if in_last_second else _last_jump(abs(offsets - shift), begins, sizes, first, rate)
        if found is None:
            packet += 1
        else:
            shift = max(int(offsets[found]), shift - int(sizes[found]))
            jumps.append((found, shift))
            packet, first = found + 1, None
    return jumps


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
