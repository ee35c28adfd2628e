"""Which files may be opened. Files may be hostile, so containers and codecs come from lists of allowed ones.

The container is recognised from the first bytes of the file, never from its name, and every reader must use that one.
Playlists, concat scripts, subtitles and session descriptions are text; they do not begin like an allowed container and
are refused before any library opens them. No reader may open anything but the file itself.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AVQAError

PROTOCOL = "file"
# Decoders, by FFmpeg's names.
_VIDEO = (
    "h264,hevc,vp8,vp9,libdav1d,av1,libaom-av1,mpeg1video,mpeg2video,mpeg4,msmpeg4,msmpeg4v1,msmpeg4v2,h263,flv,wmv1,"
    "wmv2,wmv3,vc1,theora,mjpeg,dvvideo,prores,ffv1"
)
_AUDIO = (
    "aac,aac_latm,mp1,mp1float,mp2,mp2float,mp3,mp3float,ac3,eac3,opus,libopus,vorbis,libvorbis,flac,alac,wmav1,wmav2,"
    "wmapro,amrnb,amrwb,libopencore_amrnb,libopencore_amrwb,adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,adpcm_swf,nellymoser,"
    "speex,pcm_alaw,pcm_mulaw,pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,"
    "pcm_f32be,pcm_f64le,pcm_f64be,pcm_dvd,pcm_bluray,dca,truehd,mlp,tta,wavpack,wmavoice,wmalossless,"
    "s302m,gsm,gsm_ms,qcelp,evrc"
)
VIDEO_CODECS = frozenset(_VIDEO.split(","))
AUDIO_CODECS = frozenset(_AUDIO.split(","))
_PROBE_TIME, _PROBE_BYTES = 5, 2**24  # seconds and bytes after the first packet in which a stream's properties are


# What the system reports when the path itself is wrong. Any other error is a fault of the machine or its storage.
_PATH_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class MachineError(AVQAError):
    """The machine failed, not the video: storage that cannot be read, too many open files, no ffmpeg program.

    The same video may be decoded in another run, so this must never be recorded as a failure of the video.
    """


class MediaError(AVQAError):
    """A video file that cannot be decoded. `final`: it was refused before a decoder has run, which could be left in any
    state."""

    def __init__(self, path: str | os.PathLike, reason: str, final: bool = False):
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.reason, self.final = reason, final


@dataclass(frozen=True)
class MediaFile:
    """A regular file that begins like an allowed container."""

    path: str  # absolute
    container: str  # FFmpeg's name of the demuxer to use
    probe: tuple[float, int] | None = None  # seconds and bytes to a packet that FFmpeg does not look for by itself

    @classmethod
    def check(cls, path: str | os.PathLike) -> "MediaFile":
        """Raises MediaError (final) for anything but a regular file in an allowed container; MachineError."""
        with open_regular(path) as descriptor:
            head = read_head(path, descriptor)
        container = _container(head)
        if container is None:
            raise MediaError(
                path, "does not begin like MP4/MOV, Matroska/WebM, AVI, FLV, MPEG, ASF or Ogg; convert it", True
            )
        return cls(os.fspath(Path(path).absolute()), container)

    def check_readable(self) -> None:
        """Read the whole file. Raises MachineError if its storage fails."""
        check_readable(self.path)

    @property
    def url(self) -> str:
        """The name for FFmpeg: with the protocol, so that no file name can be taken for another protocol."""
        return f"{PROTOCOL}:{self.path}"

    @property
    def limits(self) -> dict[str, str]:
        """FFmpeg's demuxer options that confine a reader to this file, this container and the allowed codecs."""
        limits = {
            "protocol_whitelist": PROTOCOL,
            "format_whitelist": self.container,
            "codec_whitelist": f"{_VIDEO},{_AUDIO}",
        }
        if self.probe:
            seconds, size = self.probe
            limits["analyzeduration"] = str(round((seconds + _PROBE_TIME) * 1_000_000))
            limits["probesize"] = str(size + _PROBE_BYTES)
        return limits

    @property
    def arguments(self) -> list[str]:
        """The ffmpeg program's arguments that open this file, confined in the same way."""
        limits = [word for name, value in self.limits.items() for word in (f"-{name}", value)]
        return ["-nostdin", "-hide_banner", "-f", self.container, *limits, "-i", self.url]


@contextmanager
def open_regular(path: str | os.PathLike) -> Iterator[int]:
    """A descriptor of a regular file. Raises MediaError (final) for anything else, and MachineError."""
    try:
        name = os.fspath(Path(path).absolute())
        name.encode()
        # Opening a device may already have an effect, so the kind of file is checked first. The file is opened
        # without waiting, in case it has become a pipe meanwhile.
        regular = stat.S_ISREG(os.stat(name).st_mode)
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK) if regular else None
    except ValueError as error:  # a null byte, or bytes that are not text
        raise MediaError(path, f"cannot be opened ({error})", True) from error
    except OSError as error:
        if error.errno in _PATH_ERRORS:
            raise MediaError(path, f"cannot be opened ({error.strerror})", True) from error
        raise machine_error(path, "cannot be opened", error) from error
    if descriptor is None:
        raise MediaError(path, "is not a regular file", True)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_head(path: str | os.PathLike, descriptor: int) -> bytes:
    """The first bytes of an open file. Raises MediaError (final) if it is empty, and MachineError."""
    try:
        head = os.read(descriptor, 2048)
    except OSError as error:
        raise machine_error(path, "cannot be read", error) from error
    if not head:
        raise MediaError(path, "is empty", True)
    return head


def check_readable(path: str | os.PathLike) -> None:
    """Read the whole file. Raises MachineError if its storage fails.

    FFmpeg's demuxers and libsndfile report a failed read like a damaged file or like its end, so this is how to tell
    them apart. The file has just been read and is normally in the page cache.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while os.read(descriptor, 2**20):
                pass
        finally:
            os.close(descriptor)
    except OSError as error:
        raise machine_error(path, "cannot be read", error) from error


def machine_error(path: str | os.PathLike, what: str, error: OSError) -> MachineError:
    """The error for a system call that failed on a file for a reason that is not the file's content."""
    return MachineError(
        f"{os.fspath(path)}: {what} ({error.strerror or error}); this is a fault of the machine or its storage, not "
        "of the video: mend it and run again"
    )


def _container(head: bytes) -> str | None:
    """FFmpeg's demuxer for a file that begins with these bytes; None if it is not an allowed one."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp"):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] in (b"AVI ", b"AVIX", b"AVI\x19"):
        return "avi"
    if head.startswith(b"FLV\x01"):
        return "flv"
    if head.startswith(b"OggS"):
        return "ogg"
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "asf"
    if head.startswith((b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")):
        return "mpeg" if head[3] == 0xBA else "mpegvideo"
    for size, skip in ((188, 0), (192, 4), (204, 0)):
        if len(head) > skip + 4 * size and all(head[skip + n * size] == 0x47 for n in range(5)):
            return "mpegts"
    return None
