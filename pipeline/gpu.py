"""The GPUs of this machine, one job on each."""

import getpass
import glob
import logging
import os
import tempfile
import time
from pathlib import Path

from pipeline.storage.lock import lock_file

POLL_SECONDS = 1.0

log = logging.getLogger(__name__)
_held: list[int] = []  # descriptors of locks: they end with the process


def devices() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; none where there is no GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(n) for n in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def claim(folder: str | Path | None = None) -> str | None:
    """Take a free GPU for this process and everything that it starts, by a lock that ends with the process; wait for
    one if none is free. Sets CUDA_VISIBLE_DEVICES. Returns the GPU, or None where there is none."""
    slots = devices()
    if not slots:
        return None
    folder = Path(folder or Path(tempfile.gettempdir(), f"avqa-gpus-{getpass.getuser()}"))
    folder.mkdir(parents=True, exist_ok=True)
    waiting = False
    while True:
        for slot in slots:
            try:
                _held.append(lock_file(folder / f"{slot.replace('/', '_')}.lock"))
            except BlockingIOError:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = slot
            return slot
        if not waiting:
            log.info(f"all {len(slots)} GPUs are taken; waiting for one")
            waiting = True
        time.sleep(POLL_SECONDS)
