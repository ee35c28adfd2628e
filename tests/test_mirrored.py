"""A mirrored video is made from its original while decoding."""

import h5py
import numpy as np
import pytest
from media.oracle import clip

from extractors import ENCODERS
from pipeline.decode import decode_shard
from pipeline.storage.shard_list import Video

INPUTS = [item for name in ("resnet18", "vggish") for item in ENCODERS[name].inputs]


@pytest.fixture
def segments(tmp_path):
    """A clip, the same for an id with _flip, and the file that ffmpeg has mirrored, decoded; without loss."""
    source = ["-f", "lavfi", "-i", "testsrc2=s=256x256:r=5:d=2", "-f", "lavfi", "-i", "sine=440:d=2"]
    codec = ["-c:v", "ffv1", "-pix_fmt", "bgr0"]
    clip(tmp_path / "v.mkv", *source, *codec)
    clip(tmp_path / "mirrored.mkv", *source, "-vf", "hflip", *codec)
    videos = [
        Video("v", str(tmp_path / "v.mkv"), 1, 1),
        Video("v_flip", str(tmp_path / "v.mkv"), 1, 1, mirrored=True),
        Video("w_flip", str(tmp_path / "mirrored.mkv"), 1, 1),
    ]
    decode_shard(
        videos,
        tmp_path / "s.h5",
        inputs=INPUTS,
        collection="c",
        shard="00000",
        segments=2,
        backend="pyav",
        pad="repeat",
        frame_at=0.5,
        frame_selection="exact",
        selective=True,
        workers=1,
        failures=tmp_path / "f.tsv",
    )
    with h5py.File(tmp_path / "s.h5") as file:
        assert (file["status"][:] == 0).all(), (tmp_path / "f.tsv").read_text()
        return {item.key: file[item.key][:] for item in INPUTS}


def test_frames_are_mirrored_and_audio_is_not(segments):
    frames, audio = (segments[item.key] for item in INPUTS)
    np.testing.assert_array_equal(frames[1], np.flip(frames[0], axis=-2))
    assert (frames[1] != frames[0]).any() and np.abs(audio[0]).max() > 0.01
    np.testing.assert_array_equal(audio[1], audio[0])


def test_it_equals_the_file_that_ffmpeg_mirrors(segments):
    frames = segments[INPUTS[0].key].astype(int)
    assert np.abs(frames[1] - frames[2]).max() <= 1
