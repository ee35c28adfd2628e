"""An audio file in place of a video's audio track. WAV, FLAC and Ogg are decoded by libsndfile and resampled by soxr.

MP3 is decoded by ffmpeg, as a video's own audio is: where an MP3 file does not state its length, libsndfile takes an
estimate for its end, which may be much too early.
"""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import soxr

from pipeline.media.audio import AudioTrack, read_audio
from pipeline.media.container import MediaError, MediaFile, check_readable, open_regular, read_head
from pipeline.media.video import open_container

_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")  # libsndfile's names
_RATES = range(1000, 768_001)  # sampling rates that audio has; a damaged header may have any
_BLOCK = 2**20  # samples of all channels that are decoded at a time


def read_audio_file(path: str | os.PathLike, seconds: int, rate: int) -> AudioTrack:
    """The first `seconds` seconds of an audio file at `rate` Hz, from time 0; channels are averaged.

    Raises MediaError (final) for a file that cannot be decoded or has no samples, and MachineError.
    """
    with open_regular(path) as descriptor:
        try:
            # One second more, so that the last sample is filtered like the others.
            source, samples = _decode(path, descriptor, seconds + 1)
        except (soundfile.LibsndfileError, MediaError) as error:
            check_readable(path)
            reason = error.reason if isinstance(error, MediaError) else f"cannot be decoded ({error.error_string})"
            raise MediaError(path, reason, True) from error
    if len(samples) < (seconds + 1) * source:
        check_readable(path)  # otherwise a failed read would make the audio shorter without a word
    if not len(samples):
        raise MediaError(path, "has no audio samples", True)
    # A number that is not finite would spread over its neighbours.
    samples = soxr.resample(np.nan_to_num(samples, posinf=0, neginf=0), source, rate, "HQ")
    return AudioTrack(rate, Fraction(0), np.clip(np.nan_to_num(samples), -1, 1))


def _decode(path: str | os.PathLike, descriptor: int, seconds: int) -> tuple[int, np.ndarray]:
    """The sampling rate, and the first seconds as mono float32."""
    head = read_head(path, descriptor)
    if head.startswith(b"ID3") or (head[0] == 0xFF and head[1:2] >= b"\xe0"):
        return _decode_mp3(MediaFile(os.fspath(Path(path).absolute()), "mp3"), seconds)
    if head.startswith((b"fLaC", b"OggS")) or (head.startswith(b"RIFF") and head[8:12] == b"WAVE"):
        return _decode_by_libsndfile(path, descriptor, seconds)
    raise MediaError(path, "does not begin like WAV, FLAC, Ogg or MP3; convert it")


def _decode_mp3(file: MediaFile, seconds: int) -> tuple[int, np.ndarray]:
    with open_container(file) as container:
        rates = [stream.rate for stream in container.streams.audio]
    track = read_audio(file, seconds, rates[0]) if rates and rates[0] in _RATES else None
    return (track.rate, track.samples) if track else (1, np.zeros(0, np.float32))


def _decode_by_libsndfile(path: str | os.PathLike, descriptor: int, seconds: int) -> tuple[int, np.ndarray]:
    if _is_chain(descriptor):  # libsndfile would read the first recording only
        raise MediaError(path, "is a chain of several Ogg recordings; convert it")
    os.lseek(descriptor, 0, os.SEEK_SET)
    # By its descriptor, so that libsndfile sees neither name nor neighbours of the file.
    with soundfile.SoundFile(descriptor, closefd=False) as file:
        if file.format not in _FORMATS:
            raise MediaError(path, f"is {file.format}, not WAV, FLAC or Ogg; convert it")
        if file.samplerate not in _RATES:
            raise MediaError(path, f"has an impossible sampling rate, {file.samplerate} Hz")
        left, parts = seconds * file.samplerate, [np.zeros(0, np.float32)]
        while left and len(block := file.read(min(left, _BLOCK // file.channels), "float32", always_2d=True)):
            parts.append(block.mean(1, dtype=np.float64).astype(np.float32))
            left -= len(block)
        return file.samplerate, np.concatenate(parts)


def _is_chain(descriptor: int) -> bool:
    """Whether an Ogg file has a first page of a stream (RFC 3533) after a page that is none."""
    at, begun = 0, False
    while (page := os.pread(descriptor, 27 + 255, at)).startswith(b"OggS") and len(page) > 27:
        is_first = bool(page[5] & 2)
        if is_first and begun:
            return True
        begun = not is_first
        at += 27 + page[26] + sum(page[27 : 27 + page[26]])
    return False
