"""Two sets of features of the same videos: the same, shifted in time, scaled, or of another encoder?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from pipeline.errors import AVQAError
from pipeline.storage.contract import DECODED
from pipeline.storage.finite import all_finite
from pipeline.storage.hdf5 import open_hdf5

SHIFTS = np.round(np.arange(-3, 3.05, 0.1), 1)  # seconds
SLOPES = np.round(np.arange(0.9, 1.1025, 0.005), 3)  # rows of B per row of A: about 1.04 for a hop of 0.96 s
TIMED = 500  # videos, at most, that the shift and slope are measured on
ROUNDING = 2**-10  # relative to the largest number of a vector: float16 keeps 11 bits
SAME, CLOSE, ALIKE = 0.9999, 0.99, 0.9  # cosine similarities; frames between rows are not more alike than ALIKE
GAIN = 0.01  # in similarity: what makes a shift, slope or relation believable


class ShardSource:
    """One output in features files of the pipeline."""

    def __init__(self, files: list[Path], output: str | None):
        self.places: dict[str, tuple[Path, int, int]] = {}
        self.name = ""
        self._file: h5py.File | None = None
        for path in files:
            try:
                self._list(path, output)
            except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:  # h5py's
                raise AVQAError(
                    f"{path}: is not laid out as a features file ({error}); `avqa verify` checks it"
                ) from error

    def _list(self, path: Path, output: str | None) -> None:
        with open_hdf5(path, "features") as file:
            names = list(file[str(file.attrs["encoder"])])
            if (output or names[0]) not in names or (output is None and len(names) > 1):
                raise AVQAError(f"{path}: holds {', '.join(names)}; choose one of these with --output")
            self.name = f"{file.attrs['encoder']}/{output or names[0]}"
            _check_numbers(path, file[self.name])
            decoded, seconds = file["status"][:] == DECODED, file["num_segments"][:]
            for n, video_id in enumerate(file["video_id"].asstr()[:]):
                if decoded[n]:
                    self.places[video_id] = (path, n, int(seconds[n]))

    def read(self, video_id: str) -> np.ndarray:
        """T, … of the true seconds. Videos of one file after another are fastest."""
        path, row, seconds = self.places[video_id]
        if self._file is None or self._file.filename != str(path):
            self.close()
            self._file = h5py.File(path)
        return _check_finite(f"{path}: {video_id}", self._file[self.name][row, :seconds])

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()


class ArraySource:
    """A folder of <video id>.npy."""

    def __init__(self, folder: Path):
        self.name = folder.name
        self.places = {path.stem: path for path in sorted(folder.glob("*.npy"))}

    def read(self, video_id: str) -> np.ndarray:
        """T, … as the file has it."""
        path = self.places[video_id]
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise AVQAError(f"{path}: cannot be read as an array ({error}); get it again") from error
        _check_numbers(path, values)
        return _check_finite(path, values)

    def close(self) -> None:
        """Nothing is open."""


def _check_numbers(path: Path, values: np.ndarray | h5py.Dataset) -> None:
    if values.ndim < 2 or values.dtype.kind not in "fiu":
        raise AVQAError(f"{path}: holds {values.dtype} {values.shape}, expected a vector of numbers or more per second")


def _check_finite(name: str | Path, values: np.ndarray) -> np.ndarray:
    """The values themselves. Raises AVQAError where nothing could be said of them."""
    if not values.size or not all_finite(values):
        what = "numbers that are not finite" if values.size else "no seconds"
        raise AVQAError(f"{name}: holds {what}; get or make it again")
    return values


def open_source(path: str | Path, output: str | None = None) -> ShardSource | ArraySource:
    """Features by video id: an HDF5 file, or a folder of HDF5 or .npy files. Raises AVQAError for anything else."""
    path = Path(path)
    if path.is_file():
        return ShardSource([path], output)
    if files := sorted(path.glob("*.h5")):
        return ShardSource(files, output)
    if any(path.glob("*.npy")):
        return ArraySource(path)
    raise AVQAError(f"{path}: has no .h5 and no .npy files; give a features file or the folder that such files are in")


@dataclass
class Comparison:
    """What was measured over the videos that both sets have."""

    names: tuple[str, str]
    matched: int
    only: tuple[list[str], list[str]]  # ids that only A, only B has
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # per second
    equal: bool = True  # every bit
    error: float = 0.0  # largest difference of a number, relative to the largest number of its vector
    cosine: list[np.ndarray] = field(default_factory=list)  # per video: of each second
    unmatched: list[float] = field(default_factory=list)  # of different videos
    norms: list[tuple[float, float]] = field(default_factory=list)  # per video: mean norm in A, in B
    products: np.ndarray = field(default_factory=lambda: np.zeros(2))  # sums of a·b and b·b
    timing: np.ndarray = field(default_factory=lambda: np.zeros((len(SLOPES), len(SHIFTS))))  # sum over videos
    timed: int = 0
    lengths_differ: int = 0

    @property
    def similarity(self) -> float:
        """Mean cosine of the seconds."""
        return float(np.concatenate(self.cosine).mean())

    @property
    def scale(self) -> float:
        """The number that B times it is nearest to A."""
        return float(self.products[0] / self.products[1])

    @property
    def best(self) -> tuple[float, float, float]:
        """Slope, shift (seconds) and the gain in similarity over none of both; 1, 0, 0 where none is believable."""
        if not self.timed:
            return 1.0, 0.0, 0.0
        mean = self.timing / self.timed
        same_rate = int(np.argmin(abs(SLOPES - 1)))
        none = mean[same_rate, np.argmin(abs(SHIFTS))]
        k, s = np.unravel_index(np.argmax(mean), mean.shape)
        if mean[k, s] - mean[same_rate].max() < GAIN:  # another rate must be better than the best shift alone
            k, s = same_rate, int(np.argmax(mean[same_rate]))
        gain = float(mean[k, s] - none)
        # Interpolation removes noise as well: a real shift is better than the same shift the other way.
        mirrored = mean[len(SLOPES) - 1 - k, len(SHIFTS) - 1 - s]
        if gain < GAIN or mean[k, s] - mirrored < GAIN:
            return 1.0, 0.0, 0.0
        return float(SLOPES[k]), float(SHIFTS[s]), gain

    def verdict(self) -> str:
        """One sentence."""
        if not self.matched:
            return "no video in common"
        if self.shapes[0] != self.shapes[1]:
            return f"other encoder or output: {self.shapes[0]} against {self.shapes[1]} numbers per second"
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
            units = [np.ptp(norms) < 0.01 and abs(norms[0] - 1) < 0.01 for norms in np.transpose(self.norms)]
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
        if self.cosine:
            slope, shift, gain = self.best
            low, middle, high = np.percentile(np.concatenate(self.cosine), [5, 50, 95])
            lines += [
                f"cosine similarity per second: mean {self.similarity:.4f}, median {middle:.4f}, 5 % to 95 % "
                f"{low:.4f} to {high:.4f}; of different videos {np.mean(self.unmatched or [np.nan]):.4f}",
                f"scale {self.scale:.4g}; largest relative difference {self.error:.3g}",
                f"best shift {shift:+.1f} s, slope {slope:.3f} rows of B per row of A: similarity {gain:+.4f}",
            ]
        if self.lengths_differ:
            lines.append(f"{self.lengths_differ} videos have different numbers of seconds")
        return "\n".join([*lines, f"verdict: {self.verdict()}"])


def compare(a: str | Path, b: str | Path, output: str | None = None) -> Comparison:
    """Compare the videos that two sets of features have in common, one at a time. Raises AVQAError."""
    one, other = open_source(a, output), open_source(b, output)
    common = [video_id for video_id in one.places if video_id in other.places]
    only = ([i for i in one.places if i not in other.places], [i for i in other.places if i not in one.places])
    result = Comparison((one.name, other.name), len(common), only)
    step = max(1, len(common) // TIMED)
    try:
        before = None
        for n, video_id in enumerate(tqdm(common, desc="compare", unit="video", mininterval=2, disable=None)):
            x, y = one.read(video_id), other.read(video_id)
            result.shapes = (x.shape[1:], y.shape[1:])
            if x.shape[1:] != y.shape[1:]:
                break
            _add(result, x, y, before, timed=n % step == 0)
            before = y
    finally:
        one.close()
        other.close()
    return result


def _add(result: Comparison, x: np.ndarray, y: np.ndarray, before: np.ndarray | None, timed: bool) -> None:
    """Add one video: x is A's, y B's, `before` B's of another video."""
    result.lengths_differ += len(x) != len(y)
    seconds = min(len(x), len(y))
    result.equal &= x.dtype == y.dtype and np.array_equal(x[:seconds], y[:seconds])
    x, y = (values.reshape(len(values), -1).astype(np.float32) for values in (x, y))
    difference = np.abs(x[:seconds] - y[:seconds]).max(1) / np.maximum(np.abs(x[:seconds]).max(1), 1e-12)
    result.error = max(result.error, float(difference.max(initial=0)))
    result.cosine.append((_unit(x)[:seconds] * _unit(y)[:seconds]).sum(1))
    result.norms.append(tuple(float(np.linalg.norm(values, axis=1).mean()) for values in (x, y)))
    result.products += [(x[:seconds] * y[:seconds]).sum(), (y[:seconds] ** 2).sum()]
    if before is not None:
        z = before.reshape(len(before), -1)[:seconds].astype(np.float32)
        result.unmatched.append(float((_unit(x)[: len(z)] * _unit(z)).sum(1).mean()))
    if timed and seconds > 3:
        result.timing += _timing(x - x.mean(0), y - y.mean(0))
        result.timed += 1


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _timing(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean similarity of row t of x and y at slope · t + shift, for all SLOPES and SHIFTS, y interpolated linearly."""
    x, y = _unit(x), _unit(y)
    cosine, neighbours = x @ y.T, (y[:-1] * y[1:]).sum(1)
    t = np.arange(len(x))
    at = SLOPES[:, None, None] * t + SHIFTS[:, None]
    valid = (at >= 0) & (at <= len(y) - 1)
    row = np.clip(np.floor(at).astype(int), 0, len(y) - 2)
    w = np.clip(at - row, 0, 1)
    numerator = (1 - w) * cosine[t, row] + w * cosine[t, row + 1]
    length = np.sqrt(np.maximum((1 - w) ** 2 + w**2 + 2 * w * (1 - w) * neighbours[row], 1e-12))
    return (numerator / length * valid).sum(2) / np.maximum(valid.sum(2), 1)


def plot(result: Comparison, path: str | Path) -> None:
    """Similarity by second, similarity by shift, and norms, as an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    by_second, by_shift, norms = figure.subplots(1, 3)
    longest = max(map(len, result.cosine), default=0)
    table = np.array([np.pad(values, (0, longest - len(values)), constant_values=np.nan) for values in result.cosine])
    if longest:
        low, middle, high = np.nanpercentile(table, [5, 50, 95], axis=0)
        by_second.fill_between(range(longest), low, high, alpha=0.3, label="5 % to 95 % of videos")
        by_second.plot(middle, label="median")
        by_second.legend()
        norms.scatter(*np.transpose(result.norms), s=6)
    if result.timed:
        slope = result.best[0]
        by_shift.plot(SHIFTS, result.timing[np.argmin(abs(SLOPES - slope))] / result.timed)
        by_shift.set_title(f"slope {slope:.3f}")
    by_second.set(xlabel="second", ylabel="cosine similarity")
    by_shift.set(xlabel="shift of B in seconds", ylabel="centred similarity")
    norms.set(xlabel=f"norm in A, {result.names[0]}", ylabel=f"norm in B, {result.names[1]}")
    figure.suptitle(result.verdict())
    figure.savefig(path, dpi=120)
