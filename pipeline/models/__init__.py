"""Models: tensors in, answers out. A model is one file that reads like its paper."""
