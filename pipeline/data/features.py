"""Features as a model reads them."""

import logging

import numpy as np
import torch

from pipeline.memory import available_memory
from pipeline.storage.features import FeatureIndex

STATISTICS_ROWS = 512

log = logging.getLogger(__name__)


class Features:
    """The rows of one feature: on the device or in memory where they fit, else read from the shards as needed."""

    def __init__(self, index: FeatureIndex, name: str, device: torch.device):
        self.index, self.name, self.device = index, name, device
        shape = index.names[name]
        self.shape, size = shape[1:], 2 * int(np.prod(shape))
        self.mean = self.std = None
        on_device = device.type == "cuda" and size <= torch.cuda.mem_get_info()[0] / 4
        self.values = None
        if on_device or size <= available_memory() / 4:
            self.values = torch.from_numpy(index.read(name)).to(device if on_device else "cpu")
        place = (
            "on the GPU" if on_device else "read as needed (too big for memory)" if self.values is None else "in memory"
        )
        log.info(f"{name} {shape}, {size / 1e9:.2f} GB: {place}")

    @property
    def dim(self) -> int:
        """Numbers per second, token or text."""
        return self.shape[-1]

    def standardize(self, rows: np.ndarray) -> None:
        """Bring each dimension to zero mean and unit variance over (a sample of) the given rows."""
        step = max(1, len(rows) // STATISTICS_ROWS)
        sample = self[np.sort(rows)[::step]].reshape(-1, self.dim).float()
        self.mean, self.std = sample.mean(0), sample.std(0) + 1e-6

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """The given rows, R, *shape, on the device. Raises AVQAError as `FeatureIndex.read` does."""
        if self.values is not None:
            values = self.values[torch.tensor(rows, device=self.values.device)]
        else:
            unique, inverse = np.unique(rows, return_inverse=True)  # each row is read once
            values = torch.from_numpy(self.index.read(self.name, unique)[inverse])
        values = values.to(self.device)
        return values if self.mean is None else (values.float() - self.mean) / self.std
