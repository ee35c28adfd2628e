"""Contact sheets: what the pipeline reads of a video, second by second."""

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import librosa
import matplotlib
import numpy as np
from PIL import Image

from extractors import ENCODERS, AudioInput, FrameInput
from pipeline.errors import AVQAError
from pipeline.manifest import read_membership
from pipeline.media.segments import MachineError
from pipeline.media.transform import mirror
from pipeline.media.worker import Limits, Worker, WorkerFailure
from pipeline.reporting.page import webp
from pipeline.storage.shard_list import Video
from pipeline.storage.tables import read_table

AUDIO = AudioInput(16000)
# VGGish's log-mel setting (Hershey et al., 2017): 25 ms windows every 10 ms, 64 bands from 125 to 7,500 Hz.
MEL = {"sr": AUDIO.rate, "n_fft": 400, "hop_length": 160, "n_mels": 64, "fmin": 125, "fmax": 7500}
RANGE = 80.0  # dB below the loudest band
QUIET = 1e-2  # power of a band below which a video counts as silent
DECODING = ("backend", "segments", "pad", "frame_at", "frame_selection", "selective")  # what decides the segments
WAVE_HEIGHT, MEL_HEIGHT, INK = 32, 64, (70, 130, 180)  # pixels, and the waveform's colour


@dataclass
class Sheet:
    """One video's contact sheet, or the reason why there is none."""

    video_id: str
    num_segments: int = 0
    has_audio: bool = False
    segments: int = 0  # seconds that features have; those past num_segments are padding
    frame_at: float = 0.5
    peak: float = 0.0  # largest absolute sample
    seconds: list[str] = field(default_factory=list)  # an image of each second: frame, waveform, log-mel
    reason: str = ""


def frame_input(encoders: Iterable[str]) -> FrameInput:
    """The frames of the first of the encoders that reads any, one per second."""
    frames = (item for name in encoders for item in ENCODERS[name].inputs if isinstance(item, FrameInput))
    return replace(next(frames, FrameInput(224)), fps=1)


def listed_videos(collection: Path) -> dict[str, Video]:
    """The videos of a collection by id; where videos.parquet is lost, as the shards' lists say."""
    with suppress(AVQAError):
        table = read_table(collection / "videos.parquet")
        rows = table[[name for name in Video._fields if name in table]].to_dict("records")
        return {row["video_id"]: Video(**row) for row in rows}
    return {video.video_id: video for shard in read_membership(collection / "videos.parquet") for video in shard}


def read_sheets(videos: Iterable[Video], frames: FrameInput, decode: dict, width: int) -> Iterator[Sheet]:
    """The contact sheets of videos, `width` pixels per second; `decode` as in the configuration.

    Videos are decoded in a process of their own, which may crash or hang without harm.
    """
    options = {name: decode[name] for name in DECODING}
    with closing(Worker(Limits())) as worker:
        for video in videos:
            sheet = Sheet(video.video_id, segments=options["segments"], frame_at=options["frame_at"])
            inputs = [frames, AUDIO] if video.path else [AUDIO]
            try:
                found, data = worker.read(video.path or None, inputs, **options, audio_path=video.audio_path or None)
            except (WorkerFailure, MachineError) as error:
                sheet.reason = str(error)
            else:
                if video.mirrored:
                    mirror(data)
                sheet.num_segments, sheet.has_audio = found["num_segments"], found["has_audio"]
                rows = {key: values[: sheet.num_segments] for key, values in data.items()}
                sheet.peak = float(np.abs(rows[AUDIO.key]).max())
                sheet.seconds = [webp(image) for image in _draw(rows.get(frames.key), rows[AUDIO.key], width)]
            yield sheet


def _draw(frames: np.ndarray | None, audio: np.ndarray, width: int) -> Iterator[Image.Image]:
    """One image per second: frames T, S, S, 3 (if there are any) above the waveform and the log-mel spectrogram of
    audio T, rate."""
    waves, mels = draw_waveform(audio, width), draw_log_mel(audio, width)
    for second, (wave, mel) in enumerate(zip(waves, mels, strict=True)):
        parts = [Image.fromarray(wave), Image.fromarray(mel)]
        if frames is not None:
            parts.insert(0, Image.fromarray(frames[second]).resize((width, width), Image.Resampling.BICUBIC))
        image, top = Image.new("RGB", (width, sum(part.height for part in parts))), 0
        for part in parts:
            image.paste(part, (0, top))
            top += part.height
        yield image


def draw_waveform(audio: np.ndarray, width: int) -> np.ndarray:
    """T, rate samples -> T, WAVE_HEIGHT, width, 3: in each column, a bar from its lowest sample to its highest."""
    samples = audio.shape[1] // width * width
    columns = audio[:, :samples].reshape(len(audio), width, -1) / max(np.abs(audio).max(), 1e-3)
    middle = (WAVE_HEIGHT - 1) / 2
    top, bottom = middle * (1 - columns.max(-1)), middle * (1 - columns.min(-1))  # T, width
    y = np.arange(WAVE_HEIGHT)[None, :, None]
    inside = (y >= np.floor(top)[:, None]) & (y <= np.ceil(bottom)[:, None])
    return np.where(inside[..., None], np.uint8(INK), np.uint8(255))


def draw_log_mel(audio: np.ndarray, width: int) -> np.ndarray:
    """T, rate samples -> T, MEL_HEIGHT, width, 3: low bands at the bottom, RANGE dB from dark to bright."""
    mel = librosa.feature.melspectrogram(y=audio.reshape(-1), **MEL)
    level = librosa.power_to_db(mel, ref=max(mel.max(), QUIET), top_db=None).clip(-RANGE, 0) / RANGE + 1
    image = Image.fromarray(matplotlib.colormaps["magma"](level[::-1], bytes=True)[..., :3])
    rows = np.asarray(image.resize((width * len(audio), MEL_HEIGHT), Image.Resampling.BILINEAR))
    return rows.reshape(MEL_HEIGHT, len(audio), width, 3).swapaxes(0, 1)
