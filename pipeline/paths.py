"""Where the files of a configuration are: names that hold their keys, and the names by which people find them.

    results/<collection>/
      videos.parquet                              which video is in which shard, for ever
      shards/<shard>.tsv                          the files of a shard; <shard> is its number and the digest of the list
      features/<encoder>-<outputs>-<key>/<shard>.h5
      failures/<key of decoding>/<shard>.tsv
      retries.json                                how often `avqa retry` asked for which video
    results/<data set>/
      manifests/<key>/                            questions.parquet, manifest.json, absent.tsv
      text/<encoder>-<key>.h5
      data/<key>/                                 what models read: features.h5 and a copy of the questions
      runs/<model>-<key>/seed-<n>/                checkpoints
      scores/<trained on>/<model>-<key>/seed-<n>/ answers to the data set's test questions
      reports/<key>/
    <scratch>/<collection>/segments/<inputs>-<key>/<shard>.h5

What a configuration names is linked from names without keys: `Paths.view`.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import product
from pathlib import Path
from types import MappingProxyType

from pipeline import keys
from pipeline.ablations import read_grid, rows_of
from pipeline.config import collection_dir, dataset_dir, is_trained, of_one_model, text_encoders
from pipeline.errors import AVQAError
from pipeline.storage.atomic import link
from pipeline.storage.contract import MANIFEST

# Names of files, below `results`; those of segments may be below `scratch`.
MANIFEST_DIR = "{dataset}/manifests/{key}"
SHARD_LIST = "{collection}/shards/{shard}.tsv"
SEGMENTS = "{collection}/segments/{folder}/{shard}.h5"
FEATURES = "{collection}/features/{folder}/{shard}.h5"
TEXT = "{dataset}/text/{text}.h5"
DATA = "{dataset}/data/{key}"
RUN = "{dataset}/runs/{run}/seed-{seed}"
SCORES = "{dataset}/scores/{trained_on}/{run}/seed-{seed}"
REPORT = "{dataset}/reports/{key}"
TABLE = "{dataset}/ablations/{model}/{table}-{key}.csv"

DATA_FILES = ("features.h5", *MANIFEST, "failures.tsv", "missing.tsv", "verify.json")
RUN_FILES = ("checkpoint.safetensors", "history.csv", "config.yaml")
SCORES_FILES = ("scores.json", "predictions.parquet")
REPORT_FILES = ("report.html", "summary.txt")

KEY = rf"[0-9a-f]{{{keys.DIGITS}}}"
SHARD = rf"\d{{5}}\d*-{KEY}"  # of Snakemake's wildcards, which know no {5,}


class NotMade(Exception):
    """A file that must be there before further names are known."""

    def __init__(self, path: Path):
        super().__init__(f"{path}: is not made yet")
        self.path = path


def paths_of(
    configs: Mapping[str, dict], manifests: Mapping[str, keys.Key] = MappingProxyType({})
) -> "dict[str, Paths]":
    """The files of each data set of a configuration. `manifests` has keys that are known, whatever videos are now."""
    everything: dict[str, Paths] = {}
    everything.update({name: Paths(configs, name, everything, manifests.get(name)) for name in configs})
    return everything


class Paths:
    """The files of one data set. `configs` are the checked configurations of all data sets, `siblings` their files."""

    def __init__(
        self,
        configs: Mapping[str, dict],
        name: str,
        siblings: "Mapping[str, Paths]",
        manifest: keys.Key | None = None,
    ):
        self.configs, self.config, self.name, self.siblings = configs, configs[name], name, siblings
        self._known_manifest = manifest
        self.folder, self.collection = dataset_dir(self.config), collection_dir(self.config)
        self.results = self.folder.parent

    def _path(self, pattern: str, **wildcards: object) -> Path:
        return self.results / pattern.format(dataset=self.name, collection=self.collection.name, **wildcards)

    # Questions and shards

    @cached_property
    def manifest_key(self) -> keys.Key:
        return self._known_manifest or keys.manifest(self.config)

    @property
    def manifest_dir(self) -> Path:
        return self._path(MANIFEST_DIR, key=self.manifest_key.digits)

    @cached_property
    def manifest(self) -> dict:
        """manifest.json. Raises NotMade."""
        path = self.manifest_dir / "manifest.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotMade(path) from None

    def link_manifest(self) -> None:
        """Lead the names without keys to the manifest."""
        for name in MANIFEST:
            link(self.folder / name, self.manifest_dir / name)

    # Segments, features and texts

    @cached_property
    def decoding(self) -> keys.Key:
        return keys.decoding(self.config)

    def segments_file(self, inputs: str, shard: str) -> Path:
        """`inputs` says what the segments hold: `inputs_of` all encoders of the collection."""
        folder = f"{inputs}-{self.decoding.digits}"
        below = Path(os.path.expandvars(self.config["scratch"]) or self.results)
        return below / SEGMENTS.format(collection=self.collection.name, folder=folder, shard=shard)

    def shard_list(self, shard: str) -> Path:
        """The files of a shard."""
        return self._path(SHARD_LIST, shard=shard)

    @property
    def failures_dir(self) -> Path:
        """The tables of the videos that could not be decoded, one of each shard."""
        return self.collection / "failures" / self.decoding.digits

    def encoding(self, encoder: str) -> keys.Key:
        if encoder not in self._encodings:
            self._encodings[encoder] = keys.encoding(self.config, encoder)
        return self._encodings[encoder]

    @cached_property
    def _encodings(self) -> dict[str, keys.Key]:
        return {}

    def folder_of_outputs(self, encoder: str, outputs: Iterable[str]) -> Path:
        """Where exactly these outputs of an encoder are made."""
        folder = f"{encoder}-{'+'.join(sorted(outputs))}-{self.encoding(encoder).digits}"
        return self._path(FEATURES, folder=folder, shard="").parent

    def features_folder(self, encoder: str) -> Path:
        """Where an encoder's features are made. Other folders may hold them beside more outputs (`features_file`)."""
        return self.features_folders(encoder)[0]

    def features_folders(self, encoder: str) -> list[Path]:
        """The folder of an encoder's features, then those that hold its outputs and more."""
        if encoder not in self._features_folders:
            wanted = set(self.outputs(encoder))
            first = self.folder_of_outputs(encoder, wanted)
            found = sorted(first.parent.glob(f"{encoder}-*-{self.encoding(encoder).digits}"))
            more = [path for path in found if path != first and wanted <= set(path.name.split("-")[-2].split("+"))]
            self._features_folders[encoder] = [first, *more]
        return self._features_folders[encoder]

    @cached_property
    def _features_folders(self) -> dict[str, list[Path]]:
        return {}

    def features_file(self, encoder: str, shard: str) -> Path:
        """The features of a shard: where they are, or where they will be made."""
        first, *others = (folder / f"{shard}.h5" for folder in self.features_folders(encoder))
        if not others:
            return first
        return next((path for path in (first, *others) if path.exists()), first)

    def features_files(self, encoder: str) -> list[Path]:
        """The features of each of the data set's shards."""
        return [self.features_file(encoder, shard) for shard in self.manifest["shards"]]

    def outputs(self, encoder: str) -> list[str]:
        """The outputs of an encoder that the configuration keeps."""
        return keys.outputs(self.config, encoder)

    def features_names(self) -> dict[str, list[str]]:
        """The names of the folders that hold each encoder/output."""
        return {
            f"{encoder}/{output}": [path.name for path in self.features_folders(encoder)]
            for encoder in self.config["encoders"]
            for output in self.outputs(encoder)
        }

    def text_key(self, encoder: str) -> keys.Key:
        return keys.texts(self.config, encoder, self.manifest)

    def text_file(self, encoder: str) -> Path:
        return self._path(TEXT, text=f"{encoder}-{self.text_key(encoder).digits}")

    def text_files(self) -> list[Path]:
        return [self.text_file(encoder) for encoder in text_encoders(self.config)]

    @cached_property
    def data_key(self) -> keys.Key:
        return keys.data(self.config, self.manifest)

    @property
    def data_dir(self) -> Path:
        """features.h5 and the questions, which models read."""
        return self._path(DATA, key=self.data_key.digits)

    # Models

    def run_key(self, model: str, entry: dict | None = None) -> keys.Key:
        """Of a model of the configuration, or of its entry changed to `entry`."""
        return keys.run(self.one_model(model, entry), self.manifest)

    def run_dir(self, model: str, seed: int | str, entry: dict | None = None) -> Path:
        """The checkpoint and history of a training."""
        return self._path(RUN, run=f"{model}-{self.run_key(model, entry).digits}", seed=seed)

    def scores_key(self, trained_on: str, model: str, entry: dict | None = None) -> keys.Key:
        """Of the answers to this data set's test questions by a model that was trained on `trained_on`."""
        trained = self.siblings[trained_on].run_key(model, entry)
        return keys.scores(self.one_model(model, entry), trained, self.manifest)

    def scores_dir(self, trained_on: str, model: str, seed: int | str, entry: dict | None = None) -> Path:
        """Scores, predictions and what they depend on, with links to the run's files."""
        key = self.scores_key(trained_on, model, entry).digits
        return self._path(SCORES, trained_on=trained_on, run=f"{model}-{key}", seed=seed)

    def one_model(self, model: str, entry: dict | None = None) -> dict:
        """The configuration of a run of a model, or of its entry changed to `entry`."""
        config = self.config if entry is None else self.config | {"models": {model: entry}}
        return of_one_model(config, model)

    def scored(self) -> "Iterator[tuple[Paths, str, str, int]]":
        """Everything in the data set's report: the files of the data set that is tested on, the name of the one that
        is trained on, model, seed. Where models of two data sets are tested on both, those on the other one as well."""
        trained_on = self.config["trained_on"]
        others = [name for name in trained_on if self.name in self.configs[name]["trained_on"] and name != self.name]
        names = product([self.name, *others], trained_on, self.config["models"], self.config["train"]["seeds"])
        for tested_on, trained, model, seed in names:
            yield self.siblings[tested_on], trained, model, seed

    def scored_here(self) -> Iterator[tuple[str, str, int]]:
        """Of `scored`, what is scored on this data set."""
        for tested, trained_on, model, seed in self.scored():
            if tested is self:
                yield trained_on, model, seed

    def explained(self) -> list[tuple[Path, Path]]:
        """The folder of scores and that of the run of each model that is explained: the first seed of those that are
        trained on the data set."""
        seed = self.config["train"]["seeds"][0]
        models = self.config["models"] if is_trained(self.config) else ()
        return [(self.scores_dir(self.name, model, seed), self.run_dir(model, seed)) for model in models]

    @cached_property
    def report_key(self) -> keys.Key:
        tested = [files.scores_key(trained, model).digest for files, trained, model, _ in self.scored()]
        return keys.report(self.config, self.data_key, dict.fromkeys(tested))

    @property
    def report_dir(self) -> Path:
        """report.html and summary.txt."""
        return self._path(REPORT, key=self.report_key.digits)

    def report_view(self) -> dict[str, Path]:
        """What the report reads, by the names that it has below `results` in the folder that the report is made in."""
        names = {name: path for name, path in self.view().items() if "/report." not in name and "/summary." not in name}
        for name in self.config["trained_on"]:
            names |= {f"{name}/{file}": self.siblings[name].manifest_dir / file for file in MANIFEST}
        names[self.collection.name] = self.collection
        return names | {f"{self.name}/benchmarks": self.folder / "benchmarks"}

    def table_file(self, model: str, table: str, entries: Iterable[dict]) -> Path:
        """One table of a model's paper; `entries` are the model's as its rows have it."""
        rows = [self.scores_key(self.name, model, entry).digest for entry in entries]
        key = keys.Key(rows=rows, seeds=self.config["train"]["seeds"])
        return self._path(TABLE, model=model, table=table, key=key.digits)

    def remove_read_segments(self, inputs: str, encoders: Iterable[str]) -> None:
        """Remove the segments that all encoders have read and that an interrupted run could not remove."""
        for path in self.segments_file(inputs, "").parent.glob("*.h5"):
            if all(self.features_file(encoder, path.stem).exists() for encoder in encoders):
                path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise AVQAError where the data set's folder holds results of a version whose names had no keys."""
        for name in ("features.h5", "manifest.json"):
            path = self.folder / name
            if path.exists() and not path.is_symlink():
                raise AVQAError(
                    f"{path}: was imported, or made by an earlier version of this software: its name does not say what "
                    "decided it. `avqa adopt --config FILE` takes over what an earlier version made; for imported "
                    "features, give another folder as results in the configuration"
                )

    def everything(self) -> Iterator[Path]:
        """What the configuration names of the data set and of its collection. Raises NotMade."""
        shards = list(self.manifest["shards"])
        yield self.manifest_dir
        yield from (self.shard_list(shard) for shard in shards)
        yield from (self.failures_dir / f"{shard}.tsv" for shard in shards)
        for encoder in self.config["encoders"]:
            yield from self.features_files(encoder)
        yield from self.text_files()
        yield self.data_dir
        for tested, trained_on, model, seed in self.scored():
            yield from (tested.scores_dir(trained_on, model, seed), self.siblings[trained_on].run_dir(model, seed))
        yield self.report_dir
        yield from self.tables()

    def tables(self) -> Iterator[Path]:
        """The tables of the models' papers, and the runs of their rows."""
        if not is_trained(self.config):
            return
        grid = read_grid(self.config)
        for model, table in grid[["entry", "table"]].drop_duplicates().itertuples(index=False, name=None):
            rows = rows_of(grid, self.config, model, table)
            yield self.table_file(model, table, rows.values())
            for entry in rows.values():
                for seed in self.config["train"]["seeds"]:
                    yield from (self.scores_dir(self.name, model, seed, entry), self.run_dir(model, seed, entry))

    def view(self) -> dict[str, Path]:
        """The names without keys, below `results`, and what they lead to; as far as names are known yet."""
        names: dict[str, Path] = {}
        with suppress(NotMade):
            names |= {f"{self.name}/{name}": self.manifest_dir / name for name in MANIFEST}
            made = [name for name in DATA_FILES if name not in MANIFEST]
            names |= {f"{self.name}/{name}": self.data_dir / name for name in made}
            for tested, trained_on, model, seed in self.scored():
                part = f"models/{model}/seed-{seed}"
                part = part if trained_on == tested.name else f"trained_on/{trained_on}/{part}"
                scores = tested.scores_dir(trained_on, model, seed)
                run = self.siblings[trained_on].run_dir(model, seed)
                names[f"{tested.name}/{part}"] = scores if scores.exists() or trained_on != tested.name else run
            names |= {f"{self.name}/{name}": self.report_dir / name for name in REPORT_FILES}
            for path in self.tables() if "ablations" in self.config else ():
                if path.suffix == ".csv":
                    names[f"{self.name}/ablations/{path.parent.name}/{path.stem[: -keys.DIGITS - 1]}.csv"] = path
        return names


def link_views(paths: Mapping[str, Paths], remove: bool = True) -> None:
    """Lead the names without keys to what a configuration names, as far as it is there. Other links, to what earlier
    configurations named, are removed, unless the run has just begun."""
    names: dict[str, Path] = {}
    for files in paths.values():
        names |= files.view()
    results = next(iter(paths.values())).results
    there = {name: target for name, target in names.items() if target.exists()}
    for name, target in there.items():
        link(results / name, target)
    if not remove:
        return
    links = [results / name for name in names]
    for files in paths.values():
        links += [path for part in ("models", "trained_on") for path in (files.folder / part).rglob("seed-*")]
    for path in links:
        if path.is_symlink() and str(path.relative_to(results)) not in there:
            path.unlink()
