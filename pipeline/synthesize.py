"""The demo's data set: drawn and played performances with questions whose answers are known.

A clip is a stage between two curtains. One to four "instruments" stand on it, each a shape of its own colours, and
one to four are audible, each in a register of its own. Which are visible and which are audible is drawn independently,
so that neither reveals the other: some are visible and silent, some are audible and not visible. Questions are in the
words and the format of MUSIC-AVQA, and their answers follow from the truth that the clip was made from. A question's
text says nothing about its answer: in a split, the same words have each of their answers equally often.
"""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count, permutations, product, repeat
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np

from pipeline.data.formats.base import Record
from pipeline.data.formats.music_avqa import fill_slots
from pipeline.errors import AVQAError
from pipeline.storage.atomic import atomic, write_if_changed

SIZE, FPS, RATE, GOP = 160, 10, 16000, 10  # pixels per side, frames and samples per second, seconds in a long GOP
SPLITS = {"train": 0.6, "val": 0.75, "test": 1.0}  # share of the clips up to which a split goes
PLACES, NUMBERS, NO_YES = ("left", "middle", "right"), ("zero", "one", "two", "three", "four"), ("no", "yes")


@dataclass(frozen=True)
class Kind:
    """The appearance and audio of an instrument. `parts` takes coordinates in -1…1: 0 outside, else 1 + colour."""

    parts: Callable[[np.ndarray, np.ndarray], np.ndarray]
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    pitch: float  # Hz
    harmonics: tuple[float, ...]
    beat: float  # notes per second
    decay: float = 0.0  # 1/s after each note's start; 0: held
    vibrato: float = 0.0  # share of the pitch, six times a second


# Registers do not overlap and shapes are large and plain: random features carry what differs boldly.
KINDS = {
    "drum": Kind(lambda u, v: (u * u + v * v < 1) * (1 + (u * u + v * v < 0.4)),
                 ((255, 230, 0), (200, 0, 0)), pitch=60, harmonics=(1, 1, 1, 1, 1, 1), beat=4, decay=8),
    "accordion": Kind(lambda u, v: (abs(v) < 0.65 + 0.3 * abs(u)) * (1 + (abs(u) < 0.4)),
                      ((230, 0, 200), (255, 255, 120)), pitch=320, harmonics=(0, 1, 0.8, 0.6), beat=1.5),
    "violin": Kind(lambda u, v: (abs(u) * (1.3 - 0.5 * np.cos(5 * v)) < 0.8) * (1 + (abs(u) < 0.15)),
                   ((255, 90, 0), (110, 20, 0)), pitch=500, harmonics=(0, 0, 1, 0.8, 0.6), beat=1, vibrato=0.03),
    "flute": Kind(lambda u, v: (abs(u) + abs(v) < 1.15) * (1 + (abs(u) + abs(v) < 0.55)),
                  ((0, 220, 255), (0, 60, 200)), pitch=1400, harmonics=(0, 1, 0.8), beat=2),
    "xylophone": Kind(lambda u, v: (abs(v) < 0.75) * (1 + (v > 0)),
                      ((250, 250, 250), (10, 10, 10)), pitch=2500, harmonics=(0, 1, 0.8), beat=3, decay=3),
}  # fmt: skip


@dataclass(frozen=True)
class Player:
    """One instrument of a clip. Off the stage: radius 0 and no place. Silent: loudness 0 and end 0."""

    name: str
    place: str
    x: float  # centre and radius in pixels
    y: float
    radius: float
    loudness: float
    start: int  # seconds
    end: int


@dataclass(frozen=True)
class Clip:
    """The truth of one video. `special` is "no audio track", "b-frames", "variable frame rate" or empty."""

    video_id: str
    split: str
    seed: int
    seconds: int
    special: str
    outdoor: bool
    voiceover: bool
    players: tuple[Player, ...]


def draw_clip(rng: np.random.Generator, number: int, split: str, seconds: int, counts: tuple[int, int]) -> Clip:
    """Draw clip `number` with so many instruments visible and audible, all within `seconds`, or fewer now and then."""
    special = {0: "no audio track", 1: "b-frames", 2: "variable frame rate"}.get(number, "")
    if number % 8 == 3:
        seconds -= int(rng.integers(1, seconds // 2))
    visible, audible = (rng.permutation(list(KINDS))[:n].tolist() for n in counts)
    columns = rng.permutation([0, 1, 2, rng.integers(3)] if len(visible) == 4 else 3)[: len(visible)].tolist()
    loudness = rng.permutation([1.0, 0.5, 0.25, 0.125]).tolist()
    players = []
    for n, name in enumerate(dict.fromkeys([*visible, *audible])):
        place, x, y, radius, level, start, end = "", 0.0, 0.0, 0.0, 0.0, 0, 0
        if n < len(visible):
            place, radius = PLACES[columns[n]], rng.uniform(24, 27)
            x, y = SIZE * (columns[n] + 0.5) / 3 + rng.uniform(-3, 3), SIZE * rng.uniform(0.4, 0.65)
            if columns.count(columns[n]) == 2:  # one above the other
                y = SIZE * (0.72 if columns[n] in columns[:n] else 0.3)
        if name in audible:
            level = loudness[audible.index(name)]
            start = 0 if rng.random() < 0.5 else int(rng.integers(0, seconds - 1))
            end = seconds if rng.random() < 0.5 else int(rng.integers(start + 2, seconds + 1))
        players.append(Player(name, place, round(x, 2), round(y, 2), round(radius, 2), level, start, end))
    seed, outdoor, voiceover = int(rng.integers(2**32)), bool(rng.integers(2)), bool(rng.integers(2))
    length = GOP + 2 if special == "b-frames" else seconds
    return Clip(f"synth{number:05d}", split, seed, max(length, seconds), special, outdoor, voiceover, tuple(players))


def background(rng: np.random.Generator, outdoor: bool) -> np.ndarray:
    """The empty stage, SIZE, SIZE, 3 uint8: sky over grass or a wall over a floor, between two unlike curtains.
    Which of them a shape covers lets random features distinguish the sides."""
    above, below = ((140, 185, 225), (110, 150, 90)) if outdoor else ((120, 105, 100), (95, 70, 55))
    y, x = np.mgrid[:SIZE, :SIZE][..., None]
    folds = np.where(x // 5 % 2, 1.0, 0.4)
    frame = np.where(y < 0.55 * SIZE, above, below)
    frame = np.where(3 * x < SIZE, np.multiply((150, 40, 40), folds), frame)
    frame = np.where(3 * x >= 2 * SIZE, np.multiply((40, 50, 150), folds), frame)
    return np.clip(frame + rng.uniform(-8, 8, 3), 0, 255).astype(np.uint8)


def draw(canvas: np.ndarray, player: Player, time: float) -> None:
    """Paint the player at `time` seconds: while it plays, its size and height change."""
    playing = player.start <= time < player.end
    radius = player.radius * (1 + 0.15 * playing * math.sin(2 * math.pi * 1.3 * time))
    middle = player.y + 5 * playing * math.sin(2 * math.pi * 1.7 * time)
    top, left = max(0, math.ceil(middle - radius)), max(0, math.ceil(player.x - radius))
    box = canvas[top : math.ceil(middle + radius), left : math.ceil(player.x + radius)]
    v, u = np.mgrid[top : top + box.shape[0], left : left + box.shape[1]]
    u, v = (u - player.x) / radius, (v - middle) / radius
    parts = KINDS[player.name].parts(u, v)
    box[parts > 0] = np.array(KINDS[player.name].colours)[parts[parts > 0] - 1]


def play(rng: np.random.Generator, kind: Kind, seconds: int) -> np.ndarray:
    """A tune of the instrument, float64 at RATE, with an RMS of 1 where notes do not decay."""
    time = np.arange(seconds * RATE) / RATE
    note = (time * kind.beat).astype(int)
    pitch = kind.pitch * 2 ** (rng.integers(-2, 3, note[-1] + 1) / 12)[note]
    phase = 2 * np.pi * np.cumsum(pitch * (1 + kind.vibrato * np.sin(2 * np.pi * 6 * time))) / RATE
    waveform = sum(level * np.sin(n * phase) for n, level in enumerate(kind.harmonics, 1) if level)
    waveform *= np.exp(-kind.decay * (time - note / kind.beat))
    return waveform / math.sqrt(sum(level**2 for level in kind.harmonics) / 2)


def speak(rng: np.random.Generator, seconds: int) -> np.ndarray:
    """Something like a voice, float64 at RATE: a buzz at 120 Hz through moving formants, four syllables a second."""
    time = np.arange(seconds * RATE) / RATE
    formant = np.repeat(rng.uniform(400, 900, 4 * seconds), RATE // 4)
    buzz = sum(np.exp(-(((120 * n - formant) / 200) ** 2)) * np.sin(2 * np.pi * 120 * n * time) for n in range(2, 11))
    return buzz * abs(np.sin(np.pi * 4 * time))


def soundtrack(rng: np.random.Generator, clip: Clip) -> np.ndarray:
    """The clip's audio, float32 in -1…1 at RATE."""
    mix = rng.normal(0, 0.001, clip.seconds * RATE)
    for player in (p for p in clip.players if p.loudness):
        tune = play(rng, KINDS[player.name], player.end - player.start)
        mix[player.start * RATE : player.end * RATE] += 0.15 * player.loudness * tune
    if clip.voiceover:
        mix += 0.15 * speak(rng, clip.seconds)
    return np.clip(mix, -1, 1).astype(np.float32)


def render(clip: Clip, folder: Path) -> None:
    """Write <folder>/<video_id>.mp4. More threads, or x264's macroblock tree, which reads memory that nobody has
    written, could make the same clip come out as other bytes."""
    rng = np.random.default_rng(clip.seed)
    stage = background(rng, clip.outdoor)
    steady = clip.special != "variable frame rate"
    frames = [n for n in range(clip.seconds * FPS) if n == 0 or steady or rng.random() < 0.5]
    options = {"preset": "superfast", "crf": "26", "threads": "1", "x264-params": "mbtree=0:scenecut=0:b-adapt=0"}
    options |= {"bf": "3", "g": str(GOP * FPS)} if clip.special == "b-frames" else {"bf": "0", "g": str(2 * FPS)}
    with atomic(folder / f"{clip.video_id}.mp4") as partial, av.open(str(partial), "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=FPS, width=SIZE, height=SIZE, pix_fmt="yuv420p", options=options)
        audio = None if clip.special == "no audio track" else file.add_stream("aac", rate=RATE, layout="mono")
        for n in frames:
            canvas = stage.copy()
            for player in (p for p in clip.players if p.radius):
                draw(canvas, player, n / FPS)
            frame = av.VideoFrame.from_ndarray(canvas, format="rgb24")
            frame.pts = n
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio:
            audio_frame = av.AudioFrame.from_ndarray(soundtrack(rng, clip)[None], format="fltp", layout="mono")
            audio_frame.sample_rate = RATE
            for part in (audio_frame, None):
                file.mux(audio.encode(part))


RHYTHM = "Is the instrument on the <LR> more rhythmic than the instrument on the <LR>?"
# Official words and types, and how many questions of each a clip gets at most on average.
TEMPLATES = {
    "How many musical instruments were heard throughout the video?": ("Audio", "Counting", 1.0),
    "Is the <Object> louder than the <Object>?": ("Audio", "Comparative", 0.4),
    "How many types of musical instruments appeared in the entire video?": ("Visual", "Counting", 0.7),
    "Is there a <Object> in the entire video?": ("Visual", "Counting", 0.4),
    "What kind of instrument is the <LRer> instrument? ": ("Visual", "Location", 0.5),
    "Where is the performance?": ("Visual", "Location", 0.4),
    "Is there a voiceover?": ("Audio-Visual", "Existential", 0.7),
    "How many instruments in the video did not sound from beginning to end?": ("Audio-Visual", "Counting", 0.5),
    "How many instruments are sounding in the video?": ("Audio-Visual", "Counting", 0.5),
    "Which is the musical instrument that sounds at the same time as the <Object>?": ("Audio-Visual", "Location", 0.5),
    "Where is the <LL> instrument?": ("Audio-Visual", "Location", 0.4),
    RHYTHM: ("Audio-Visual", "Comparative", 0.5),
    "What is the <TH> instrument that comes in?": ("Audio-Visual", "Temporal", 0.7),
}  # fmt: skip
RIVALS = ({"drum", "flute"}, {"violin", "xylophone"})  # few, so that each question occurs often


def questions_of(clip: Clip) -> Iterator[tuple[str, list[str], str]]:
    """Every question that the clip answers beyond doubt: template, what fills its slots, answer."""
    visible, audible = [p for p in clip.players if p.radius], [p for p in clip.players if p.loudness]
    both = [p for p in visible if p.loudness]
    alone = [p for p in visible if [q.place for q in visible].count(p.place) == 1]

    yield "How many types of musical instruments appeared in the entire video?", [], NUMBERS[len(visible)]
    yield "Where is the performance?", [], ("indoor", "outdoor")[clip.outdoor]
    for name in KINDS:
        yield "Is there a <Object> in the entire video?", [name], NO_YES[name in {p.name for p in visible}]
    for word, extreme in (("leftest", min), ("rightest", max)):
        outermost = extreme(visible, key=lambda p: p.x)
        if outermost in alone and len(visible) > 1:
            yield "What kind of instrument is the <LRer> instrument? ", [word], outermost.name
    if clip.special == "no audio track":
        return
    yield "Is there a voiceover?", [], NO_YES[clip.voiceover]
    yield "How many musical instruments were heard throughout the video?", [], NUMBERS[len(audible)]
    if len(both) <= 2:  # more are rare
        yield "How many instruments are sounding in the video?", [], NUMBERS[len(both)]
    if (silent := len(visible) - len(both)) <= 2:
        yield "How many instruments in the video did not sound from beginning to end?", [], NUMBERS[silent]
    for a, b in permutations(audible, 2):
        if {a.name, b.name} in RIVALS:
            yield "Is the <Object> louder than the <Object>?", [a.name, b.name], NO_YES[a.loudness > b.loudness]
    if len(audible) == 2 and max(p.start for p in audible) < min(p.end for p in audible):
        for a, b in (audible, audible[::-1]):
            yield "Which is the musical instrument that sounds at the same time as the <Object>?", [a.name], b.name
    first, *later = sorted(audible, key=lambda p: p.start)
    if all(first.start < p.start for p in later):
        yield "What is the <TH> instrument that comes in?", ["first"], first.name
    loudest = max(audible, key=lambda p: p.loudness)
    if loudest.radius and len(visible) > 1:
        yield "Where is the <LL> instrument?", ["loudest"], loudest.place
    for a, b in permutations((p for p in alone if p.loudness and p.place != "middle"), 2):
        yield RHYTHM, [a.place, b.place], NO_YES[KINDS[a.name].beat > KINDS[b.name].beat]


def choose(rng: np.random.Generator, clips: list[Clip]) -> list[tuple[str, str, str, str]]:
    """The questions of a split: video_id, template, fillers as JSON, answer. A round has the same words once for
    each answer, each time with another clip; an answer half as common as others, or less, is left out."""
    found: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for n in rng.permutation(len(clips)):
        for template, fillers, answer in questions_of(clips[n]):
            found[template][json.dumps(fillers)][answer].append(clips[n].video_id)
    chosen = []
    for template, (_, _, share) in TEMPLATES.items():
        rounds = []
        for fillers, answers in found[template].items():
            half = sum(map(len, answers.values())) / len(answers) / 2
            kept = {answer: videos for answer, videos in answers.items() if len(videos) >= half}
            for videos in zip(*kept.values(), strict=False):
                rounds.append([(video, template, fillers, answer) for video, answer in zip(videos, kept, strict=True)])
        wanted = share * len(clips)
        for n in rng.permutation(len(rounds)):
            if wanted > 0:
                chosen += rounds[n]
                wanted -= len(rounds[n])
    return sorted(chosen, key=lambda question: question[0])


def synthesize(out_dir: str | Path, clips: int = 240, seconds: int = 6, seed: int = 0) -> None:
    """Write videos/<video_id>.mp4, train.json, val.json, test.json (official format), test-head.json and test-tail.json
    (the test questions in other words, as in MUSIC-AVQA-R) and truth.json to `out_dir`.

    Same arguments, same content. Raises AVQAError for fewer than 16 clips or 4 seconds."""
    if clips < 16 or seconds < 4:
        raise AVQAError(f"synthesize: clips is {clips}, seconds is {seconds}; give at least 16 clips of 4 seconds")
    out, rng = Path(out_dir), np.random.default_rng(seed)
    split_of = [next(name for name, end in SPLITS.items() if n < round(end * clips)) for n in range(clips)]
    counts = list(product(range(1, 5), repeat=2))  # each equally often in any stretch of 16 clips, so in each split
    deck = [counts[n] for _ in range(0, clips, len(counts)) for n in rng.permutation(len(counts))]
    truth = [draw_clip(rng, n, split_of[n], seconds, deck[n]) for n in range(clips)]
    # Not forked: a caller's threads would not survive it.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        list(pool.map(render, truth, repeat(out / "videos"), chunksize=8))

    write_if_changed(out / "truth.json", json.dumps([asdict(clip) for clip in truth], indent=1))
    question_id = count()
    for split in SPLITS:
        records = [
            {"video_id": video, "question_id": next(question_id), "type": json.dumps(TEMPLATES[template][:2]),
             "question_content": template, "templ_values": fillers, "question_deleted": 0, "anser": answer}
            for video, template, fillers, answer in choose(rng, [clip for clip in truth if clip.split == split])
        ]  # fmt: skip
        write_if_changed(out / f"{split}.json", json.dumps(records, indent=1))
    for part, rephrased in rephrase(records).items():
        write_if_changed(out / f"test-{part}.json", json.dumps(rephrased, indent=1))


PHRASES = ("In this video, {}", "Watch and listen: {}")


def rephrase(records: list[dict]) -> dict[str, list[dict]]:
    """The questions in other words, as MUSIC-AVQA-R has them: each question_id once per phrase, slots filled, in two
    parts. head has the answers that are more common than the average answer of their question type, tail the others."""
    parts: dict[str, list[dict]] = {"head": [], "tail": []}
    answers: dict[str, Counter] = defaultdict(Counter)
    for record in records:
        answers[record["type"]][record["anser"]] += 1
    for record in records:
        counts, question = answers[record["type"]], fill_slots(Record(record, "synthesize"))
        part = "head" if counts[record["anser"]] > counts.total() / len(counts) else "tail"
        for phrase in PHRASES:
            parts[part].append(record | {"question_content": phrase.format(question), "templ_values": "[]"})
    return parts
