"""At which rate and shift in time the rows of two arrays are most alike."""

import numpy as np

SHIFTS = np.round(np.arange(-3, 3.05, 0.1), 1)  # seconds
SLOPES = np.round(np.arange(0.9, 1.1025, 0.005), 3)  # rows of B per row of A: about 1.04 for a hop of 0.96 s
SAME_RATE, NO_SHIFT = int(np.argmin(abs(SLOPES - 1))), int(np.argmin(abs(SHIFTS)))
GAIN = 0.01  # in similarity: what makes a shift or slope believable
# What makes a slope believable where the gain is smaller, as on short clips: so many standard errors better than the
# best shift and than its mirror image, so much of what that shift leaves to full similarity, and so far from 1.
ERRORS, MIRRORED_ERRORS, SHARE, STEEP = 5, 8, 0.02, 0.025
SHORT = 8  # seconds: in a clip so short, the mean of all rows says much about the time that they span


def timing(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Similarity of row t of x and y at slope · t + shift, for all SLOPES and SHIFTS, y interpolated linearly and both
    less their means: x T, D and y U, D of one video. -1 where too few rows overlap."""
    at = SLOPES[:, None, None] * np.arange(len(x)) + SHIFTS[:, None]
    valid = (at >= 0) & (at <= len(y) - 1)
    row = np.clip(np.floor(at).astype(int), 0, len(y) - 2)
    weight = np.clip(at - row, 0, 1)
    if len(x) <= SHORT:
        return _of_overlap(_unit(x), _unit(y), valid, row, weight)
    x, y = _unit(x - x.mean(0)), _unit(y - y.mean(0))
    cosine, neighbours, t = x @ y.T, (y[:-1] * y[1:]).sum(1), np.arange(len(x))
    numerator = (1 - weight) * cosine[t, row] + weight * cosine[t, row + 1]
    squares = (1 - weight) ** 2 + weight**2 + 2 * weight * (1 - weight) * neighbours[row]
    return (numerator / np.sqrt(np.maximum(squares, 1e-12)) * valid).sum(2) / np.maximum(valid.sum(2), 1)


def _of_overlap(x: np.ndarray, y: np.ndarray, valid: np.ndarray, row: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same, less the means of the rows that overlap: those of all rows are of other seconds in x than in y."""
    products, xx, yy, t = x @ y.T, x @ x.T, y @ y.T, np.arange(len(x))
    count = valid.sum(2)
    share = valid / np.maximum(count, 1)[..., None]
    a, b, u, v = row[..., :, None], row[..., None, :], weight[..., :, None], weight[..., None, :]
    cross = (1 - v) * products[t[:, None], b] + v * products[t[:, None], b + 1]
    inner = (1 - u) * ((1 - v) * yy[a, b] + v * yy[a, b + 1]) + u * ((1 - v) * yy[a + 1, b] + v * yy[a + 1, b + 1])
    cross, of_x, of_y = (_covariance(m, share) for m in (cross, np.broadcast_to(xx, cross.shape), inner))
    similarity = cross / np.sqrt(np.maximum(of_x * of_y, 1e-24))
    return np.where(count >= max(3, len(x) - 2), similarity, -1)


def _covariance(products: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The mean of the products of equal rows, less that of all pairs: …, T, T and the rows' weights …, T to …"""
    equal = (np.diagonal(products, axis1=-2, axis2=-1) * share).sum(-1)
    return equal - np.einsum("...t,...tu,...u->...", share, products, share)


def best(videos: np.ndarray) -> tuple[float, float, float]:
    """Slope, shift (seconds) and the gain in similarity over none of both, from `timing` of each video; 1, 0, 0 where
    none is believable."""
    mean = videos.mean(0)
    shift = int(np.argmax(mean[SAME_RATE]))
    k, s = np.unravel_index(np.argmax(mean), mean.shape)
    if not _is_slope(videos, int(k), int(s), shift):
        k, s = SAME_RATE, shift
        # Interpolation removes noise as well: a real shift is better than the same shift the other way.
        gain = mean[k, s] - max(mean[k, NO_SHIFT], mean[k, len(SHIFTS) - 1 - s] if s != NO_SHIFT else -1)
        if gain < GAIN:
            return 1.0, 0.0, 0.0
    return float(SLOPES[k]), float(SHIFTS[s]), float(mean[k, s] - mean[SAME_RATE, NO_SHIFT])


def _is_slope(videos: np.ndarray, k: int, s: int, shift: int) -> bool:
    """Whether a slope is better than the best shift alone, and than the same slope the other way around that shift."""
    mirrored = (len(SLOPES) - 1 - k, int(np.clip(2 * shift - s, 0, len(SHIFTS) - 1)))
    over_shift, over_mirrored = (videos[:, k, s] - videos[:, n, m] for n, m in ((SAME_RATE, shift), mirrored))
    gain = over_shift.mean()
    if gain >= GAIN:
        return bool(over_mirrored.mean() >= GAIN)
    enough = gain >= SHARE * (1 - videos[:, SAME_RATE, shift].mean()) and abs(SLOPES[k] - 1) >= STEEP
    return bool(enough and _errors(over_shift) >= ERRORS and _errors(over_mirrored) >= MIRRORED_ERRORS)


def _errors(values: np.ndarray) -> float:
    """The mean in standard errors."""
    if len(values) < 3:
        return 0.0
    return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values)) + 1e-12))


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
