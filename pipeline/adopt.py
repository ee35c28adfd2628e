"""Results of version 0.2.0 and earlier, whose names had no keys: what their attributes prove to be what a configuration
names gets that name, and need not be made again.

What was there is moved to `former/` in the folder of the data set or collection, and from there to its name; nothing is
removed. Features are adopted where the shard's list, the encoder, its weights and settings, the settings of decoding
and all libraries are the same; trainings where the former digest of all that they depend on is what it would be now.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import yaml

from pipeline.config import is_trained, without_neutral
from pipeline.data.dataset import QuestionData
from pipeline.errors import AVQAError
from pipeline.evaluate import OF_TRAINING
from pipeline.local import make_data, make_manifest
from pipeline.paths import REPORT_FILES, Paths, paths_of
from pipeline.storage.atomic import write_if_changed
from pipeline.storage.hdf5 import open_hdf5
from pipeline.train import data_digest, digest_of, load_data, schedule_of

FORMER = "former"
OF_DATASET = ("questions.parquet", "left_out.parquet", "absent.tsv", "failures.tsv", "missing.tsv")
OF_DATASET += ("features.h5", "verify.json", "text", "models", "trained_on", "ablations", "extracted")
OF_DATASET += (*REPORT_FILES, "config.yaml", "manifest.json")  # which says that something is left, last
OF_COLLECTION = ("features", "failures")


def adopt(configs: Mapping[str, dict]) -> list[str]:
    """Give former results the names of a configuration; returns a line for each file or run that was not adopted, with
    the reason. Raises AVQAError where features were imported, and as `avqa manifest` does."""
    lines: list[str] = []
    for files in paths_of(configs).values():
        _set_aside(files)
        make_manifest(files)
        lines += _adopt_features(files)
    for files in paths_of(configs).values():  # which look for features anew
        lines += _adopt_runs(files)
    return lines


def _set_aside(files: Paths) -> None:
    """Move what an earlier version made to `former`. What is there already stays."""
    if any("imported" in _attributes(path) for path in files.collection.glob("features/*/*.h5")):
        raise AVQAError(f"{files.collection}: its features were imported; there is nothing to adopt")
    for folder, names in ((files.folder, OF_DATASET), (files.collection, OF_COLLECTION)):
        made_before = files.folder / "manifest.json" if folder == files.folder else folder / "shards" / "00000.tsv"
        if made_before.is_symlink() or not made_before.exists():
            continue
        (folder / FORMER).mkdir(exist_ok=True)
        for name in names:
            if (folder / name).exists() and not (folder / FORMER / name).exists():
                os.rename(folder / name, folder / FORMER / name)


def _attributes(path: Path) -> dict:
    with open_hdf5(path, "features") as file:
        return dict(file.attrs)


def _adopt_features(files: Paths) -> Iterator[str]:
    former = files.collection / FORMER
    for encoder in files.config["encoders"]:
        for shard, source in files.manifest["shards"].items():
            path = former / "features" / encoder / f"{shard.split('-')[0]}.h5"
            if not path.exists() or files.features_file(encoder, shard).exists():
                continue
            with open_hdf5(path, "features") as file:
                outputs, attributes = sorted(file[encoder]), dict(file.attrs)
            if differing := list(_differing(files, encoder, source, outputs, attributes)):
                yield f"{path}: not adopted, other {', '.join(differing)}"
                continue
            _move(path, files.folder_of_outputs(encoder, outputs) / f"{shard}.h5")
            for table in (former / "failures").glob(f"{path.stem}.*"):  # of failed videos, and of those without sound
                files.failures_dir.mkdir(parents=True, exist_ok=True)
                shutil.copy(table, files.failures_dir / table.name.replace(path.stem, shard))


def _differing(files: Paths, encoder: str, source: str, outputs: list[str], attributes: Mapping) -> Iterator[str]:
    """What the attributes of features do not have as the configuration asks for it."""
    key, config = files.encoding(encoder).parts, json.loads(attributes["config"])
    wanted, libraries = key["encoder"], {"decoder": key["decoder"], **key["libraries"], **key["encoder"]["libraries"]}
    if wanted["version"] != 1:
        libraries["encoder"] = wanted["version"]
    entry = files.config["encoders"][encoder]
    if entry["weights"] == "random":
        weights = attributes["weights"] == f"random (seed {entry['seed']})"
    else:  # of a file, the key has the digest; of a hub tag, the tag
        weights = wanted["weights"] in (attributes["weights"], attributes["weights_sha256"])
    yield from (
        name
        for name, same in {
            "videos": attributes["source"] == source,
            "weights": weights,
            "dtype": config["dtype"] == wanted["dtype"],
            "decode": without_neutral("decode", config["decode"]) == key["decode"],
            "libraries": json.loads(attributes["libraries"]) == libraries,
            "outputs": set(files.outputs(encoder)) <= {*outputs},
        }.items()
        if not same
    )


def _adopt_runs(files: Paths) -> Iterator[str]:
    former = files.folder / FORMER / "models"
    runs = [(model, seed) for model in files.config["models"] for seed in files.config["train"]["seeds"]]
    there = [(model, seed) for model, seed in runs if (former / model / f"seed-{seed}" / "config.yaml").exists()]
    if not there or not is_trained(files.config):
        return
    if lacking := [str(p) for name in files.config["encoders"] for p in files.features_files(name) if not p.exists()]:
        yield f"{former}: not adopted, since features are lacking that were not adopted, as {lacking[0]}"
        return
    make_data(files)
    for model, seed in there:
        path, out = former / model / f"seed-{seed}", files.run_dir(model, seed)
        described = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        config = files.one_model(model) | {"data": str(files.data_dir)}
        data = load_data(config, model, torch.device("cpu"))
        if described.get("key") != _former_key(config, model, seed, data):
            yield f"{path}: not adopted, other settings, questions or features"
        elif not (out / "config.yaml").exists():
            for name in OF_TRAINING:
                if (path / name).exists() and name != "config.yaml":
                    _move(path / name, out / name)
            placed = {
                "data": os.path.relpath(files.data_dir.resolve(), out.resolve()),
                "data_digest": data_digest(data),
            }
            described |= placed | {"decided_by": files.run_key(model).text, "config": config}
            write_if_changed(out / "config.yaml", yaml.safe_dump(described))


def _former_key(config: dict, model: str, seed: int, data: QuestionData) -> str:
    """What version 0.2.0 wrote into config.yaml of a training that depends on the same."""
    answers = [config["models"][model], schedule_of(config), seed, data.provenance, data.answers, data.vocabulary]
    return digest_of([*answers, data.batch_digest("train", "val")])


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, target)
