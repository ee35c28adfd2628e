"""A frame of any size to the square that an encoder reads."""

from typing import Any

import numpy as np
from PIL import Image

from extractors import FrameInput

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resize_and_crop(frame: np.ndarray, wanted: FrameInput) -> np.ndarray:
    """uint8 height,width,3 to size,size,3: the short side resized with antialiasing, then the centre cropped; with
    `squash` both sides resized.

    Rounds as torchvision's Resize and CenterCrop on Pillow images do. For the default transform this is CLIP's own
    preprocessing (open_clip.image_transform), for bilinear with a short side of 256 that of ImageNet classifiers.
    """
    size, transform = wanted.size, wanted.transform
    image = Image.fromarray(frame)
    width, height = image.size
    short, short_side = min(width, height), transform.short_side or size
    resized = (int(short_side * width / short), int(short_side * height / short))
    if transform.squash:
        resized = (size, size)
    if resized != image.size:
        image = image.resize(resized, _FILTERS[transform.filter])
    left, top = (round((length - size) / 2) for length in resized)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def mirror(row: dict[str, Any]) -> None:
    """Mirror all frames of a video, …, width, 3, left to right, in a row whose frames are named frames/…"""
    for name in row:
        if name.startswith("frames/"):
            row[name] = np.flip(row[name], axis=-2)
