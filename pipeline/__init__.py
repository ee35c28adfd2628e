"""From videos and questions to aligned features, shards, a trained model and its scores."""

__version__ = "0.2.0"
