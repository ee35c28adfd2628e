"""What published models' code reads from disk: folders of .npy files, one array per video or question. One row each.

The names are those of the released code: what its command line or configuration has as defaults, or what its README
passes. In `shape`, T stands for the seconds of a video.
"""

from dataclasses import dataclass
from typing import Literal

T = "T"
QUESTION_MARK = "the release encodes questions without the question mark; ours are encoded with it"
NO_PROMPTS = "prompts are encoded questions here; the release encodes declarative sentences made from them"


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
class Layout:
    """The folders and annotation files of one release."""

    release: str
    folders: tuple[Folder, ...]
    annotations: tuple[str, ...]  # paths of a split's file
    text_encoder: str | None = None  # of text/…; None: the release encodes questions itself
    answers: str | None = None  # path of the table of answers, where the code reads one
    seconds: int = 60
    notes: tuple[str, ...] = ()  # what differs from the released features and cannot be chosen here


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
        "clip_vit_b32",
        notes=(QUESTION_MARK,),
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
        "clip_vit_l14_336",
        notes=(NO_PROMPTS,),
    ),
    "qa-tiger": Layout(
        "AIM-SKKU/QA-TIGER, configs/qa-tiger/vitl14.py",
        (
            Folder("feats/vggish", "data.audio_feat", VGGISH, (T, 128)),
            Folder("feats/frame_ViT-L14@336px", "data.video_feat", L14_336, (T, 768)),
            Folder("feats/visual_tome14", "data.patch_feat", TOME, (T, 14, 1024)),
        ),
        ("annots/music_avqa/music_avqa_{split}.json",),
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
        "clip_vit_l14_336",
    ),
    "cuespace": Layout(
        "CueSpace, configs/test_profiles.py",
        (
            Folder("frame_ViT-L14@336px", "video_feat", L14_336, (T, 768)),
            Folder("visual_tome14", "patch_feat", TOME, (T, 14, 1024)),
            Folder("ast/audio_ast_cls", "audio_feat", ("ast/cls",), (T, 768)),
            Folder("ast/audio_ast_patch_last_pooled", "audio_patch_feat", ("ast/pooled",), (T, 12, 768), optional=True),
        ),
        ("annots/music_avqa/music_avqa_{split}.json",),
        answers="annots/music_avqa/answer2idx.json",
        notes=("the release merges the tokens of CLIP ViT-L/14@336px; ours are those of ViT-L/16 at 384 px",),
    ),
}
