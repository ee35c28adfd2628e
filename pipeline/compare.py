"""Two sets of features of the same videos: the same, shifted in time, scaled, or of another encoder?"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pipeline.compare_sources import ArraySource, ShardSource, open_source
from pipeline.compare_timing import GAIN, SHIFTS, SLOPES, best, timing

TIMED = 500  # videos, at most, that the shift and slope are measured on
ROUNDING = 2**-10  # relative to the largest number of a vector: float16 keeps 11 bits
SAME, CLOSE, ALIKE = 0.9999, 0.99, 0.9  # cosine similarities; frames between rows are not more alike than ALIKE
NORMAL = 1.4826  # the standard deviation of normal values over the median of their distances from the median
OUTLYING, RESCALED = 6, 0.05  # standard deviations; a scale relative to that of other videos
SHOWN = 5  # videos that a line names


class Video(NamedTuple):
    """What was measured of one video."""

    video_id: str
    seconds: tuple[int, int]  # in A, in B
    equal: bool  # every bit
    error: float  # largest difference of a number, relative to the largest number of its vector
    cosine: np.ndarray  # of each second
    norms: tuple[float, float]  # mean norm in A, in B
    products: np.ndarray  # sums of a·b and b·b

    @property
    def distance(self) -> float:
        """1 less the mean cosine, 0 where nothing differs but rounding."""
        return 0.0 if self.error <= ROUNDING else float(1 - self.cosine.mean())


@dataclass
class Comparison:
    """What was measured over the videos that both sets have. All that is said of features is said of the videos that
    are as most are; the others are in `differing`."""

    names: tuple[str, str]
    matched: int
    only: tuple[list[str], list[str]]  # ids that only A, only B has
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # per second
    videos: list[Video] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)  # ids of videos whose seconds have other shapes in A than in B
    unmatched: list[float] = field(default_factory=list)  # cosine of different videos
    timing: dict[str, np.ndarray] = field(default_factory=dict)  # by video: see compare_timing
    notes: list[str] = field(default_factory=list)

    @cached_property
    def differing(self) -> list[Video]:
        """The videos that differ between A and B otherwise than most do, the most different first."""
        if len(self.videos) < 2:
            return []
        distance = np.array([video.distance for video in self.videos])
        typical, spread = _middle(distance)
        if typical <= 1 - CLOSE:
            limit = max(1 - SAME, 10 * typical)
        else:  # as a shift in time makes it: half-way to another video
            limit = max((typical + 1 - np.mean(self.unmatched)) / 2, typical + OUTLYING * spread)
        scale = np.array([np.log(max(v.products[0], 1e-12) / max(v.products[1], 1e-12)) for v in self.videos])
        usual, scale_spread = _middle(scale)
        rescaled = abs(scale - usual) > max(RESCALED, OUTLYING * scale_spread)
        rescaled &= (distance <= 1 - CLOSE) & np.array([video.error > ROUNDING for video in self.videos])
        chosen = np.flatnonzero((distance > limit) | rescaled)
        return [self.videos[n] for n in chosen[np.argsort(-distance[chosen], kind="stable")]]

    @cached_property
    def alike(self) -> list[Video]:
        """The other videos."""
        differing = {video.video_id for video in self.differing}
        return [video for video in self.videos if video.video_id not in differing]

    @property
    def equal(self) -> bool:
        """Whether every bit is."""
        return all(video.equal for video in self.alike)

    @property
    def error(self) -> float:
        """The largest difference of a number, relative to the largest number of its vector."""
        return max((video.error for video in self.alike), default=0.0)

    @property
    def similarity(self) -> float:
        """Mean cosine of the seconds."""
        return float(np.concatenate([video.cosine for video in self.alike]).mean())

    @property
    def scale(self) -> float:
        """The number that B times it is nearest to A."""
        products = np.sum([video.products for video in self.alike], axis=0)
        return float(products[0] / products[1]) if products[1] else float("nan")

    @property
    def lengths_differ(self) -> int:
        """How many videos have another number of seconds in A than in B."""
        return sum(video.seconds[0] != video.seconds[1] for video in self.videos)

    @property
    def timed(self) -> np.ndarray:
        """Similarity by slope and shift of each video that it was measured of."""
        chosen = [self.timing[video.video_id] for video in self.alike if video.video_id in self.timing]
        return np.array(chosen).reshape(-1, len(SLOPES), len(SHIFTS))

    @cached_property
    def best(self) -> tuple[float, float, float]:
        """Slope, shift (seconds) and the gain in similarity over none of both; 1, 0, 0 where none is believable."""
        return best(self.timed) if len(self.timed) else (1.0, 0.0, 0.0)

    def verdict(self) -> str:
        """One sentence, of the videos that differ from the others first."""
        if not self.matched:
            return "no video in common"
        if not self.videos:
            return f"other encoder or output: {self.shapes[0]} against {self.shapes[1]} numbers per second"
        if different := [*self.unlike, *(video.video_id for video in self.differing)]:
            named = ", ".join(different[:SHOWN]) + (", …" if len(different) > SHOWN else "")
            return f"{len(different)} of {self.matched} videos differ, {named}; of the others: {self._verdict()}"
        return self._verdict()

    def _verdict(self) -> str:
        if self.equal:
            return "the same features, bit for bit"
        if self.error <= ROUNDING:
            return "same features to float16"
        slope, shift, gain = self.best
        if gain and self.similarity + gain >= ALIKE:
            rate = f"one row of B is {1 / slope:.2f} s" if slope != 1 else ""
            moved = f"B is {abs(shift):.1f} s {'earlier' if shift > 0 else 'later'}" if shift else ""
            return f"same encoder, other frames: {', '.join(filter(None, (rate, moved)))}"
        if self.similarity >= SAME and abs(self.scale - 1) > GAIN:
            by_set = np.transpose([video.norms for video in self.alike])
            units = [np.ptp(norms) < 0.01 and abs(norms[0] - 1) < 0.01 for norms in by_set]
            divided = f" ({'AB'[units.index(True)]} was divided by its norm)" if any(units) else ""
            return f"same features, other scale: A is {self.scale:.4g} times B{divided}"
        if self.similarity >= SAME:
            return "same encoder and frames, other rounding"
        if self.similarity >= CLOSE:
            return "same encoder, nearly the same frames: other resizing, decoding or arithmetic"
        if self.unmatched and self.similarity - np.mean(self.unmatched) > 0.1:
            return "related features: other preprocessing, frames or weights of a similar encoder"
        return "other encoder, or other weights"

    def __str__(self) -> str:
        lines = [f"A {self.names[0]}, B {self.names[1]}: {self.matched} videos in both"]
        for label, ids in zip("AB", self.only, strict=True):
            lines += [f"only in {label}: {len(ids)}, as {', '.join(ids[:3])}"] if ids else []
        lines += self.notes
        if self.alike:
            slope, shift, gain = self.best
            low, middle, high = np.percentile(np.concatenate([video.cosine for video in self.alike]), [5, 50, 95])
            lines += [
                f"cosine similarity per second: mean {self.similarity:.4f}, median {middle:.4f}, 5 % to 95 % "
                f"{low:.4f} to {high:.4f}; of different videos {np.mean(self.unmatched or [np.nan]):.4f}",
                f"scale {self.scale:.4g}; largest relative difference {self.error:.3g}",
                f"best shift {shift:+.1f} s, slope {slope:.3f} rows of B per row of A: similarity {gain:+.4f}",
            ]
        if self.differing:
            lines.append(f"videos that differ: {_similarities(self.differing)}")
        elif self.videos and not self.equal:
            lines.append(f"least similar: {_similarities(sorted(self.videos, key=lambda v: -v.distance)[:SHOWN])}")
        if self.unlike:
            lines.append(f"other shapes: {len(self.unlike)}, as {', '.join(self.unlike[:SHOWN])}")
        if self.lengths_differ:
            other = [v for v in self.videos if v.seconds[0] != v.seconds[1]]
            shown = ", ".join(f"{v.video_id} ({v.seconds[0]} and {v.seconds[1]})" for v in other[:SHOWN])
            lines.append(f"{len(other)} videos have different numbers of seconds, as {shown}")
        return "\n".join([*lines, f"verdict: {self.verdict()}"])


def _similarities(videos: list[Video]) -> str:
    shown = ", ".join(f"{v.video_id} (similarity {v.cosine.mean():.4f})" for v in videos[:SHOWN])
    return shown + (f" and {len(videos) - SHOWN} more" if len(videos) > SHOWN else "")


def _middle(values: np.ndarray) -> tuple[float, float]:
    """What half of the values do not exceed, and their standard deviation around it, whatever the other half is."""
    middle = float(np.quantile(values, 0.5, method="lower"))
    return middle, NORMAL * float(np.quantile(abs(values - middle), 0.5, method="lower"))


def compare(a: str | Path, b: str | Path, output: str | None = None) -> Comparison:
    """Compare the videos that two sets of features have in common, one at a time. Raises AVQAError."""
    one, other = open_source(a, output), open_source(b, output)
    common = [video_id for video_id in one.places if video_id in other.places]
    only = ([i for i in one.places if i not in other.places], [i for i in other.places if i not in one.places])
    result = Comparison((one.name, other.name), len(common), only)
    try:
        _measure(result, common, one, other)
    finally:
        one.close()
        other.close()
    result.notes += [source.note for source in (one, other) if source.note]
    return result


def _measure(
    result: Comparison, common: list[str], one: ShardSource | ArraySource, other: ShardSource | ArraySource
) -> None:
    step, before = max(1, len(common) // TIMED), None
    for n, video_id in enumerate(tqdm(common, desc="compare", unit="video", mininterval=2, disable=None)):
        x, y = one.read(video_id), other.read(video_id)
        if x.shape[1:] != y.shape[1:]:
            result.unlike.append(video_id)
            result.shapes = (x.shape[1:], y.shape[1:])
            if len(result.unlike) > SHOWN and not result.videos:
                return  # of another encoder
            continue
        equal = x.dtype == y.dtype and np.array_equal(x[: len(y)], y[: len(x)])
        x, y = (values.reshape(len(values), -1).astype(np.float32) for values in (x, y))
        result.videos.append(_video(video_id, x, y, equal))
        if before is not None and before.shape[1] == x.shape[1]:
            result.unmatched.append(float(_cosine(x, before).mean()))
        if n % step == 0 and min(len(x), len(y)) > 3:
            result.timing[video_id] = timing(x, y)
        before = y


def _video(video_id: str, x: np.ndarray, y: np.ndarray, equal: bool) -> Video:
    """x is A's, y B's: seconds, numbers."""
    seconds = min(len(x), len(y))
    norms = (float(np.linalg.norm(x, axis=1).mean()), float(np.linalg.norm(y, axis=1).mean()))
    cosine = _cosine(x, y)
    first, second = x[:seconds], y[:seconds]
    difference = np.abs(first - second).max(1) / np.maximum(np.abs(first).max(1), 1e-12)
    products = np.array([(first * second).sum(), (second**2).sum()], np.float64)
    return Video(video_id, (len(x), len(y)), equal, float(difference.max()), cosine, norms, products)


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each second that both have; two vectors of zeros, as of silence, are the same."""
    x, y = x[: len(y)], y[: len(x)]
    lengths = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    cosine = (x * y).sum(1) / np.maximum(lengths[0] * lengths[1], 1e-24)
    return np.where(np.maximum(*lengths) == 0, 1, cosine)


def plot(result: Comparison, path: str | Path) -> None:
    """Similarity by second, similarity by shift, and norms, as an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    by_second, by_shift, norms = figure.subplots(1, 3)
    cosines = [video.cosine for video in result.videos]
    longest = max(map(len, cosines), default=0)
    table = np.array([np.pad(values, (0, longest - len(values)), constant_values=np.nan) for values in cosines])
    if longest:
        low, middle, high = np.nanpercentile(table, [5, 50, 95], axis=0)
        by_second.fill_between(range(longest), low, high, alpha=0.3, label="5 % to 95 % of videos")
        by_second.plot(middle, label="median")
        by_second.legend()
        norms.scatter(*np.transpose([video.norms for video in result.videos]), s=6)
    if len(result.timed):
        slope = result.best[0]
        by_shift.plot(SHIFTS, result.timed.mean(0)[np.argmin(abs(SLOPES - slope))])
        by_shift.set_title(f"slope {slope:.3f}")
    by_second.set(xlabel="second", ylabel="cosine similarity")
    by_shift.set(xlabel="shift of B in seconds", ylabel="centred similarity")
    norms.set(xlabel=f"norm in A, {result.names[0]}", ylabel=f"norm in B, {result.names[1]}")
    figure.suptitle(result.verdict())
    figure.savefig(path, dpi=120)
