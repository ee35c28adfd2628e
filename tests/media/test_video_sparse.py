"""Frames from few packets are those of a full decode, whatever the encoder did."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from media.oracle import Refused, assert_same_frames, clip, truth

from extractors import FrameInput
from pipeline.media.bitstream import Unit, needed
from pipeline.media.container import MediaFile
from pipeline.media.segments import MediaError, read_segments
from pipeline.media.video_sparse import SparseDecoder

SMALL, SECONDS = FrameInput(64), 5
NOISY = ("-f", "lavfi", "-i", f"testsrc2=s=96x64:r=20:d={SECONDS},noise=alls=10:allf=t")
LONG_GOPS = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", 60, "-sc_threshold", 0, "-bf", 3)
UNEVEN = ("-vf", "select='not(mod(n,3))+gt(n,40)'", "-fps_mode", "vfr")


def switch(name, *values):
    return st.sampled_from(values).map(lambda value: f"{name}={value}")


gop = st.sampled_from([5, 20, 100])
X264 = st.tuples(
    gop.map("keyint={}:min-keyint=1".format),
    switch("bframes", 0, 1, 3, 8),
    switch("b-pyramid", "none", "strict", "normal"),
    switch("open-gop", 0, 1),
    switch("b-adapt", 0, 1, 2),
    switch("intra-refresh", 0, 0, 0, 1),
    switch("slices", 1, 3),
    st.sampled_from(["tff=0", "tff=1", "fake-interlaced=1", "weightp=0", "cabac=0", "aud=1:repeat-headers=1"]),
).map(lambda o: ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-x264-params", ":".join(o)))
X265 = st.tuples(
    switch("log-level=none:min-keyint=1:keyint", 12, 20, 100),
    st.sampled_from(["bframes=0", "bframes=2", "bframes=4", "bframes=4:radl=2"]),
    switch("b-pyramid", 0, 1),
    switch("open-gop", 0, 1),
    switch("temporal-layers", 0, 1),
    switch("repeat-headers", 0, 1),
).map(lambda o: ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", ":".join(o)))
VP9 = st.tuples(
    gop, st.sampled_from(["-deadline realtime", "-auto-alt-ref 1 -lag-in-frames 12", "-error-resilient default"])
).map(lambda o: ("-c:v", "libvpx-vp9", "-cpu-used", 8, "-b:v", "150k", "-g", o[0], *o[1].split()))
AV1 = st.tuples(
    gop,
    st.sampled_from(["-svtav1-params pred-struct=1", "-svtav1-params film-grain=8", "-svtav1-params irefresh-type=1"]),
).map(lambda o: ("-c:v", "libsvtav1", "-preset", 12, "-g", o[0], *o[1].split()))
MPEG4 = st.tuples(
    gop, st.integers(0, 3), st.sampled_from(["", "-flags qpel", "-flags +mv4", "-flags cgop -sc_threshold 1000000000"])
).map(lambda o: ("-c:v", "mpeg4", "-g", o[0], "-bf", o[1], "-b:v", "400k", *o[2].split()))
CONTAINERS = {
    "mpeg4": ("avi", "mkv", "mp4"),
    "libx264": ("mp4", "mkv", "ts"),
    "libx265": ("mp4", "mkv", "ts"),
    "libvpx-vp9": ("webm", "mp4"),
}


@given(
    coding=st.one_of(X264, X264, X265, X265, VP9, AV1, MPEG4),
    container=st.integers(0, 2),
    uneven=st.booleans(),
    cut=st.sampled_from([None, None, 0.8, 2.1]),
    at=st.floats(0, 0.99),
)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_same_frames_as_a_full_decode(tmp_path_factory, coding, container, uneven, cut, at):
    folder = tmp_path_factory.mktemp("exact")
    endings = CONTAINERS.get(coding[1], ("mp4", "mkv"))
    path = clip(folder / f"whole.{endings[container % len(endings)]}", *NOISY, *(UNEVEN if uneven else ()), *coding)
    if cut:
        # Begins with frames that are not to be presented, or that lack what they refer to.
        path = clip(folder / f"cut{path.suffix}", "-ss", cut, "-i", path, "-c", "copy")
    try:
        want = truth(path)
    except Refused:  # cut off from its parameter sets, nobody can decode it
        with pytest.raises(MediaError):
            read_segments(path)
        return
    assert_same_frames(path, want, SECONDS, SMALL, frame_at=at)


@given(
    coding=st.one_of(X264, X264, X265, MPEG4),
    container=st.integers(0, 2),
    lost=st.sets(st.integers(1, 20 * SECONDS - 1), min_size=1, max_size=4),
    at=st.sampled_from([0.1, 0.5]),
)
@example(
    coding=("-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", "keyint=50:bframes=3"),
    container=0,
    lost={5},
    at=0.5,
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_same_frames_where_packets_were_lost(tmp_path_factory, coding, container, lost, at):
    """What a decoder puts in their place depends on all that it has decoded before."""
    folder = tmp_path_factory.mktemp("lost")
    endings = CONTAINERS.get(coding[1], ("mp4", "mkv"))
    whole = clip(folder / "whole.mkv", *NOISY, *coding)
    drop = "noise=drop=" + "+".join(f"eq(n\\,{number})" for number in sorted(lost))
    path = clip(folder / f"lost.{endings[container % len(endings)]}", "-i", whole, "-c", "copy", "-bsf:v", drop)
    assert_same_frames(path, truth(path), SECONDS, SMALL, frame_at=at)


@pytest.mark.parametrize("packet", range(34, 360, 28))
def test_same_frames_where_a_transport_packet_is_lost(tmp_path, packet):
    source = ("-f", "lavfi", "-i", f"testsrc2=s=96x64:r=20:d={SECONDS}")
    path = clip(tmp_path / "v.ts", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", 2)
    data = path.read_bytes()
    assert len(data) > 188 * 360
    path.write_bytes(data[: 188 * packet] + data[188 * (packet + 1) :])
    assert_same_frames(path, truth(path), SECONDS, SMALL)


@pytest.mark.parametrize(
    ("coding", "share"),
    [
        ("-c:v libx264 -bf 3 -g 100", 0.6),
        ("-c:v libx264 -bf 3 -g 20", 0.4),
        ("-c:v libx264 -bf 0 -g 20", 0.6),  # the rest of each GOP after the wanted frame
        ("-c:v libx265 -preset ultrafast -bf 3 -x265-params log-level=none:keyint=20", 0.5),
        ("-c:v mpeg4 -bf 2 -g 20", 0.4),
        ("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 20", 0.6),
        ("-c:v libsvtav1 -preset 12 -g 100", 0.7),
    ],
)
def test_little_is_decoded(tmp_path, coding, share):
    """And that little suffices, without a full decode to fall back on."""
    path = clip(tmp_path / "clip.mkv", *NOISY, "-pix_fmt", "yuv420p", *coding.split())
    decoder = SparseDecoder(MediaFile.check(path), SECONDS)
    moments = [decoder.start + second + Fraction(1, 2) for second in range(SECONDS)]
    keep, _ = decoder.plan([decoder.frame_number_at(moment) for moment in moments])
    assert sum(keep) <= share * len(keep)
    want = truth(path)
    for second, frame in enumerate(decoder.frames_at(moments)):
        assert np.array_equal(frame, want.frame_at(second)), f"second {second}"


units = st.builds(
    Unit,
    starts=st.sampled_from([False, False, False, True]),
    referenced=st.booleans(),
    layer=st.integers(0, 2),
    leading=st.booleans(),
).map(lambda unit: unit._replace(referenced=True, layer=0, leading=False) if unit.starts else unit)


@given(st.lists(st.tuples(units, st.booleans()), max_size=14))
@settings(max_examples=300)
def test_needed_is_what_wanted_packets_may_refer_to(packets):
    """Against the closure of "may refer to", computed forwards."""
    packets = [(Unit(starts=True), False), *packets]
    all_units, wanted = [p[0] for p in packets], [p[1] for p in packets]

    def may_refer(later, earlier):
        a, b = all_units[later], all_units[earlier]
        starts = [n for n in range(later + 1) if all_units[n].starts]
        since = starts[-1]
        if a.leading and len(starts) > 1:
            since = starts[-2]  # and what leads there may need what is before, through that one
        return earlier >= since and (b.layer < a.layer or (b.layer == a.layer and b.referenced))

    kept = {n for n, want in enumerate(wanted) if want}
    todo = list(kept)
    while todo:
        later = todo.pop()
        for earlier in range(later):
            if earlier not in kept and may_refer(later, earlier):
                kept.add(earlier)
                todo.append(earlier)
    keep, fresh = needed(all_units, wanted)
    assert kept <= {n for n, k in enumerate(keep) if k}
    for n, anew in enumerate(fresh):
        # Forgetting loses nothing: whatever comes after may not refer to what was kept before.
        assert not anew or not any(
            may_refer(later, earlier) for later in kept if later >= n for earlier in kept if earlier < n
        )


@pytest.mark.parametrize("start", [0.0, 9.0, 13.3])
@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "ts"])
def test_clips_cut_by_stream_copy_and_longer_than_requested(tmp_path, start, ending):
    """The first packets of such a clip lie up to a GOP before time 0."""
    film = clip(tmp_path / "film.mp4", "-f", "lavfi", "-i", "testsrc2=s=96x64:r=10:d=40", *LONG_GOPS)
    path = clip(tmp_path / f"cut.{ending}", "-ss", start, "-i", film, "-t", 16, "-c", "copy")
    want = truth(path)
    for segments in (6, 12, 20):
        assert_same_frames(path, want, segments, SMALL)


class Counted(list):
    """A list that counts how often its items are read."""

    reads = 0

    def __getitem__(self, n):
        self.reads += 1
        return super().__getitem__(n)


@pytest.mark.parametrize("selection", ["reference", "keyframe"])
def test_the_nearest_allowed_frame_is_found_without_a_look_at_all_frames(tmp_path, selection):
    path = clip(tmp_path / "clip.mp4", *NOISY, "-c:v", "libx264", "-g", 7, "-bf", 3)
    decoder = SparseDecoder(MediaFile.check(path), SECONDS, selection)
    units = [decoder.packets[n].unit for n in decoder.presented]
    allowed = [n for n, unit in enumerate(units) if (unit.intra if selection == "keyframe" else unit.referenced)]
    assert 10 < len(allowed) < len(units)
    moments = [Fraction(n, 40) for n in range(-5, 45 * SECONDS)]  # some of them between two frames exactly
    nearest = [min(allowed, key=lambda n: abs(decoder.times[n] - moment)) for moment in moments]
    decoder.times = Counted(decoder.times)
    assert [decoder.frame_number_at(moment) for moment in moments] == nearest
    assert decoder.times.reads < 20 * len(moments)
