"""The demo's clips and questions, held against truth.json and read back with PyAV."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from pipeline.errors import AVQAError
from pipeline.synthesize import synthesize

SPLITS = ("train", "val", "test")
TYPES = {
    ("Audio", "Counting"), ("Audio", "Comparative"), ("Visual", "Counting"), ("Visual", "Location"),
    ("Audio-Visual", "Existential"), ("Audio-Visual", "Counting"), ("Audio-Visual", "Location"),
    ("Audio-Visual", "Comparative"), ("Audio-Visual", "Temporal"),
}  # fmt: skip
COLOURS = {
    "drum": (255, 230, 0), "accordion": (230, 0, 200), "violin": (255, 90, 0), "flute": (0, 220, 255),
    "xylophone": (250, 250, 250),
}  # fmt: skip
NOTES_A_SECOND = {"drum": 4, "xylophone": 3, "flute": 2, "accordion": 1.5, "violin": 1}
SECONDS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    synthesize(folder, clips=96, seconds=SECONDS, seed=5)
    return folder


@pytest.fixture(scope="module")
def truth(made) -> dict[str, dict]:
    return {clip["video_id"]: clip for clip in json.loads((made / "truth.json").read_text())}


@pytest.fixture(scope="module")
def questions(made) -> dict[str, list[dict]]:
    return {split: json.loads((made / f"{split}.json").read_text()) for split in SPLITS}


def special(truth: dict[str, dict], kind: str) -> str:
    (video_id,) = (v for v, clip in truth.items() if clip["special"] == kind)
    return video_id


def visible(clip: dict) -> list[dict]:
    return [p for p in clip["players"] if p["radius"] > 0]


def audible(clip: dict) -> list[dict]:
    return [p for p in clip["players"] if p["end"] > p["start"]]


def read_frames(made: Path, video_id: str) -> tuple[list[av.VideoFrame], list[float]]:
    with av.open(str(made / "videos" / f"{video_id}.mp4")) as file:
        frames = list(file.decode(video=0))
    return frames, [frame.time for frame in frames]


def read_audio(made: Path, video_id: str) -> np.ndarray:
    """Samples at 16 kHz, put where their timestamps say."""
    with av.open(str(made / "videos" / f"{video_id}.mp4")) as file:
        samples = np.zeros(20 * 16000)
        for frame in file.decode(audio=0):
            start = round(frame.time * 16000)
            samples[start : start + frame.samples] = frame.to_ndarray()[0]
    return samples


def coloured(frame: av.VideoFrame, colour: tuple[int, int, int]) -> np.ndarray:
    distance = np.linalg.norm(frame.to_ndarray(format="rgb24").astype(float) - colour, axis=-1)
    return distance < 60


# --- same seed, same content -------------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes_and_another_seed_other_ones(tmp_path, monkeypatch):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(tmp_path / name, clips=16, seconds=4, seed=seed)
        # The C library now fills fresh memory with rubbish: an encoder that reads what it never wrote is found out.
        monkeypatch.setenv("MALLOC_PERTURB_", "1")
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    videos = {f"videos/synth{n:05d}.mp4" for n in range(16)}
    assert (
        a.keys()
        == c.keys()
        == {"truth.json", "test-head.json", "test-tail.json", *(f"{split}.json" for split in SPLITS)} | videos
    )
    assert not set(a.values()) & set(c.values())


@pytest.mark.parametrize(("clips", "seconds", "field"), [(3, 6, "clips"), (40, 1, "seconds")])
def test_too_little_to_work_with_is_refused(tmp_path, clips, seconds, field):
    with pytest.raises(AVQAError, match=field):
        synthesize(tmp_path, clips=clips, seconds=seconds)
    assert not list(tmp_path.iterdir())


# --- questions ---------------------------------------------------------------------------------------------------


def test_records_have_the_official_fields_words_and_answers(questions, shared):
    official = json.loads((shared / "annotations" / "music_avqa_test.json").read_text())
    words = {(r["question_content"], r["type"]) for r in official}
    answers = {r["anser"] for r in official}
    fillers = {filler for r in official for filler in json.loads(r["templ_values"])}
    for record in chain(*questions.values()):
        assert {name: type(value) for name, value in record.items()} == {n: type(v) for n, v in official[0].items()}
        assert (record["question_content"], record["type"]) in words
        assert record["anser"] in answers
        assert set(json.loads(record["templ_values"])) <= fillers
        assert record["question_content"].count("<") == len(json.loads(record["templ_values"]))
    ids = [record["question_id"] for record in chain(*questions.values())]
    assert len(set(ids)) == len(ids)


def test_every_split_has_all_nine_types_and_its_own_videos(questions, truth, made):
    for split, records in questions.items():
        assert {tuple(json.loads(r["type"])) for r in records} == TYPES
        assert {truth[r["video_id"]]["split"] for r in records} == {split}
    shares = Counter(clip["split"] for clip in truth.values())
    assert [round(100 * shares[split] / len(truth)) for split in SPLITS] == [60, 15, 25]
    assert {p.stem for p in (made / "videos").iterdir()} == truth.keys()


def test_words_alone_do_not_tell_the_answer(questions):
    """To the same words each answer is given equally often, and no words have the same answer in all of a split."""
    for records in questions.values():
        given = defaultdict(Counter)
        for r in records:
            given[r["question_content"], r["templ_values"]][r["anser"]] += 1
        for answers in given.values():
            assert len(set(answers.values())) == 1
        # The best guess from the words is right once in as many cases as there are answers.
        assert sum(max(answers.values()) for answers in given.values()) / len(records) < 0.5


def restated(clip: dict, template: str, fillers: list[str]) -> str:
    """The answer by the truth, put differently from how the questions were made."""
    number = ["zero", "one", "two", "three", "four"].__getitem__
    yes_no = {True: "yes", False: "no"}.__getitem__
    stage = {p["name"]: p for p in visible(clip)}
    band = {p["name"]: p for p in audible(clip)}
    where = defaultdict(list)
    for name, player in stage.items():
        where[player["place"]].append(name)
    match template:
        case "How many types of musical instruments appeared in the entire video?":
            return number(len(stage))
        case "Is there a <Object> in the entire video?":
            return yes_no(fillers[0] in stage)
        case "Where is the performance?":
            return "outdoor" if clip["outdoor"] else "indoor"
        case "What kind of instrument is the <LRer> instrument? ":
            (name,) = where[min(where) if fillers == ["leftest"] else max(where, key="left middle right".index)]
            return name
        case "Is there a voiceover?":
            return yes_no(clip["voiceover"])
        case "How many musical instruments were heard throughout the video?":
            return number(len(band))
        case "How many instruments are sounding in the video?":
            return number(len(stage.keys() & band.keys()))
        case "How many instruments in the video did not sound from beginning to end?":
            return number(len(stage.keys() - band.keys()))
        case "Is the <Object> louder than the <Object>?":
            return yes_no(band[fillers[0]]["loudness"] > band[fillers[1]]["loudness"])
        case "Which is the musical instrument that sounds at the same time as the <Object>?":
            during = {name: set(range(p["start"], p["end"])) for name, p in band.items()}
            (name,) = (n for n in during if n != fillers[0] and during[n] & during[fillers[0]])
            return name
        case "Where is the <LL> instrument?":
            return stage[sorted((p["loudness"], name) for name, p in band.items())[-1][1]]["place"]
        case "Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?":
            (a,), (b,) = where[fillers[0]], where[fillers[1]]
            assert a in band and b in band
            return yes_no(NOTES_A_SECOND[a] > NOTES_A_SECOND[b])
        case "What is the <TH> instrument that comes in?":
            earliest = min(p["start"] for p in band.values())
            (name,) = (name for name, p in band.items() if p["start"] == earliest)
            return {"first": name}[fillers[0]]
    raise AssertionError(f"no restatement of {template}")


def test_answers_follow_from_the_truth(questions, truth):
    for record in chain(*questions.values()):
        clip, fillers = truth[record["video_id"]], json.loads(record["templ_values"])
        assert record["anser"] == restated(clip, record["question_content"], fillers), record
        if clip["special"] == "no audio track":
            assert json.loads(record["type"])[0] == "Visual"


def test_sight_and_sound_do_not_give_each_other_away(truth):
    """Knowing what is on show must not help to tell what is heard, or losing a modality would go unnoticed."""
    appearing = np.array([[name in {p["name"] for p in visible(c)} for name in COLOURS] for c in truth.values()])
    sounding = np.array([[name in {p["name"] for p in audible(c)} for name in COLOURS] for c in truth.values()])
    assert abs(np.corrcoef(appearing.sum(1), sounding.sum(1))[0, 1]) < 0.1
    assert abs(np.corrcoef(appearing.ravel(), sounding.ravel())[0, 1]) < 0.15


# --- media -------------------------------------------------------------------------------------------------------


def test_files_are_what_the_truth_says(made, truth):
    for video_id, clip in truth.items():
        with av.open(str(made / "videos" / f"{video_id}.mp4")) as file:
            assert "mp4" in file.format.name
            (video,) = file.streams.video
            assert (video.codec_context.name, video.width, video.height) == ("h264", 160, 160)
            assert [a.codec_context.name for a in file.streams.audio] == ["aac"] * (clip["special"] != "no audio track")
            for stream in file.streams:
                assert float(stream.duration * stream.time_base) == pytest.approx(clip["seconds"], abs=0.35)
    lengths = Counter(clip["seconds"] for clip in truth.values())
    assert lengths[SECONDS] > 0.8 * len(truth) and min(lengths) < SECONDS
    assert all(p["end"] <= SECONDS for clip in truth.values() for p in clip["players"])


def test_one_clip_has_b_frames_and_ten_seconds_between_keyframes(made, truth):
    for video_id in (special(truth, "b-frames"), special(truth, "no audio track")):
        frames, times = read_frames(made, video_id)
        kinds = Counter(PictureType(frame.pict_type).name for frame in frames)
        keys = [t for frame, t in zip(frames, times, strict=True) if frame.key_frame]
        if truth[video_id]["special"] == "b-frames":
            assert kinds["B"] > len(frames) / 2 and keys == [0, 10]
        else:
            assert kinds["B"] == 0 and keys == [0, 2, 4]


def test_one_clip_has_variable_frame_rate(made, truth):
    _, steady = read_frames(made, special(truth, "no audio track"))
    assert np.allclose(np.diff(steady), 0.1)
    _, times = read_frames(made, special(truth, "variable frame rate"))
    steps = Counter(np.diff(times).round(2))
    assert times[0] == 0 and len(steps) >= 3 and set(steps) <= set(np.arange(1, 40).round(2) / 10)


def test_sound_is_heard_exactly_when_the_truth_says(made, truth):
    alone = [(v, *audible(c)) for v, c in truth.items() if len(audible(c)) == 1 and not c["voiceover"]]
    alone = [entry for entry in alone if truth[entry[0]]["special"] != "no audio track"]
    assert len({player["name"] for _, player in alone}) >= 4
    for video_id, player in alone:
        length = truth[video_id]["seconds"]
        seconds = read_audio(made, video_id)[: length * 16000].reshape(length, 16000)
        level = np.sqrt((seconds[:, 2048:-2048] ** 2).mean(1))  # the codec smears over a second's edge
        playing = [player["start"] <= n < player["end"] for n in range(length)]
        assert (level > 0.005).tolist() == playing, video_id


def test_louder_is_louder(made, truth):
    levels = defaultdict(list)
    for video_id, clip in truth.items():
        if len(audible(clip)) == 1 and not clip["voiceover"] and clip["special"] != "no audio track":
            (player,) = audible(clip)
            part = read_audio(made, video_id)[player["start"] * 16000 : player["end"] * 16000]
            levels[player["loudness"]].append(np.sqrt((part**2).mean()))
    means = [np.mean(levels[loudness]) for loudness in sorted(levels)]
    assert len(means) == 4 and all(b > 1.3 * a for a, b in pairwise(means))


def test_shapes_stand_where_the_truth_says(made, truth):
    for video_id, clip in truth.items():
        frames, _ = read_frames(made, video_id)
        stage = {p["name"]: p for p in visible(clip)}
        for name, colour in COLOURS.items():
            rows, columns = np.nonzero(coloured(frames[0], colour))
            if name not in stage:
                assert len(rows) < 100, (video_id, name)
                continue
            player = stage[name]
            assert len(rows) > 300, (video_id, name)
            assert abs(columns.mean() - player["x"]) < 9, (video_id, name)
            assert abs(rows.mean() - player["y"]) < player["radius"], (video_id, name)
            assert int(player["x"] * 3 / 160) == ["left", "middle", "right"].index(player["place"])


def test_a_shape_moves_while_it_plays_and_only_then(made, truth):
    moved = 0
    for video_id, clip in truth.items():
        if len(visible(clip)) > 1 or clip["special"]:
            continue
        (player,) = visible(clip)
        frames, times = read_frames(made, video_id)
        areas = np.array([coloured(frame, COLOURS[player["name"]]).sum() for frame in frames])
        playing = np.array([player["start"] <= t < player["end"] for t in times])
        if playing.any():
            moved += 1
            assert np.ptp(areas[playing]) > 0.2 * areas.mean(), video_id
        if not playing.all():
            assert np.ptp(areas[~playing]) < 0.1 * areas.mean(), video_id
    assert moved >= 3


def test_the_stage_is_outdoors_or_indoors_as_the_truth_says(made, truth):
    for video_id, clip in truth.items():
        frame = read_frames(made, video_id)[0][0].to_ndarray(format="rgb24")
        top = frame[:8, 60:100].mean((0, 1))
        assert (top[2] > 190) == clip["outdoor"], video_id


def test_question_words_fill_up(questions):
    """Slots and fillers match in number and order, so that any reader of the official format can fill them in."""
    for record in chain(*questions.values()):
        fillers = iter(json.loads(record["templ_values"]))
        text = re.sub("<[^>]+>", lambda _, f=fillers: next(f), record["question_content"])
        assert "<" not in text and next(fillers, None) is None
