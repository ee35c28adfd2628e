"""The demo's data set: drawn and played music performances with questions whose answers are known.

Nothing here is a recording. Each clip is a stage with up to four "instruments", each a shape of its own colour
and pattern with a timbre in its own register; a question is asked in the words of MUSIC-AVQA, and its answer
follows from the truth that drew the clip. A question's text alone says next to nothing about its answer: within
a split each answer to the same words is equally common, as far as the number of clips allows.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from pipeline.errors import AVQAError
from pipeline.shards import atomic, write_if_changed

SIZE, FPS, RATE = 160, 10, 16000  # pixels a side, pictures a second, samples a second
PLACES = ("left", "middle", "right")
NUMBERS = ("zero", "one", "two", "three", "four")
LOUDNESS = (1.0, 0.45, 0.2, 0.09)
SPLITS = {"train": 0.6, "val": 0.15, "test": 0.25}


@dataclass(frozen=True)
class Kind:
    """How an instrument looks and sounds. `shape` and `pattern` take coordinates in -1…1 and return booleans."""

    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    shape: Callable[[np.ndarray, np.ndarray], np.ndarray]
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray]
    pitch: float  # Hz
    harmonics: tuple[float, ...]
    vibrato: float = 0.0  # relative depth at 6 Hz
    noise: float = 0.0
    decay: float = 0.0  # 1/s after each note's onset; 0: held
    beat: float = 2.0  # notes a second


KINDS = {
    "piano": Kind(((250, 250, 250), (10, 10, 10)), lambda u, v: abs(v) < 0.7, lambda u, v: np.sin(14 * u) > 0.3,
                  260, (1, 0.5, 0.25, 0.1), decay=4, beat=3),
    "violin": Kind(((255, 60, 0), (120, 20, 0)), lambda u, v: abs(u) * (1.3 - 0.5 * np.cos(5 * v)) < 0.75,
                   lambda u, v: abs(u) < 0.12, 620, (1, 0.8, 0.6, 0.5, 0.3), vibrato=0.02, beat=1),
    "flute": Kind(((0, 220, 255), (0, 60, 200)), lambda u, v: abs(u + v) < 0.45,
                  lambda u, v: np.sin(10 * (u - v)) > 0.6, 1500, (1, 0.05), noise=0.1, beat=2),
    "accordion": Kind(((230, 0, 200), (255, 255, 120)), lambda u, v: abs(v) < 0.65 + 0.3 * abs(u),
                      lambda u, v: np.sin(9 * u) * np.sin(9 * v) > 0, 390, (1, 0, 0.9, 0, 0.7, 0, 0.5), beat=1.5),
    "drum": Kind(((255, 230, 0), (200, 0, 0)), lambda u, v: u * u + v * v < 1, lambda u, v: u * u + v * v < 0.4,
                 70, (1, 0.4), noise=2.0, decay=14, beat=4),
    "xylophone": Kind(((0, 200, 40), (255, 255, 255)), lambda u, v: abs(v) < 0.95 - 0.4 * (u + 1),
                      lambda u, v: np.sin(11 * u) > 0.5, 3000, (1, 0, 0, 0.2), decay=8, beat=5),
}  # fmt: skip


@dataclass(frozen=True)
class Player:
    """One instrument of a clip. start = end = 0: it is on show and silent. Not visible: heard from off the stage."""

    name: str
    place: str
    x: float  # centre and radius in pixels
    y: float
    radius: float
    loudness: float
    start: int
    end: int
    visible: bool = True

    @property
    def sounds(self) -> bool:
        return self.end > self.start


@dataclass(frozen=True)
class Clip:
    """The truth of one video. `special`: "", "silent", "b-frames" or "vfr"."""

    video_id: str
    seed: int
    seconds: int
    outdoor: bool
    voice: tuple[int, int]  # start and end second of a speaking voice; equal: none
    special: str
    players: tuple[Player, ...]


def compose(rng: np.random.Generator, number: int, seconds: int) -> Clip:
    """Make up clip `number` of about `seconds` seconds."""
    special = {0: "silent", 1: "b-frames", 2: "vfr"}.get(number, "")
    if number % 8 == 3:
        seconds = max(3, seconds - int(rng.integers(1, 4)))
    count = int(rng.integers(1, 5))
    names = rng.permutation(list(KINDS))[: count + 1]
    columns = rng.permutation([0, 1, 2, *rng.permutation(3)[:1]] if count == 4 else 3)[:count]
    loudness = rng.permutation(LOUDNESS)
    players = []
    for n, column in enumerate(columns):
        twins = list(columns).count(column) > 1
        radius = float(rng.uniform(24, 27))
        x = SIZE * (column + 0.5) / 3 + rng.uniform(-3, 3)
        y = SIZE * ((0.3 if column not in columns[:n] else 0.72) if twins else rng.uniform(0.4, 0.65))
        start, end = play_time(rng, seconds) if rng.random() < 0.75 or n == 0 else (0, 0)
        players.append(Player(str(names[n]), PLACES[column], float(x), float(y), radius, float(loudness[n]), start, end))
    if count == 1 and rng.random() < 0.5:  # the sound of another instrument than the one on show
        shown = players[0]
        hidden = Player(str(names[1]), shown.place, shown.x, shown.y, 0.0, shown.loudness, shown.start, shown.end, False)
        players = [Player(**{**asdict(shown), "start": 0, "end": 0}), hidden]
    voice = int(rng.integers(0, seconds - 1))
    talk = rng.random() < 0.4
    return Clip(f"synth{number:05d}", int(rng.integers(2**32)), seconds, bool(rng.random() < 0.5),
                (voice, voice + 2) if talk else (0, 0), special, tuple(players))  # fmt: skip


def play_time(rng: np.random.Generator, seconds: int) -> tuple[int, int]:
    """From beginning to end in four of ten cases, otherwise at least two seconds somewhere."""
    if rng.random() < 0.4:
        return 0, seconds
    start = int(rng.integers(0, seconds - 2))
    return start, int(rng.integers(start + 2, seconds + 1))


# --- picture and sound -------------------------------------------------------------------------------------------


def background(rng: np.random.Generator, outdoor: bool) -> np.ndarray:
    """The empty stage, SIZE×SIZE×3 uint8: sky over grass, or a wall over a wooden floor."""
    sky, ground = ((140, 185, 225), (110, 150, 90)) if outdoor else ((120, 105, 100), (95, 70, 55))
    row = np.arange(SIZE)[:, None, None]
    picture = np.where(row < SIZE * 0.55, np.array(sky), np.array(ground)) + np.zeros((SIZE, SIZE, 3))
    return np.clip(picture + rng.uniform(-8, 8, 3) + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


def draw(canvas: np.ndarray, player: Player, time: float) -> None:
    """Paint the player as it looks at `time` seconds: it throbs and bobs while it plays."""
    playing = player.start <= time < player.end
    radius = player.radius * (1 + 0.16 * math.sin(2 * math.pi * 1.3 * time) * playing)
    y = player.y + 5 * math.sin(2 * math.pi * 1.7 * time) * playing
    top, left = max(0, math.ceil(y - radius)), max(0, math.ceil(player.x - radius))
    box = canvas[top : math.ceil(y + radius), left : math.ceil(player.x + radius)]
    v, u = np.ogrid[top : top + box.shape[0], left : left + box.shape[1]]
    u, v = (u - player.x) / radius, (v - y) / radius
    kind = KINDS[player.name]
    inside, marked = np.broadcast_arrays(kind.shape(u, v), kind.pattern(u, v))
    inside = np.broadcast_to(inside, box.shape[:2])
    marked = np.broadcast_to(marked, box.shape[:2])
    box[inside & ~marked] = kind.colours[0]
    box[inside & marked] = kind.colours[1]


def play(rng: np.random.Generator, kind: Kind, seconds: int) -> np.ndarray:
    """`seconds` of the instrument at loudness 1, float64 at RATE."""
    time = np.arange(seconds * RATE) / RATE
    note = (time * kind.beat).astype(int)
    pitch = kind.pitch * 2 ** (rng.integers(-2, 3, note[-1] + 1) / 12)[note]
    phase = 2 * np.pi * np.cumsum(pitch * (1 + kind.vibrato * np.sin(2 * np.pi * 6 * time))) / RATE
    sound = sum(a * np.sin(k * phase) for k, a in enumerate(kind.harmonics, 1) if a)
    if kind.noise:
        sound = sound + kind.noise * rng.normal(0, 0.3, len(time))
    if kind.decay:
        sound = sound * np.exp(-kind.decay * (time - note / kind.beat))
    return sound


def speak(rng: np.random.Generator, seconds: int) -> np.ndarray:
    """`seconds` of something like a voice: a buzz at 120 Hz through moving formants, four syllables a second."""
    time = np.arange(seconds * RATE) / RATE
    syllable = (time * 4).astype(int)
    formant = rng.uniform(400, 900, syllable[-1] + 1)[syllable]
    phase = 2 * np.pi * 120 * time
    sound = sum(np.exp(-(((k * 120 - formant) / 200) ** 2)) * np.sin(k * phase) for k in range(2, 11))
    return sound * abs(np.sin(np.pi * 4 * time))


def soundtrack(rng: np.random.Generator, clip: Clip) -> np.ndarray:
    """All that is heard, float32 in -1…1 at RATE."""
    mix = rng.normal(0, 0.001, clip.seconds * RATE)
    for player in clip.players:
        if player.sounds:
            part = slice(player.start * RATE, player.end * RATE)
            mix[part] += 0.15 * player.loudness * play(rng, KINDS[player.name], player.end - player.start)
    if clip.voice[1] > clip.voice[0]:
        mix[clip.voice[0] * RATE : clip.voice[1] * RATE] += 0.2 * speak(rng, clip.voice[1] - clip.voice[0])
    return np.clip(mix, -1, 1).astype(np.float32)


def render(clip: Clip, path: Path) -> None:
    """Write the clip as H.264 and AAC in mp4; encoders run in one thread, so that the bytes depend on the clip only."""
    rng = np.random.default_rng(clip.seed)
    stage = background(rng, clip.outdoor)
    frames = np.arange(clip.seconds * FPS)
    if clip.special == "vfr":
        frames = np.sort(rng.permutation(frames[1:])[: len(frames) // 2])
        frames = np.concatenate([[0], frames])
    with atomic(path) as partial, av.open(str(partial), "w", format="mp4") as file:
        long_gop = {"bf": "3", "g": str(10 * FPS), "x264-params": "scenecut=0:b-adapt=0"}
        options = long_gop if clip.special == "b-frames" else {"bf": "0", "g": str(2 * FPS)}
        video = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "26", "threads": "1", **options})
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        audio = None if clip.special == "silent" else file.add_stream("aac", rate=RATE, layout="mono")
        for n in frames:
            canvas = stage.copy()
            for player in clip.players:
                if player.visible:
                    draw(canvas, player, n / FPS)
            picture = av.VideoFrame.from_ndarray(canvas, format="rgb24")
            picture.pts = int(n)
            file.mux(video.encode(picture))
        file.mux(video.encode(None))
        if audio:
            sound = av.AudioFrame.from_ndarray(soundtrack(rng, clip)[None], format="fltp", layout="mono")
            sound.sample_rate = RATE
            file.mux(audio.encode(sound))
            file.mux(audio.encode(None))


# --- questions ---------------------------------------------------------------------------------------------------

# How many questions of each template a clip gets on average; official words, official types.
TEMPLATES = {
    "Is there a <Object> sound?": ("Audio", "Counting", 1.0),
    "How many musical instruments were heard throughout the video?": ("Audio", "Counting", 1.0),
    "Is the <Object> louder than the <Object>?": ("Audio", "Comparative", 1.0),
    "Is the <Object> playing longer than the <Object>?": ("Audio", "Comparative", 1.0),
    "Is there a <Object> in the entire video?": ("Visual", "Counting", 1.0),
    "How many types of musical instruments appeared in the entire video?": ("Visual", "Counting", 1.0),
    "What kind of musical instrument is it?": ("Visual", "Location", 1.0),
    "What kind of instrument is the <LRer> instrument? ": ("Visual", "Location", 1.0),
    "Where is the performance?": ("Visual", "Location", 1.0),
    "Is the <Object> in the video always playing?": ("Audio-Visual", "Existential", 1.0),
    "Is there a voiceover?": ("Audio-Visual", "Existential", 1.0),
    "Is this sound from the instrument in the video?": ("Audio-Visual", "Existential", 1.0),
    "How many instruments are sounding in the video?": ("Audio-Visual", "Counting", 1.0),
    "How many instruments in the video did not sound from beginning to end?": ("Audio-Visual", "Counting", 1.0),
    "Where is the <LL> instrument?": ("Audio-Visual", "Location", 1.0),
    "Is the <FL> sound coming from the <LR> instrument?": ("Audio-Visual", "Location", 1.0),
    "Is the instrument on the <LR> louder than the instrument on the <LR>?": ("Audio-Visual", "Comparative", 1.0),
    "What is the <TH> instrument that comes in?": ("Audio-Visual", "Temporal", 1.0),
    "Where is the <FL> sounding instrument?": ("Audio-Visual", "Temporal", 1.0),
    "Which instrument makes sounds <BA> the <Object>?": ("Audio-Visual", "Temporal", 1.0),
}


def ask(clip: Clip) -> Iterator[tuple[str, list[str], str]]:
    """Every question (template, fillers, answer) that the clip's truth answers without doubt."""
    yes = ("no", "yes")
    shown = [p for p in clip.players if p.visible]
    heard = [p for p in clip.players if p.sounds]
    players = [p for p in shown if p.sounds]
    visible, audible = {p.name for p in shown}, {p.name for p in heard}
    by_place = {place: [p for p in shown if p.place == place] for place in PLACES}

    yield "How many types of musical instruments appeared in the entire video?", [], NUMBERS[len(shown)]
    yield "Where is the performance?", [], "outdoor" if clip.outdoor else "indoor"
    for name in KINDS:
        yield "Is there a <Object> in the entire video?", [name], yes[name in visible]
    if len(shown) == 1:
        yield "What kind of musical instrument is it?", [], shown[0].name
    else:
        for word, places in (("leftest", PLACES), ("rightest", PLACES[::-1])):
            first = next(by_place[place] for place in places if by_place[place])
            if len(first) == 1:
                yield "What kind of instrument is the <LRer> instrument? ", [word], first[0].name
    if clip.special == "silent":
        return

    yield "Is there a voiceover?", [], yes[clip.voice[1] > clip.voice[0]]
    yield "How many musical instruments were heard throughout the video?", [], NUMBERS[len(heard)]
    for name in KINDS:
        yield "Is there a <Object> sound?", [name], yes[name in audible]
    for p in heard:
        yield "Is the <Object> in the video always playing?", [p.name], yes[p.end - p.start == clip.seconds]
        for q in heard:
            if p is not q:
                yield "Is the <Object> louder than the <Object>?", [p.name, q.name], yes[p.loudness > q.loudness]
                longer = (p.end - p.start) - (q.end - q.start)
                if longer:
                    yield "Is the <Object> playing longer than the <Object>?", [p.name, q.name], yes[longer > 0]
    if len(shown) == 1:
        yield "Is this sound from the instrument in the video?", [], yes[bool(players)]
        return

    yield "How many instruments are sounding in the video?", [], NUMBERS[len(players)]
    yield "How many instruments in the video did not sound from beginning to end?", [], NUMBERS[len(shown) - len(players)]
    yield "Where is the <LL> instrument?", ["loudest"], max(players, key=lambda p: p.loudness).place
    for a, b in (("left", "right"), ("right", "left")):
        if len(by_place[a]) == len(by_place[b]) == 1:
            p, q = by_place[a][0], by_place[b][0]
            if p.sounds and q.sounds:
                yield ("Is the instrument on the <LR> louder than the instrument on the <LR>?", [a, b],
                       yes[p.loudness > q.loudness])  # fmt: skip
    order = sorted(players, key=lambda p: p.start)
    starts = [p.start for p in order]
    if len(order) > 1 and starts[0] < starts[1]:
        yield "What is the <TH> instrument that comes in?", ["first"], order[0].name
        yield "Where is the <FL> sounding instrument?", ["first"], order[0].place
        for place in PLACES:
            yield "Is the <FL> sound coming from the <LR> instrument?", ["first", place], yes[order[0].place == place]
    if len(order) == 2 and starts[0] < starts[1]:
        yield "Which instrument makes sounds <BA> the <Object>?", ["after", order[0].name], order[1].name
        yield "Which instrument makes sounds <BA> the <Object>?", ["before", order[1].name], order[0].name


def choose(rng: np.random.Generator, clips: list[Clip]) -> list[dict]:
    """The questions of one split: rounds, each asking one text of one clip for each answer, until a template has enough."""
    asked: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for n in rng.permutation(len(clips)):
        for template, fillers, answer in ask(clips[n]):
            asked[template][json.dumps(fillers)][answer].append(clips[n].video_id)
    records = []
    for template, (scenario, kind, share) in TEMPLATES.items():
        rounds = [
            [(videos[k], fillers, answer) for answer, videos in answers.items()]
            for fillers, answers in asked[template].items()
            for k in range(min(map(len, answers.values())))
        ]
        enough = share * len(clips)
        for n in rng.permutation(len(rounds)):
            if enough <= 0:
                break
            enough -= len(rounds[n])
            records += [
                {"video_id": video, "type": json.dumps([scenario, kind]), "question_content": template,
                 "templ_values": fillers, "question_deleted": 0, "anser": answer}
                for video, fillers, answer in rounds[n]
            ]  # fmt: skip
    return sorted(records, key=lambda r: r["video_id"])


def synthesize(out_dir: str | Path, clips: int = 240, seconds: int = 8, seed: int = 0) -> None:
    """Write videos/<video_id>.mp4, train.json, val.json, test.json (official format) and truth.json below `out_dir`.

    Same arguments, same content. Raises AVQAError for fewer than 12 clips or 4 seconds.
    """
    if clips < 12 or seconds < 4:
        raise AVQAError(f"synthesize: clips = {clips}, seconds = {seconds}; at least 12 clips of 4 seconds are needed")
    out = Path(out_dir)
    rng = np.random.default_rng(seed)
    truth = [compose(rng, n, seconds) for n in range(clips)]
    (out / "videos").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(render, truth, [out / "videos" / f"{c.video_id}.mp4" for c in truth], chunksize=4))

    order = rng.permutation(clips)
    edges = np.round(np.cumsum([0, *SPLITS.values()]) * clips).astype(int)
    question_id = 0
    splits = {}
    for split, low, high in zip(SPLITS, edges[:-1], edges[1:], strict=True):
        chosen = [truth[n] for n in sorted(order[low:high])]
        splits |= {clip.video_id: split for clip in chosen}
        records = choose(rng, chosen)
        for record in records:
            question_id += 1
            record["question_id"] = question_id
        write_if_changed(out / f"{split}.json", json.dumps(records, indent=1))
    write_if_changed(out / "truth.json", json.dumps([{"split": splits[c.video_id], **asdict(c)} for c in truth], indent=1))
