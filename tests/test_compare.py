"""`avqa compare`: what was done to a copy of features is what the verdict says."""

import numpy as np
import pytest
from made_results import feature, make_results

from pipeline.cli import main
from pipeline.compare import compare
from pipeline.errors import AVQAError

DIM, SECONDS = 64, 40
VIDEOS = [f"v{n:03d}" for n in range(20)]
RNG = np.random.default_rng(0)
WAVES = {v: (RNG.normal(size=(12, DIM)), RNG.uniform(0.3, 1.2, 12), RNG.uniform(0, 6, 12)) for v in VIDEOS}
COMMON = 3 * RNG.normal(size=DIM)  # as of an encoder: all its features have something in common


def signal(video_id, times):
    """A smooth function of time: what an encoder would give at any moment. T, DIM"""
    directions, rates, phases = WAVES[video_id]
    return COMMON + np.sin(np.outer(times, rates) + phases) @ directions


def write(folder, make, videos=VIDEOS):
    folder.mkdir()
    for video_id in videos:
        np.save(folder / f"{video_id}.npy", make(video_id).astype("float32"))
    return folder


@pytest.fixture
def a(tmp_path):
    return write(tmp_path / "a", lambda v: signal(v, np.arange(SECONDS) + 0.5))


def verdict(a, b):
    return compare(a, b).verdict()


@pytest.mark.parametrize("shift", [-2.0, -0.5, 0.3, 1.0, 2.4])
def test_a_shift_in_time_is_measured(a, tmp_path, shift):
    """B's row t is of the moment t + 0.5 - shift: so much earlier."""
    result = compare(a, write(tmp_path / "b", lambda v: signal(v, np.arange(SECONDS) + 0.5 - shift)))
    assert result.best[:2] == pytest.approx((1, shift), abs=0.11)
    word = "earlier" if shift > 0 else "later"
    assert result.verdict().startswith("same encoder, other frames: B is") and word in result.verdict()


def test_a_hop_of_096_seconds_is_a_slope(a, tmp_path):
    result = compare(a, write(tmp_path / "b", lambda v: signal(v, 0.96 * np.arange(SECONDS / 0.96) + 0.5)))
    assert result.best[0] == pytest.approx(1 / 0.96, abs=0.006) and result.best[1] == pytest.approx(0, abs=0.21)
    assert result.verdict().startswith("same encoder, other frames: one row of B is 0.96 s")


def test_the_same(a, tmp_path):
    assert verdict(a, a) == "the same features, bit for bit"
    b = write(tmp_path / "b", lambda v: np.load(a / f"{v}.npy").astype("float16"))
    assert verdict(a, b) == "same features to float16"


def test_noise_is_no_shift(a, tmp_path):
    b = write(tmp_path / "b", lambda v: np.load(a / f"{v}.npy") + RNG.normal(size=(SECONDS, DIM)) * 0.2)
    assert verdict(a, b) == "same encoder, nearly the same frames: other resizing, decoding or arithmetic"
    b = write(tmp_path / "c", lambda v: np.load(a / f"{v}.npy") + RNG.normal(size=(SECONDS, DIM)) * 0.02)
    assert verdict(a, b) == "same encoder and frames, other rounding"


def test_scale(a, tmp_path):
    result = compare(a, write(tmp_path / "b", lambda v: np.load(a / f"{v}.npy") / 4))
    assert result.scale == pytest.approx(4) and result.verdict() == "same features, other scale: A is 4 times B"
    unit = write(tmp_path / "c", lambda v: (x := np.load(a / f"{v}.npy")) / np.linalg.norm(x, axis=1, keepdims=True))
    assert "B was divided by its norm" in verdict(a, unit)
    assert "A was divided by its norm" in verdict(unit, a)


def test_another_encoder(a, tmp_path):
    assert "(64,) against (32,)" in verdict(a, write(tmp_path / "b", lambda v: np.load(a / f"{v}.npy")[:, :32]))
    rotation = np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0]
    other = write(tmp_path / "c", lambda v: np.load(a / f"{v}.npy") @ rotation)
    assert verdict(a, other) == "other encoder, or other weights"


def test_ids_that_only_one_has(a, tmp_path, capsys):
    b = write(tmp_path / "b", lambda v: np.load(a / f"{v}.npy"), VIDEOS[5:])
    np.save(b / "more.npy", np.zeros((3, DIM)))
    assert main(["compare", str(a), str(b), "--plot", str(tmp_path / "p.png")]) == 0
    printed = capsys.readouterr().out
    assert "15 videos in both" in printed and "only in A: 5, as v000" in printed and "only in B: 1, as more" in printed
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"
    c = write(tmp_path / "c", lambda v: np.zeros((2, 2)), ["other"])
    assert verdict(a, c) == "no video in common"


def test_shards_against_arrays(tmp_path):
    shards = make_results(tmp_path).parent / "small_videos" / "features"
    folder = write(tmp_path / "b", lambda v: feature("clip_vit_b32/cls", v), [f"v{n:03d}" for n in range(12)])
    with pytest.raises(AVQAError, match=r"holds cls, patch; choose one of these with --output"):
        compare(shards / "clip_vit_b32", folder)
    result = compare(shards / "clip_vit_b32", folder, "cls")
    assert result.verdict() == "same features to float16" and result.error == 0 and result.lengths_differ == 8
    assert "(512,) against (128,)" in compare(folder, shards / "vggish" / "00000.h5").verdict()
    with pytest.raises(AVQAError, match=r"has no \.h5 and no \.npy files"):
        compare(tmp_path, folder)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((8, DIM), np.nan), "numbers that are not finite"),
        (np.zeros((0, DIM)), "no seconds"),
        (np.zeros(DIM), "expected a vector of numbers or more per second"),
    ],
)
def test_arrays_of_which_nothing_can_be_said_are_errors_that_name_the_file(a, tmp_path, values, reason):
    b = write(tmp_path / "b", lambda v: values if v == "v003" else np.load(a / f"{v}.npy"))
    for pair in ((a, b), (b, a)):
        with pytest.raises(AVQAError, match=rf"v003\.npy: holds .*{reason}"):
            compare(*pair)


def swap(folder, *pairs):
    for first, second in pairs:
        one, other = (np.load(folder / f"{v}.npy") for v in (first, second))
        np.save(folder / f"{first}.npy", other)
        np.save(folder / f"{second}.npy", one)


COPIES = {  # what was done to all videos, and the verdict of those that were not swapped
    "nothing": (lambda v: signal(v, np.arange(SECONDS) + 0.5), "of the others: the same features, bit for bit"),
    "rounding": (
        lambda v: signal(v, np.arange(SECONDS) + 0.5) + 0.01 * np.random.default_rng(1).normal(size=(SECONDS, DIM)),
        "of the others: same encoder and frames, other rounding",
    ),
    "resizing": (
        lambda v: signal(v, np.arange(SECONDS) + 0.5) + 0.2 * np.random.default_rng(1).normal(size=(SECONDS, DIM)),
        "of the others: same encoder, nearly the same frames",
    ),
    "shift": (lambda v: signal(v, np.arange(SECONDS) - 0.5), "of the others: same encoder, other frames: B is 1.0 s"),
    "scale": (lambda v: signal(v, np.arange(SECONDS) + 0.5) / 4, "of the others: same features, other scale: A is 4"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_two_videos_that_were_swapped_are_named(a, tmp_path, copy):
    make, expected = COPIES[copy]
    b = write(tmp_path / "b", make)
    assert "differ" not in verdict(a, b)
    swap(b, ("v003", "v011"))
    result = compare(a, b)
    assert {video.video_id for video in result.differing} == {"v003", "v011"}
    assert result.verdict().startswith("2 of 20 videos differ, v") and expected in result.verdict()
    assert "v003 (similarity 0." in str(result) and "v011 (similarity 0." in str(result)


def test_two_of_two_thousand_are_named(tmp_path):
    """Averages do not show them."""
    videos = [f"w{n:04d}" for n in range(2000)]
    rng = np.random.default_rng(2)
    arrays = {v: COMMON[:8] + 3 * rng.normal(size=8) + rng.normal(size=(3, 8)) / 4 for v in videos}
    a = write(tmp_path / "a", arrays.__getitem__, videos)
    b = write(tmp_path / "b", lambda v: arrays[v] * 1.00003, videos)
    swap(b, ("w1234", "w0321"))
    result = compare(a, b)
    assert {video.video_id for video in result.differing} == {"w1234", "w0321"}
    assert "same features to float16" in result.verdict()
    assert np.mean([video.cosine.mean() for video in result.videos]) > 0.9995


@pytest.mark.parametrize(
    ("noise", "others"), [(0, "the same features, bit for bit"), (0.02, "same encoder and frames, other rounding")]
)
@pytest.mark.parametrize("damage", ["a second", "scale", "shape", "zeros"])
def test_one_video_that_is_otherwise_is_named(a, tmp_path, damage, noise, others):
    b = write(tmp_path / "b", lambda v: np.load(a / f"{v}.npy") + RNG.normal(size=(SECONDS, DIM)) * noise)
    array = np.load(b / "v007.npy")
    if damage == "a second":
        array[17] = array[30]
    elif damage == "scale":
        array *= 2
    elif damage == "zeros":
        array[:] = 0
    else:
        array = array[:, :32]
    np.save(b / "v007.npy", array)
    assert verdict(a, b) == f"1 of 20 videos differ, v007; of the others: {others}"


def test_silence_in_both_is_the_same(tmp_path):
    make = {v: np.zeros((6, DIM)) if v == "v004" else RNG.normal(size=(6, DIM)) for v in VIDEOS}
    a = write(tmp_path / "a", make.__getitem__)
    assert verdict(a, write(tmp_path / "b", lambda v: make[v] * 1.00001)) == "same features to float16"


def test_half_of_the_videos_mixed_up_is_not_the_same(a, tmp_path):
    b = write(tmp_path / "b", lambda v: np.load(a / f"{v}.npy"))
    swap(b, *((f"v{n:03d}", f"v{n + 10:03d}") for n in range(6)))
    assert "same" not in verdict(a, b)


FINE = 50  # moments per second
AUDIO = {v: np.cumsum(RNG.normal(size=(70 * FINE, DIM)), 0) for v in VIDEOS}
MIXED = RNG.normal(size=(DIM, DIM)) / np.sqrt(DIM)


def listen(video_id, starts):
    """As VGGish hears: what a window of 0.96 s from each start holds, without negative numbers."""
    at = np.round(np.asarray(starts) * FINE).astype(int)
    return np.maximum(((AUDIO[video_id][at + 48] - AUDIO[video_id][at]) / np.sqrt(48)) @ MIXED + 0.5, 0)


@pytest.mark.parametrize("seconds", [5, 10, 60])
@pytest.mark.parametrize("encoder", [listen, signal], ids=["windows", "smooth"])
def test_a_hop_of_096_seconds_is_found_on_clips_of_any_length(tmp_path, encoder, seconds):
    """5 rows of 1 s and 5 of 0.96 s drift apart by 0.16 s only, which is no shift."""
    a = write(tmp_path / "a", lambda v: encoder(v, np.arange(seconds)))
    b = write(tmp_path / "b", lambda v: encoder(v, 0.96 * np.arange(int((seconds - 0.96) / 0.96) + 1)))
    result = compare(a, b)
    assert 1 / result.best[0] == pytest.approx(0.96, abs=0.011) and result.best[1] == 0
    assert "same encoder, other frames: one row of B is 0.9" in result.verdict() and "earlier" not in result.verdict()


@pytest.mark.parametrize("seconds", [5, 10])
@pytest.mark.parametrize("shift", [0, 0.5, 1])
@pytest.mark.parametrize("encoder", [listen, signal], ids=["windows", "smooth"])
def test_a_shift_of_short_clips_is_no_rate(tmp_path, encoder, seconds, shift):
    a = write(tmp_path / "a", lambda v: encoder(v, np.arange(seconds) + 3) + 0.2 * RNG.normal(size=(seconds, DIM)))
    b = write(tmp_path / "b", lambda v: encoder(v, np.arange(seconds) + 3 - shift))
    slope, found, _ = compare(a, b).best
    assert slope == 1
    assert found == pytest.approx(shift, abs=0.21)


def test_files_that_video_features_named(a, tmp_path):
    """Frames at 25 per second with their times, beside one array a second: the rows of the same moments."""
    b = tmp_path / "b"
    b.mkdir()
    for video_id in VIDEOS:
        np.save(b / f"{video_id}_resnet.npy", signal(video_id, np.arange(25 * SECONDS) / 25))
        np.save(b / f"{video_id}_fps.npy", np.array(25.0))
        np.save(b / f"{video_id}_timestamps_ms.npy", np.arange(25 * SECONDS) * 40.0)
    result = compare(a, b)
    assert result.matched == 20 and result.only == ([], []) and result.lengths_differ == 0
    assert result.similarity > 0.9999  # 0.5 s is shown from 0.48 s on
    assert "of b, the rows whose times are the middles of the seconds are compared" in str(result)


def test_vggish_of_video_features_is_at_another_rate(tmp_path):
    a = write(tmp_path / "a", lambda v: listen(v, np.arange(30)))
    b = write(tmp_path / "b", lambda v: np.zeros((1, 1)), [])
    for video_id in VIDEOS:
        np.save(b / f"{video_id}_vggish.npy", listen(video_id, 0.96 * np.arange(31)))
    assert "one row of B is 0.96 s" in verdict(a, b)
