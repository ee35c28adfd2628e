"""What faults do to a run of the workflow. Prints a table in Markdown, a row a fault.

    python bench/faults.py [--kills 20] [--seed 0]

On a small data set: kill -9 of the workflow at random moments (every other time only of Snakemake, so that what it
started goes on), of a decoding worker, of an extraction; a full disk in each stage (a tmpfs of its own: needs leave to
mount, else that part is left out); shards truncated or with one bit flipped afterwards; two runs at once. After each
fault no file under its final name may be half-written, and the next run must end in shards, scores and histories equal
to those of an undisturbed run.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import h5py
import pandas as pd
import psutil
import safetensors.torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_workflow import CONFIG, assert_same, command, content, snakemake  # noqa: E402

STAGES = {  # what each stage makes
    "decode": ("clips/segments/*/*.h5", "clips/failures/*/*.tsv"),
    "extract": ("clips/features/*/*.h5",),
    "text": ("tiny/text/*.h5",),
    "index": ("tiny/data/*/features.h5", "tiny/data/*/failures.tsv"),
    "train": ("tiny/runs/*/seed-0/checkpoint.safetensors", "tiny/runs/*/seed-0/history.csv"),
    "evaluate": ("tiny/scores/*/*/seed-0/scores.json", "tiny/scores/*/*/seed-0/predictions.parquet"),
    "report": ("tiny/reports/*/report.html", "tiny/reports/*/summary.txt"),
}


class Trial:
    """A results folder of its own beside the undisturbed one; the clips are made once."""

    def __init__(self, folder: Path, name: str = "trial"):
        self.folder, self.name = folder, f"{name}.yaml"
        self.results = folder / name  # of the collection, clips, and the data set, tiny
        (folder / self.name).write_text(yaml.safe_dump(CONFIG | {"results": name}))

    def start(self) -> subprocess.Popen:
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(
            command(self.folder, config=self.name), cwd=self.folder, **silent, start_new_session=True
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return snakemake(self.folder, *arguments, config=self.name)

    def finish(self, reference: dict) -> str:
        """Run to the end after a fault; says what is wrong, or that nothing is."""
        broken = half_written(self.results)
        if broken:
            return f"HALF-WRITTEN: {', '.join(broken)}"
        last = self.run()
        if last.returncode:
            return f"THE NEXT RUN FAILED: {last.stdout[-1000:]}"
        try:
            assert_same(reference, content(self.results))
        except AssertionError as error:
            return f"DIFFERS: {error}"
        return "equal to an undisturbed run"

    def clear(self) -> None:
        shutil.rmtree(self.results, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        undisturbed = Trial(folder, "undisturbed")
        undisturbed.run("synthesize")
        began = time.monotonic()
        done = undisturbed.run()
        seconds = time.monotonic() - began
        assert done.returncode == 0, done.stdout
        reference = content(undisturbed.results)
        print(f"An undisturbed run takes {seconds:.0f} s and makes {len(reference)} datasets, scores and histories.\n")
        print("| fault | in or at | what was seen at once | after the next run |\n|---|---|---|---|", flush=True)
        trial = Trial(folder)
        faults = (kills(trial, args.kills, seconds, args.seed), processes(trial), disks(trial), pairs(trial))
        for name, where, seen in chain(*faults, damages(trial)):
            print(f"| {name} | {where} | {seen} | {trial.finish(reference)} |", flush=True)


Faults = Iterator[tuple[str, str, str]]


def kills(trial: Trial, count: int, seconds: float, seed: int) -> Faults:
    moments = random.Random(seed)
    for n in range(count):
        trial.clear()
        run, moment = trial.start(), moments.uniform(1, seconds)
        try:
            run.wait(moment)
            seen = f"had ended in {moment:.0f} s"
        except subprocess.TimeoutExpired:
            whole = n % 2 == 0
            os.killpg(run.pid, signal.SIGKILL) if whole else run.kill()
            run.wait()
            seen = "everything killed" if whole else "what it had started went on"
        yield f"kill -9 of the workflow after {moment:.0f} s", stage_of(trial.results), seen


def stage_of(results: Path) -> str:
    """The stage whose log was written last."""
    logs = list(results.glob("*/logs/**/*.log"))
    newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    return str(newest.relative_to(results).with_suffix("")) if newest else "planning"


def processes(trial: Trial) -> Faults:
    """One process of a run, killed as it appears: the run goes on without a decoder, and stops without an encoder."""
    for name, words, moment, goes_on in (
        ("kill -9 of a decoding worker", ["pipeline.media.worker"], 0.05, True),  # it has done its work soon
        ("kill -9 of an extraction", ["pipeline", "extract"], 0.5, False),
        ("kill -9 of a training run", ["pipeline", "train"], 0.5, False),
    ):
        trial.clear()
        run, victim = trial.start(), None
        while victim is None:
            assert run.poll() is None, f"the run ended before {words}"
            for process in psutil.Process(run.pid).children(recursive=True):
                try:
                    line = process.cmdline()
                    if Path(line[0]).name.startswith("python") and set(words) <= set(line):
                        victim = process
                except (psutil.Error, IndexError):
                    continue  # ended while it was looked at
        time.sleep(moment)
        victim.kill()
        code = run.wait()
        assert (code == 0) is goes_on, f"the run ended with {code}"
        yield name, words[-1], "the run went on and ended well" if goes_on else "the run stopped with an error"


def disks(trial: Trial) -> Faults:
    """A finished run on a small disk, made again from each stage on with next to nothing left there."""
    trial.clear()
    mount = trial.results
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "avqa-faults", mount], capture_output=True)
    if mounted.returncode:
        print(f"| full disk | left out: {mounted.stderr.decode().strip()} | | |")
        return
    try:
        done = trial.run("--notemp")
        assert done.returncode == 0, done.stdout
        for n, stage in enumerate(STAGES):
            for pattern in sum(list(STAGES.values())[n:], ()):
                for path in trial.results.glob(pattern):
                    path.unlink()
            with filled(mount / "filler", leave=8192):
                failed = trial.run("--notemp")
            rules = sorted(set(re.findall(r"Error in rule (\w+)", failed.stdout)))
            assert failed.returncode and rules, f"a full disk was not noticed: {failed.stdout}"
            named = "names the full disk" if "the disk is full" in failed.stdout else "DOES NOT NAME THE FULL DISK"
            if n:
                shutil.rmtree(
                    trial.results / "clips" / "segments", ignore_errors=True
                )  # which the undisturbed run has not kept
            yield "full disk", stage, f"stopped in {' and '.join(rules)}, {named}"
            if not n:
                for path in trial.results.glob(STAGES["extract"][0]):
                    path.unlink()
                trial.run("--notemp")
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


@contextmanager
def filled(path: Path, leave: int) -> Iterator[None]:
    """A file that takes all of its disk but `leave` bytes."""
    free = shutil.disk_usage(path.parent).free
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    try:
        yield
    finally:
        path.unlink()


def pairs(trial: Trial) -> Faults:
    trial.clear()
    first = trial.start()
    while not (trial.results / "clips" / ".run.lock").exists():
        time.sleep(0.05)
    second = trial.run()
    seen = re.search(r"another run is at work here", second.stdout)
    assert second.returncode and seen, second.stdout
    assert first.wait() == 0
    yield "two runs at once", "start", "the second was refused, the first ended well"


def damages(trial: Trial) -> Faults:
    """Files of a finished run, damaged; `avqa verify` must name them, and only what hangs on them is made again."""
    features = trial.results / "clips" / "features"
    for name, pattern in (("truncated", "vggish-*/00001-*.h5"), ("one bit flipped", "clip_vit_b32-*/00000-*.h5")):
        (path,) = features.glob(pattern)
        file = str(path.relative_to(features))
        if name == "truncated":
            os.truncate(path, path.stat().st_size // 2)
        else:
            with h5py.File(path) as shard:
                at = shard["clip_vit_b32/cls"].id.get_chunk_info(3).byte_offset + 5
            with open(path, "r+b") as raw:
                raw.seek(at)
                bits = raw.read(1)[0] ^ 16
                raw.seek(at)
                raw.write(bytes([bits]))
        said = subprocess.run(
            [sys.executable, "-m", "pipeline", "verify", trial.name],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=trial.folder,
        )
        assert said.returncode == 1 and file in said.stdout and said.stdout.count(".h5") == 1, said.stdout
        before = {path: path.stat().st_ino for path in features.glob("*/*.h5")}
        path.unlink()  # the message says to move it away
        assert trial.run("features").returncode == 0
        made = [str(p.relative_to(features)) for p, inode in before.items() if p.stat().st_ino != inode]
        assert file in made and {Path(name).name for name in made} == {path.name}, made
        yield f"shard {name}", file, f"verify named it alone; made again: {', '.join(made)}"


def half_written(results: Path) -> list[str]:
    """Files under a final name that cannot be read to their end."""
    broken = []
    for path in sorted(results.rglob("*")):
        lost = path.is_symlink() and not path.exists()  # a link to what a fault has removed
        if not lost and not any(part.startswith(".") for part in path.relative_to(results).parts):
            try:
                read_whole(path)
            except Exception as error:  # whatever a reader makes of half a file
                broken.append(f"{path.relative_to(results)} ({error})")
    return broken


def read_whole(path: Path) -> None:
    match path.suffix:
        case ".h5":
            content(path.parent)
        case ".parquet":
            pd.read_parquet(path)
        case ".safetensors":
            safetensors.torch.load_file(path)
        case ".json":
            json.loads(path.read_text())
        case ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict)
        case ".html":
            assert path.read_text().rstrip().endswith("</html>"), "cut short"
        case ".tsv" | ".csv" | ".txt":
            assert path.read_text().endswith("\n"), "cut short"


if __name__ == "__main__":
    main()
