"""What published models' code reads from disk: folders of .npy files, one array per video or question, and annotations.
One row each.

The names are those of the released code: what its command line or configuration has as defaults, or what its README
passes. In `shape`, T stands for the seconds of a video.
"""

from dataclasses import dataclass
from typing import Literal

T = "T"
PROMPTS = "prompts are worded as in manifests/prompts.csv; the release has other words for them"


@dataclass(frozen=True)
class Folder:
    """One folder of arrays. Several features are joined along their token axis, a vector counting as one token."""

    path: str
    option: str  # of the released command line, or key of its configuration
    features: tuple[str, ...]  # encoder/output, or text/output
    shape: tuple[int | str, ...]  # of one file
    per: Literal["video", "question"] = "video"
    text: Literal["question", "prompt"] = "question"  # which text's, where there is an array per question
    optional: bool = False  # the released code also runs without it


@dataclass(frozen=True)
class Subset:
    """A further file of a split's questions: those that have one of the values in each of the columns."""

    path: str
    split: str
    values: dict[str, tuple[str, ...]]  # by column of questions.parquet


@dataclass(frozen=True)
class Layout:
    """The folders and annotation files of one release."""

    release: str
    folders: tuple[Folder, ...]
    # Paths of a split's file, first the one that the code trains with and scores. It numbers answers and words in the
    # order of training.
    annotations: tuple[str, ...]
    subsets: tuple[Subset, ...] = ()
    text_encoder: str | None = None  # of text/…; None: the release encodes questions itself
    drop_last_character: bool = False  # of a question, its question mark, before it is encoded
    answers: str | None = None  # path of the table of answers, where the code has their numbers from there
    words: bool = False  # the model reads the numbers of words, and the code stops at a word without one
    options: bool = False  # the model reads the options of multiple choice, and needs no numbers of answers then
    seconds: int = 60
    notes: tuple[str, ...] = ()  # what differs from the released features and cannot be chosen here


KINDS = {  # as AV-Master's files are named
    "av_avg": {"scenario": ("Audio-Visual",)},
    "av_temp": {"scenario": ("Audio-Visual",), "type": ("Temporal",)},
    "av_comp": {"scenario": ("Audio-Visual",), "type": ("Comparative",)},
    "av_local": {"scenario": ("Audio-Visual",), "type": ("Location",)},
    "av_count": {"scenario": ("Audio-Visual",), "type": ("Counting",)},
    "av_exist": {"scenario": ("Audio-Visual",), "type": ("Existential",)},
    "a_avg": {"scenario": ("Audio",)},
    "a_comp": {"scenario": ("Audio",), "type": ("Comparative",)},
    "a_count": {"scenario": ("Audio",), "type": ("Counting",)},
    "v_avg": {"scenario": ("Visual",)},
    "v_local": {"scenario": ("Visual",), "type": ("Location",)},
    "v_count": {"scenario": ("Visual",), "type": ("Counting",)},
}
PARTS = {  # as MUSIC-AVQA-R's files are named
    "head": {"part": ("head",)},
    "tail": {"part": ("tail",)},
    "headtail": {"part": ("head", "tail", "headtail")},
}


def subsets(path: str, split: str, names: dict[str, dict[str, tuple[str, ...]]]) -> tuple[Subset, ...]:
    """One file per name."""
    return tuple(Subset(path.format(name=name), split, values) for name, values in names.items())


VGGISH = ("vggish/embedding",)
L14_336 = ("clip_vit_l14_336/cls",)
TOME = ("tome_vit_l16_384/tokens",)
SENTENCE, WORDS = ("text/sentence",), ("text/words",)

LAYOUTS = {
    "avst": Layout(
        "GeWu-Lab/MUSIC-AVQA, net_grd_avst",
        (
            Folder("feats/vggish", "--audio_dir", VGGISH, (T, 128)),
            Folder("visual_14x14", "--video_res14x14_dir", ("resnet18_music_avqa/map",), (T, 512, 14, 14)),
        ),
        ("data/json/avqa-{split}.json",),
        words=True,
        notes=("the released code trains on questions of at most 14 words",),
    ),
    "pstp-net": Layout(
        "GeWu-Lab/PSTP-Net",
        (
            Folder("vggish", "--audios_feat_dir", VGGISH, (T, 128)),
            Folder(
                "clip_patch-level_vit_b32",
                "--clip_vit_b32_dir",
                ("clip_vit_b32/cls", "clip_vit_b32/patch"),
                (T, 50, 512),
            ),
            Folder("clip_qst", "--clip_qst_dir", SENTENCE, (1, 512), "question"),
            Folder("clip_word", "--clip_word_dir", WORDS, (1, 77, 512), "question"),
        ),
        ("dataset/split_que_id/music_avqa_{split}.json",),
        text_encoder="clip_vit_b32",
        drop_last_character=True,
    ),
    "tspm": Layout(
        "GeWu-Lab/TSPM",
        (
            Folder("vggish", "--audios_feat_dir", VGGISH, (T, 128)),
            Folder("clip_feats/frame_1fps_ViT-L14@336px", "--visual_feat_dir", L14_336, (T, 768)),
            Folder("ToMe_feat/tome14", "--visual_patch_dir", TOME, (T, 14, 1024)),
            # Read and passed on, and used nowhere.
            Folder("ToMe_feat/audio_tome14", "--audios_patch_dir", VGGISH, (T, 128)),
            Folder("clip_feats/qst_ViT-L14@336px", "--qst_feat_dir", SENTENCE, (1, 768), "question"),
            Folder("clip_feats/qaPrompt_ViT-L14@336px", "--qst_prompt_dir", SENTENCE, (1, 768), "question", "prompt"),
        ),
        ("dataset/split_que_id/music_avqa_{split}.json",),
        text_encoder="clip_vit_l14_336",
        notes=(PROMPTS,),
    ),
    "qa-tiger": Layout(
        "AIM-SKKU/QA-TIGER, configs/qa-tiger/vitl14.py",
        (
            Folder("feats/vggish", "data.audio_feat", VGGISH, (T, 128)),
            Folder("feats/frame_ViT-L14@336px", "data.video_feat", L14_336, (T, 768)),
            Folder("feats/visual_tome14", "data.patch_feat", TOME, (T, 14, 1024)),
        ),
        ("annots/music_avqa/music_avqa_{split}.json",),
        subsets("annots/music_avqa_r/avqa-test-{name}.json", "test", PARTS),
        answers="annots/music_avqa/answer2idx.json",
    ),
    "av-master": Layout(
        "AoKoo233/AV-Master",
        (
            Folder("vggish_audio", "--audios_feat_dir", VGGISH, (T, 128)),
            Folder("clip_vit_l14_336px", "--clip_vit_b32_dir", L14_336, (T, 768)),
            Folder("clip_sentence_l14_336px", "--clip_qst_dir", SENTENCE, (1, 768), "question"),
            Folder("clip_word_l14_336px", "--clip_word_dir", WORDS, (1, 77, 768), "question"),
        ),
        # The vocabulary of answers is read from the second path, which is spelled so.
        ("dataset/split_que_id/music_avqa_{split}.json", "dataset/musci_avqa/music_avqa_{split}.json"),
        subsets("dataset/music_avqa/sub_val/music_avqa_val_{name}.json", "val", KINDS)
        + subsets(
            "dataset/music_avqa/sub_test/music_avqa_test_{name}.json",
            "test",
            {name: values for name, values in KINDS.items() if name != "av_avg"},
        )
        # The test script reads its twelfth file from the folder of the validation split.
        + subsets("dataset/music_avqa/sub_val/music_avqa_test_{name}.json", "test", {"av_avg": KINDS["av_avg"]}),
        text_encoder="clip_vit_l14_336",
    ),
    "cuespace": Layout(
        "chelilia/Cuespace, configs/test_profiles.py",
        (
            Folder("data/feats/final/frame_ViT-L14@336px", "video_feat", L14_336, (T, 768)),
            Folder("data/feats/final/visual_tome14", "patch_feat", TOME, (T, 14, 1024)),
            Folder("data/feats/final/ast/audio_ast_cls", "audio_feat", ("ast/cls",), (T, 768)),
            Folder(
                "data/feats/final/ast/audio_ast_patch_last_pooled",
                "audio_patch_feat",
                ("ast/pooled",),
                (T, 12, 768),
                optional=True,
            ),
        ),
        ("data/annots/music_avqa/music_avqa_{split}.json",),
        subsets("data/annots/music_avqa_r/avqa-test-{name}.json", "test", PARTS),
        answers="data/annots/music_avqa/answer2idx.json",
        options=True,
        notes=("the release merges the tokens of CLIP ViT-L/14@336px; ours are those of ViT-L/16 at 384 px",),
    ),
}
