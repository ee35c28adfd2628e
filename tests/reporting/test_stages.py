"""Run time of the stages."""

import pytest
from made_results import length, make_results

from pipeline.reporting.stages import seconds_by_shard
from pipeline.storage.features import FeatureIndex


@pytest.mark.parametrize("encoder, output", [("clip_vit_b32", "cls"), ("vggish", "embedding")])
def test_seconds_of_each_shard_whatever_the_encoder_is_called(tmp_path, encoder, output):
    """The groups of features.h5 are in alphabetical order: those of texts may come first."""
    folder = make_results(tmp_path, videos=10, per_shard=4, outputs={encoder: (output,)})
    expected = {f"{n:05d}": sum(length(f"v{v:03d}") for v in range(4 * n, min(4 * n + 4, 10))) for n in range(3)}
    assert seconds_by_shard(FeatureIndex(folder / "features.h5")) == expected
