"""Contact sheets of clips whose frames and audio are known."""

import base64
import io
import re

import librosa
import numpy as np
import pytest
from media.oracle import clip
from PIL import Image

from extractors import FrameInput
from pipeline.cli import main
from pipeline.look import default_decode
from pipeline.reporting.sheet import MEL_HEIGHT, WAVE_HEIGHT, frame_input, read_sheets
from pipeline.storage.shard_list import Video

WIDTH = 64
RED_THEN_BLUE = "color=red:s=64x64:r=25:d=2[a];color=blue:s=64x64:r=25:d=2[b];[a][b]concat"
TONE = "aevalsrc=0.5*sin(2*PI*1000*t)*gte(t\\,1):s=16000:d=4"  # 1 kHz from second 1 on
CODECS = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "pcm_s16le")


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """Of a clip with audio, a file that is no video, a clip without audio, and audio alone."""
    folder = tmp_path_factory.mktemp("clips")
    clip(folder / "tone.mkv", "-f", "lavfi", "-i", RED_THEN_BLUE, "-f", "lavfi", "-i", TONE, *CODECS)
    (folder / "broken.mp4").write_bytes(b"not a video" * 100)
    clip(folder / "mute.mp4", "-f", "lavfi", "-i", RED_THEN_BLUE, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    clip(folder / "alone.wav", "-f", "lavfi", "-i", TONE)
    videos = [Video(name.split(".")[0], str(folder / name), 1, 1) for name in ("tone.mkv", "broken.mp4", "mute.mp4")]
    videos.append(Video("alone", "", 0, 0, str(folder / "alone.wav")))
    decode = default_decode() | {"segments": 6}
    return {sheet.video_id: sheet for sheet in read_sheets(videos, FrameInput(64), decode, WIDTH)}


def parts(uri):
    """Frame, waveform and spectrogram of a second, as numbers from 0 to 255."""
    assert uri.startswith("data:image/webp;base64,")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(float)
    assert image.shape == (WIDTH + WAVE_HEIGHT + MEL_HEIGHT, WIDTH, 3)
    return np.split(image, [WIDTH, WIDTH + WAVE_HEIGHT])


def test_frames_are_those_of_their_seconds(sheets):
    assert sheets["tone"].num_segments == 4 and sheets["tone"].segments == 6
    colours = [parts(uri)[0].mean((0, 1)) for uri in sheets["tone"].seconds]
    assert [int(colour.argmax()) for colour in colours] == [0, 0, 2, 2]  # red, red, blue, blue


def test_waveforms_have_the_audio_of_their_seconds(sheets):
    inked = [(parts(uri)[1].sum(-1) < 600).any(1).sum() for uri in sheets["tone"].seconds]  # rows
    assert inked[0] <= 4 and min(inked[1:]) >= WAVE_HEIGHT - 4
    assert sheets["tone"].has_audio and sheets["tone"].peak == pytest.approx(0.5, abs=0.01)


def test_spectrograms_have_the_tone_at_its_band(sheets):
    centres = librosa.mel_frequencies(66, fmin=125, fmax=7500)[1:-1]
    expected = MEL_HEIGHT - 1 - np.abs(centres - 1000).argmin()  # low bands at the bottom
    for second, uri in enumerate(sheets["tone"].seconds):
        rows = parts(uri)[2].sum(-1).mean(1)
        if second == 0:  # silent, but for the tone that the last windows reach
            assert parts(uri)[2][:, : WIDTH - 8].mean() < 30
        else:
            assert abs(int(rows.argmax()) - expected) <= 2


def test_a_video_without_audio_is_dark_and_flat(sheets):
    sheet = sheets["mute"]
    assert not sheet.has_audio and sheet.peak == 0 and sheet.num_segments == 4
    for uri in sheet.seconds:
        _, wave, mel = parts(uri)
        assert mel.mean() < 30 and (wave.sum(-1) < 600).any(1).sum() <= 4


def test_a_file_that_cannot_be_read_has_a_reason_and_does_not_stop_the_others(sheets):
    assert sheets["broken"].reason and not sheets["broken"].seconds
    assert not sheets["mute"].reason and list(sheets) == ["tone", "broken", "mute", "alone"]


def test_audio_without_a_video_has_no_frames(sheets):
    sheet = sheets["alone"]
    assert sheet.num_segments == 4 and sheet.has_audio and len(sheet.seconds) == 4
    image = Image.open(io.BytesIO(base64.b64decode(sheet.seconds[2].split(",")[1])))
    assert image.size == (WIDTH, WAVE_HEIGHT + MEL_HEIGHT)


def test_frames_of_a_mirrored_video_are_mirrored(tmp_path, monkeypatch):
    """As the encoders read them; its sound is as it was. Images without loss, so that pixels can be compared."""
    monkeypatch.setattr("pipeline.reporting.sheet.webp", lambda image: np.asarray(image))
    source = ("-f", "lavfi", "-i", "testsrc2=s=64x64:r=5:d=2", "-f", "lavfi", "-i", "sine=440:d=2")
    path = str(clip(tmp_path / "v.mkv", *source, *CODECS))
    videos = [Video("v", path, 1, 1), Video("v_flip", path, 1, 1, mirrored=True)]
    seen, flipped = (s.seconds for s in read_sheets(videos, FrameInput(64), default_decode() | {"segments": 2}, WIDTH))
    for image, other in zip(seen, flipped, strict=True):
        np.testing.assert_array_equal(other[:WIDTH], np.flip(image[:WIDTH], axis=1))
        np.testing.assert_array_equal(other[WIDTH:], image[WIDTH:])
        assert (other[:WIDTH] != image[:WIDTH]).any()


def test_frames_are_those_that_the_encoders_read():
    assert frame_input(["vggish", "clip_vit_l14_336"]) == FrameInput(336)
    assert frame_input(["vggish"]) == FrameInput(224)


def test_look_at_a_file(tmp_path, capsys):
    clip(tmp_path / "a b.mkv", "-f", "lavfi", "-i", RED_THEN_BLUE, "-f", "lavfi", "-i", TONE, *CODECS)
    out = tmp_path / "page.html"
    assert main(["look", str(tmp_path / "a b.mkv"), "--out", str(out)]) == 0
    printed, page = capsys.readouterr().out, out.read_text()
    assert "has_audio: True" in printed and "num_segments: 4 of 60" in printed and str(out) in printed
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["0.5 s", "1.5 s", "2.5 s", "3.5 s"]
    assert "http" not in re.sub(r"data:[^\"]*", "", page)


def test_look_at_a_file_with_the_longest_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = clip(tmp_path / f"{'v' * 251}.mkv", "-f", "lavfi", "-i", RED_THEN_BLUE, *CODECS[:4])
    assert main(["look", str(path)]) == 1
    assert "give another one with --out" in capsys.readouterr().err
    assert main(["look", str(path), "--out", "x.html"]) == 0


def test_look_names_what_is_missing(tmp_path, capsys):
    assert main(["look", str(tmp_path / "00000093")]) == 1
    assert "--config" in capsys.readouterr().err
