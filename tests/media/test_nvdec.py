"""The backend nvdec without a GPU: what it says, and its frames with torchcodec's CPU decoder in the GPU's place."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from media.oracle import clip

from extractors import AudioInput, FrameInput
from pipeline.cli import main
from pipeline.media.container import MachineError
from pipeline.media.segments import read_segments
from pipeline.media.video_nvdec import NvdecDecoder

ROOT = Path(__file__).resolve().parents[2]
VIDEO = ("-f", "lavfi", "-i", "testsrc2=s=160x96:r=25:d=4", "-f", "lavfi", "-i", "sine=500:d=4")
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", 2, "-g", 30)

# In a process of its own, since the loader reads LD_LIBRARY_PATH only at the start.
SAME_FRAMES = """
import sys
import numpy as np
from extractors import FrameInput
from pipeline.media.segments import read_segments
from pipeline.media.video_nvdec import NvdecDecoder

NvdecDecoder.device = "cpu"
for path in sys.argv[1:]:
    for options in ({}, {"frame_at": 0.1}, {"frame_selection": "keyframe"}):
        inputs = (FrameInput(64), FrameInput(64, fps=16))
        found, want = (read_segments(path, segments=6, inputs=inputs, backend=b, **options) for b in ("nvdec", "pyav"))
        assert found.num_segments == want.num_segments and found.has_audio == want.has_audio
        for key in want.data:
            assert np.array_equal(found.data[key], want.data[key]), (path, options, key)
print("same")
"""


@pytest.fixture
def made(tmp_path):
    clip(tmp_path / "plain.mp4", *VIDEO, *X264)
    clip(tmp_path / "late.mkv", "-itsoffset", 1.5, *VIDEO[:4], *VIDEO[4:], *X264)
    clip(tmp_path / "cut.mp4", "-ss", 0.9, "-i", tmp_path / "plain.mp4", "-c", "copy")
    clip(tmp_path / "turned.mp4", "-display_rotation", 90, "-i", tmp_path / "plain.mp4", "-c", "copy")
    return tmp_path


@pytest.fixture
def libraries(tmp_path):
    """FFmpeg's libraries of PyAV's wheel under the names that torchcodec looks for."""
    if importlib.util.find_spec("torchcodec") is None:
        pytest.skip("torchcodec is not installed")
    folder = tmp_path / "libraries"
    folder.mkdir()
    for library in (Path(av.__file__).parent.parent / "av.libs").glob("lib[as][vw]*.so.*"):
        name, version = library.name.split(".so.")
        (folder / f"{name.split('-')[0]}.so.{version.split('.')[0]}").symlink_to(library)
    if not list(folder.iterdir()):
        pytest.skip("PyAV's wheel brings no libraries here")
    return folder


def test_the_frames_of_the_cpu_decoder_are_the_exact_ones(made, libraries):
    """Frames are chosen by their timestamps: B-frames, a late start, a clip cut between key frames, a turned one."""
    names = [str(made / name) for name in ("plain.mp4", "late.mkv", "cut.mp4", "turned.mp4")]
    paths = os.pathsep.join(filter(None, [str(libraries), os.environ.get("LD_LIBRARY_PATH")]))
    env = os.environ | {"LD_LIBRARY_PATH": paths, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SAME_FRAMES, *names], capture_output=True, text=True, env=env)
    assert done.stdout == "same\n", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_shard_stops_and_no_video_is_recorded_as_failed(made, capsys):
    with pytest.raises(MachineError, match=r"backend nvdec: (PyTorch finds no GPU|torchcodec cannot)"):
        read_segments(made / "plain.mp4", inputs=(FrameInput(64), AudioInput(16000)), backend="nvdec")
    out = made / "segments.h5"
    arguments = [
        "decode",
        str(made / "plain.mp4"),
        "--backend",
        "nvdec",
        "--encoder",
        "clip_vit_b32",
        "--out",
        str(out),
    ]
    assert main(arguments) == 1
    assert "backend nvdec" in capsys.readouterr().err and not out.exists()
    assert not Path(f"{out}.failures.tsv").exists()


class Decoder:
    """A stand-in for torchcodec's that reports why it would decode on the CPU."""

    def __init__(self, status):
        self.status = status

    @property
    def cpu_fallback(self):
        return self.status


def test_what_the_gpu_cannot_decode_is_refused(made):
    """The reasons are torchcodec's: a video that NVDEC does not know, or a driver without it."""
    decoder = object.__new__(NvdecDecoder)
    decoder.file = type("File", (), {"path": "clip.mp4"})
    with pytest.raises(Exception, match=r"clip\.mp4: nvdec: .*Video not supported") as refused:
        decoder._check(Decoder("Fallback status: Falling back due to: Video not supported"))
    assert not isinstance(refused.value, MachineError) and not refused.value.final
    with pytest.raises(MachineError, match="driver"):
        decoder._check(Decoder("Fallback status: Falling back due to: NVcuvid unavailable"))
    decoder._check(Decoder(""))
