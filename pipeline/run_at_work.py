"""What the jobs of a run on other machines take as given: its configuration and the keys of its manifests.

Snakemake plans each of these jobs anew where it runs, hours later. By then the configuration may have been edited and
videos may have changed, and names would follow: the job would not know its own files.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.keys import Key
from pipeline.paths import Paths
from pipeline.storage.atomic import write_if_changed

FILE = ".run.json"  # in the folder of each data set


def write_run(paths: Mapping[str, Paths]) -> None:
    """Note what the run that begins is about."""
    run = {name: {"config": files.config, "manifest": files.manifest_key.parts} for name, files in paths.items()}
    for files in paths.values():
        write_if_changed(files.folder / FILE, json.dumps(run))


def read_run(written: Mapping) -> tuple[dict[str, dict], dict[str, Key]]:
    """The configurations and the keys of manifests of the run at work, by data set; `written` is the configuration as a
    job finds it. Both are empty where no run has noted anything."""
    for name in written.get("datasets", [written.get("dataset")]):
        path = Path(written.get("results", "results"), str(name), FILE)
        if path.exists():
            run = json.loads(path.read_text(encoding="utf-8"))
            configs = {name: noted["config"] for name, noted in run.items()}
            return configs, {name: Key(**noted["manifest"]) for name, noted in run.items()}
    return {}, {}
