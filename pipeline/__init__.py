"""From videos and questions to aligned features, shards, a trained model and its scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.data.feature_set import FeatureSet

__version__ = "0.3.0"


def open_features(folder: str | Path) -> FeatureSet:
    """The features of a data set, for use from Python: `open_features("results/music_avqa")`; see FeatureSet."""
    from pipeline.data.feature_set import FeatureSet

    return FeatureSet(folder)
