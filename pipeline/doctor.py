"""What this machine lacks for a configuration, and the command that mends it."""

import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from extractors import is_hub_tag
from pipeline.config import text_encoders
from pipeline.gpu import devices
from pipeline.keys import CONSTRAINTS
from pipeline.scheduler import slurm_nodes
from pipeline.storage.lock import lock_file
from pipeline.weights import look, record_path, sha256_of

DECODERS = ("h264", "hevc", "vp9", "libdav1d", "mpeg4", "aac", "opus", "mp3")
OPEN_FILES = 1024
FREE_GB = 20
FFMPEG = "pip install --force-reinstall imageio-ffmpeg, or let IMAGEIO_FFMPEG_EXE name an ffmpeg program"


class Finding(NamedTuple):
    """One thing that was looked at: whether it is well, what was found, and what mends it."""

    name: str
    well: bool
    found: str
    remedy: str = ""


def examine(configs: list[dict]) -> list[Finding]:
    """All findings, for the configurations of data sets, which have the same folder of results."""
    return [
        *_python(),
        _gpu(),
        _ffmpeg(),
        *_weights(configs),
        *_storage(Path(configs[0]["results"])),
        _open_files(),
        _slurm(),
    ]


def format_findings(findings: list[Finding]) -> str:
    """One line per finding, and one more with the remedy where something is missing."""
    lines = []
    for item in findings:
        lines.append(f"{'ok     ' if item.well else 'MISSING'} {item.name}: {item.found}")
        if not item.well and item.remedy:
            lines.append(f"        {item.remedy}")
    return "\n".join(lines)


def _python() -> Iterator[Finding]:
    yield Finding("Python", sys.version_info >= (3, 11), sys.version.split()[0], "make PYTHON=python3.12 install")
    pinned = (
        [line.split("==") for line in CONSTRAINTS.read_text().split() if "==" in line] if CONSTRAINTS.exists() else []
    )
    lacking, differing = [], []
    for name, wanted in pinned:
        try:
            if version(name).split("+")[0] != wanted.split("+")[0]:
                differing.append(f"{name} {version(name)} in place of {wanted}")
        except PackageNotFoundError:
            lacking.append(name)
    found = f"{len(pinned)} pinned; missing: {', '.join(lacking) or 'none'}"
    found += f"; other versions: {', '.join(differing) or 'none'}"
    yield Finding("packages", not lacking, found, "make install")


def _gpu() -> Finding:
    import torch

    seen, usable = len(devices()), torch.cuda.device_count()
    found = f"{usable} usable by PyTorch {torch.__version__}" if usable else "none; encoders run on the CPU"
    return Finding("GPU", usable >= min(seen, 1), found, "install the driver that this PyTorch needs: nvidia-smi")


def _ffmpeg() -> Finding:
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        listed = subprocess.run([program, "-hide_banner", "-decoders"], capture_output=True, text=True).stdout
    except (OSError, RuntimeError) as error:  # imageio-ffmpeg raises RuntimeError if it finds no program
        return Finding("ffmpeg", False, f"cannot be run ({error})", FFMPEG)
    known = {line.split()[1] for line in listed.splitlines() if len(line.split()) > 1}
    lacking = [name for name in DECODERS if name not in known]
    found = f"{program}, no decoder for {', '.join(lacking)}" if lacking else program
    return Finding("ffmpeg", not lacking, found, FFMPEG)


def _weights(configs: list[dict]) -> Iterator[Finding]:
    seen = []
    for config in configs:
        for name, entry in {**config["encoders"], **text_encoders(config)}.items():
            title, weights = f"weights of {name}", entry["weights"]
            asked = (name, weights, entry.get("sha256"))
            if asked in seen:
                continue
            seen.append(asked)
            if weights == "random":
                yield Finding(title, True, "random numbers, not pretrained")
            elif is_hub_tag(weights):
                yield _hub_weights(title, name, weights, record_path(config["results"], name, weights))
            else:
                yield _weights_file(title, Path(weights), entry.get("sha256"))


def _hub_weights(title: str, encoder: str, tag: str, record: Path) -> Finding:
    """`record` is what the workflow writes when it has downloaded a hub tag."""
    if not record.exists():
        return Finding(title, True, f"hub tag {tag}; the workflow downloads them before its first job")
    files, wrong = look(record)
    found = f"hub tag {tag}, in {', '.join(map(str, files))}" if not wrong else f"hub tag {tag}: {wrong}"
    again = shlex.join(["avqa", "weights", "--encoder", encoder, "--weights", tag, "--out", str(record)])
    return Finding(title, not wrong, found, f"where there is a network: {again}")


def _weights_file(title: str, path: Path, expected: str | None) -> Finding:
    try:
        digest = sha256_of(path)
    except OSError as error:
        return Finding(title, False, f"{path}: {error.strerror}", "give a path that exists, or a hub tag")
    fits = expected in (None, digest)
    found = f"{path}, sha256 {digest}" + ("" if fits else f" in place of {expected}")
    return Finding(title, fits, found, "fetch the file again, or correct sha256 in the configuration")


def _storage(results: Path) -> Iterator[Finding]:
    folder = next(path for path in (results.resolve(), *results.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding(
        "disk", free > FREE_GB, f"{free:,.0f} GB free in {folder}", "set results: to a larger disk; `avqa plan`"
    )
    path = folder / f".avqa-doctor-{os.getpid()}.lock"
    try:
        held = lock_file(path)
        try:
            os.close(lock_file(path))
            works = False
        except BlockingIOError:
            works = True
        os.close(held)
        path.unlink()
    except OSError as error:
        yield Finding("locks", False, f"{folder}: {error.strerror}", "set results: to a folder that you may write to")
        return
    yield Finding("locks", works, f"in {folder}", "never start two runs at once, or use a file system with locks")


def _open_files() -> Finding:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Finding("open files", limit >= OPEN_FILES, f"{limit} allowed", f"ulimit -n {OPEN_FILES}")


def _slurm() -> Finding:
    nodes = slurm_nodes()
    if not shutil.which("sbatch"):
        return Finding("scheduler", True, "no Slurm; jobs run on this machine")
    kinds = "; ".join(f"{n.cpus} CPUs, {n.mem_mb} MB, {n.gpus} GPUs" for n in sorted(set(nodes)))
    return Finding("scheduler", bool(nodes), f"Slurm: {kinds or 'no nodes answer'}", "sinfo")
