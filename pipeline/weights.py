"""What is downloaded for a hub tag, and a record of it beside the results."""

import hashlib
import json
from pathlib import Path

from extractors import fetch_weights
from pipeline.storage.atomic import write_if_changed


def record_path(results: str | Path, encoder: str, tag: str) -> Path:
    """Where the workflow records a download."""
    return Path(results, "weights", encoder, f"{tag}.json")


def fetch(encoder: str, tag: str, out: str | Path | None = None) -> list[Path]:
    """Download what an encoder needs, unless it is in the libraries' caches, and only then write the record `out`:
    encoder, weights, and path, bytes and sha256 of each file. Returns the files. Raises EncoderError."""
    files = fetch_weights(encoder, tag)
    if out:
        listed = [{"path": str(f.absolute()), "bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in files]
        write_if_changed(out, json.dumps({"encoder": encoder, "weights": tag, "files": listed}, indent=1) + "\n")
    return files


def look(record: str | Path) -> tuple[list[Path], str]:
    """The files that a record lists, and what is wrong with the first that is not as it says: "" where all are."""
    try:
        listed = json.loads(Path(record).read_text(encoding="utf-8"))["files"]
        files = {Path(entry["path"]): entry["sha256"] for entry in listed}
    except (OSError, ValueError, KeyError, TypeError):
        files = {}
    if not files:
        return [], f"{record} lists no files"
    for path, expected in files.items():
        try:
            if sha256_of(path) != expected:
                return [*files], f"{path} is not the file that was downloaded"
        except OSError as error:
            return [*files], f"{path}: {error.strerror}"
    return [*files], ""


def sha256_of(path: Path) -> str:
    """Of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
