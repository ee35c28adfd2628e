"""Features as a model reads them."""

import logging

import numpy as np
import torch

from pipeline.memory import available_memory
from pipeline.storage.features import FeatureIndex

STATISTICS_ROWS, STATISTICS_AT_ONCE = 512, 16
CONSTANT = 1e-6  # a standard deviation that is rounding only, relative to the mean
MEMORY_SHARE = 4  # a feature takes at most one part in so many of the memory that is available

log = logging.getLogger(__name__)


class Features:
    """The rows of one feature: on the device or in memory where they fit, else read from the shards as needed.

    Of a feature that does not fit, as many rows as fit are kept, the first that were read. Training takes rows in
    random order and evaluation each row once, so that keeping the last ones read would not be better. `seconds` are
    the seconds that are read (default: all). Safe with threads.
    """

    def __init__(self, index: FeatureIndex, name: str, device: torch.device, seconds: slice | None = None):
        self.index, self.name, self.device, self.seconds = index, name, device, seconds
        self.shape = index.shape(name, seconds)
        rows, self.row_bytes = index.names[name][0], index.dtypes[name].itemsize * int(np.prod(self.shape))
        size, memory = rows * self.row_bytes, available_memory() / MEMORY_SHARE
        on_device = device.type == "cuda" and size <= torch.cuda.mem_get_info()[0] / MEMORY_SHARE
        self.mean = self.std = self.values = None
        self.kept: dict[int, np.ndarray] = {}
        self.room = int(memory // max(self.row_bytes, 1))  # rows
        place = f"read as needed, at most {self.room} of {rows} rows kept in memory"
        if on_device or size <= memory:
            place = "on the GPU" if on_device else "in memory"
            self.values = torch.from_numpy(index.read(name, seconds=seconds)).to(device if on_device else "cpu")
        log.info(f"{name} {(rows, *self.shape)}, {size / 1e9:.2f} GB: {place}")

    @property
    def dim(self) -> int:
        """Numbers per second, token or text."""
        return self.shape[-1]

    def standardize(self, rows: np.ndarray) -> None:
        """Bring each dimension to zero mean and unit variance over (a sample of) the given rows, whose order decides
        the last bits. One that is constant there is only shifted: divided by next to nothing, another value in the
        test would become enormous."""
        rows = rows[:: max(1, len(rows) // STATISTICS_ROWS)]
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, len(rows), STATISTICS_AT_ONCE):
            values = self[rows[start : start + STATISTICS_AT_ONCE]].reshape(-1, self.dim).double()
            count, total, squares = count + len(values), total + values.sum(0), squares + (values**2).sum(0)
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=0) * (count / max(count - 1, 1))
        self.mean, std = mean.float(), variance.sqrt().float()
        self.std = torch.where(std > CONSTANT * (1 + self.mean.abs()), std + 1e-6, 1.0)

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """The given rows, R, *shape, on the device. Raises AVQAError as `FeatureIndex.read` does."""
        if self.values is not None:
            values = self.values[torch.tensor(rows, device=self.values.device)]
        else:
            values = torch.from_numpy(self._read(rows))
        values = values.to(self.device)
        return values if self.mean is None else (values.float() - self.mean) / self.std

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Rows from memory where they are kept, else from their shards, each once."""
        unique, first, of_unique = np.unique(rows, return_index=True, return_inverse=True)
        values = np.empty((len(rows), *self.shape), self.index.dtypes[self.name])
        lacking = np.array([row not in self.kept for row in unique])
        self.index.prefetch(self.name, unique[lacking], self.seconds)
        for row, at, absent in zip(unique.tolist(), first, lacking, strict=True):
            if absent:
                self.index.read(self.name, [row], self.seconds, out=values[at : at + 1])
                if len(self.kept) < self.room:
                    self.kept[row] = values[at].copy()
            else:
                values[at] = self.kept[row]
        for at in np.setdiff1d(np.arange(len(rows)), first):
            values[at] = values[first[of_unique[at]]]
        return values
