"""Features as a model reads them."""

from pathlib import Path

import h5py
import numpy as np
import psutil
import torch

from pipeline.errors import AVQAError
from pipeline.storage.features import damaged_shards

STATISTICS_ROWS = 512


class Features:
    """N rows of features: on the device or in memory where they fit, else read from HDF5 as they are needed."""

    def __init__(self, dataset: h5py.Dataset, device: torch.device):
        self.device, self.dim = device, dataset.shape[-1]
        self.mean = self.std = None
        name, size = dataset.name.lstrip("/"), dataset.nbytes
        on_device = device.type == "cuda" and size <= torch.cuda.mem_get_info()[0] / 4
        self.in_memory = on_device or size <= psutil.virtual_memory().available / 4
        self.folder, self.values = Path(dataset.file.filename).parent, dataset
        if self.in_memory:
            self.values = torch.from_numpy(self._read(slice(None)))
        if on_device:
            self.values = self.values.to(device)
        place = "on the GPU" if on_device else "in memory" if self.in_memory else "read as needed (too big for memory)"
        print(f"{name} {dataset.shape}, {size / 1e9:.2f} GB: {place}")

    def standardize(self, rows: np.ndarray) -> None:
        """Bring each dimension to zero mean and unit variance over (a sample of) the given rows."""
        step = max(1, len(rows) // STATISTICS_ROWS)
        sample = self[np.sort(rows)[::step]].reshape(-1, self.dim).float()
        self.mean, self.std = sample.mean(0), sample.std(0) + 1e-6

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        if self.in_memory:
            values = self.values[torch.tensor(rows, device=self.values.device)]
        else:
            unique, inverse = np.unique(rows, return_inverse=True)  # h5py wants rising row numbers
            values = torch.from_numpy(self._read(unique)[inverse])
        values = values.to(self.device)
        return values if self.mean is None else (values.float() - self.mean) / self.std

    def _read(self, rows: np.ndarray | slice) -> np.ndarray:
        try:
            return self.values[rows]
        except OSError as error:  # a virtual dataset does not say which of its files is damaged
            damage = "\n".join(damaged_shards(self.folder))
            raise AVQAError(f"{self.folder / 'features.h5'}: cannot be read ({error})\n{damage}") from error
