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
