"""What the jobs of the workflow's rules read and which options their commands get, as functions of a job's wildcards.

Snakemake calls them; nothing here needs Snakemake. A job's wildcards are attributes: dataset, collection, shard, key,
folder (of features or segments), text, run (of a model), trained_on, model, table, seed.
"""

import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from extractors import ENCODERS, is_hub_tag
from pipeline.ablations import read_grid, rows_of
from pipeline.config import is_trained, reads_prompts, text_encoders
from pipeline.errors import AVQAError
from pipeline.keys import Key, source_files
from pipeline.paths import DATA_FILES, REPORT_FILES, RUN_FILES, SCORES_FILES, NotMade, Paths, paths_of
from pipeline.storage.contract import MANIFEST


def flags(**values: object) -> str:
    """Command line options of the values that are given."""
    words = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            listed = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, listed)]
    return " ".join(shlex.quote(word) for word in words)


def as_json(values: Mapping) -> str:
    """A configuration for `avqa --config`, in its own order: that of files, models and encoders is seen in results."""
    return json.dumps(values)


class Jobs:
    """The jobs of a checked configuration; `manifests` as for `paths_of`. `wait_for(dataset, key)` is called where a
    manifest is not there yet; `targets()` gives what the user has named to be made."""

    def __init__(
        self,
        configs: Mapping[str, dict],
        manifests: Mapping[str, Key] = MappingProxyType({}),
        wait_for: Callable[[str, str], object] = lambda dataset, key: None,
        targets: Callable[[], Collection[str]] = frozenset,
    ):
        self.configs, self.paths, self._wait_for, self._targets = (
            configs,
            paths_of(configs, manifests),
            wait_for,
            targets,
        )
        self.results = next(iter(configs.values()))["results"]
        self.trained = [name for name, config in configs.items() if is_trained(config)]
        self.grids = {name: read_grid(configs[name]) for name in self.trained}
        self.collections: dict[str, list[Paths]] = {}
        for files in self.paths.values():
            self.collections.setdefault(files.collection.name, []).append(files)
        for method in ("_extraction", "shards", "_models"):
            setattr(self, method, cache(getattr(self, method)))

    @cached_property
    def names(self) -> dict[str, str]:
        """Wildcards whose values are known: a regular expression of each."""
        models = dict.fromkeys(name for config in self.configs.values() for name in config["models"])
        values = {"dataset": self.configs, "trained_on": self.configs, "collection": self.collections}
        values |= {"encoder": ENCODERS, "model": models}
        return {wildcard: "|".join(map(re.escape, listed)) for wildcard, listed in values.items()}

    def made(self, dataset: str) -> Paths:
        """The files of a data set, once its questions and those of what its models are trained on are there."""
        for name in dict.fromkeys((dataset, *self.configs[dataset]["trained_on"])):
            try:
                _ = self.paths[name].manifest
            except NotMade:
                self._wait_for(name, self.paths[name].manifest_key.digits)
        return self.paths[dataset]

    # Questions and shards

    def annotations(self, job: Any) -> list[str]:
        return source_files(self.configs[job.dataset])

    def manifest_before(self, job: Any) -> list[Path]:
        """The manifest of the data set before this one with the same collection: in the configuration's order, so that
        the shards of a collection are the same in every run."""
        names = [files.name for files in self.collections[self.paths[job.dataset].collection.name]]
        before = names[: names.index(job.dataset)][-1:]
        return [self.paths[name].manifest_dir / "manifest.json" for name in before]

    def manifest_flags(self, job: Any) -> str:
        return flags(config=as_json(self.configs[job.dataset]), key=self.paths[job.dataset].manifest_key.text)

    # Segments and features

    def encoders(self, collection: str) -> dict[str, Paths]:
        """The encoders of a collection: the files of a data set that names each."""
        return {name: files for files in self.collections[collection] for name in files.config["encoders"]}

    def inputs(self, collection: str) -> str:
        """The inputs that a collection's encoders read, for the name of a folder."""
        keys = {item.key for name in self.encoders(collection) for item in ENCODERS[name].inputs}
        return "+".join("-".join(Path(key).parts) for key in sorted(keys))

    def wanted(self, collection: str) -> list[Paths]:
        """The data sets of a collection that are made: those named as targets with the ones that their models are
        trained on, or else all."""
        named = {*self._targets()} & self.configs.keys() or {*self.configs}
        named |= {trained_on for name in named for trained_on in self.configs[name]["trained_on"]}
        return [files for files in self.collections[collection] if files.name in named]

    def shards(self, collection: str) -> list[str]:
        """The shards of all data sets of a collection that are made."""
        wanted = [self.made(files.name) for files in self.wanted(collection)]
        return sorted({shard for files in wanted for shard in files.manifest["shards"]})

    def features_of_shard(self, collection: str, shard: str) -> list[Path]:
        """The features of a shard, one file of each encoder that reads it."""
        readers = [files for files in self.wanted(collection) if shard in files.manifest["shards"]]
        encoders = {encoder: files for files in readers for encoder in files.config["encoders"]}
        return [files.features_file(encoder, shard) for encoder, files in encoders.items()]

    def shard_list(self, job: Any) -> list[Path]:
        return [self.collections[job.collection][0].shard_list(job.shard)]

    def read_before(self, job: Any) -> list[Path]:
        """The features that must be there before a shard is decoded: those of the shard `ahead` places before it that
        are not. So the segments of no more than `ahead` shards are on the disk, whatever the scheduler does. (A
        resource of Snakemake's could not count them: a job holds it only while it runs, and segments stay until they
        are read.)"""
        shards = self.shards(job.collection)
        ahead = self.collections[job.collection][0].config["decode"]["ahead"]
        for n in range(shards.index(job.shard) - ahead, -1, -ahead):
            if lacking := [path for path in self.features_of_shard(job.collection, shards[n]) if not path.exists()]:
                return lacking
        return []

    def decode(self, job: Any) -> dict:
        """The settings of decoding."""
        return self.collections[job.collection][0].config["decode"]

    def decode_flags(self, job: Any) -> str:
        files = self.collections[job.collection][0]
        settings = {name: value for name, value in self.decode(job).items() if name not in ("workers", "ahead")}
        return flags(
            collection=job.collection,
            encoder=list(self.encoders(job.collection)),
            failures=files.failures_dir / f"{job.shard}.tsv",
            key=files.decoding.text,
            timing=f"{self.results}/{job.collection}/benchmarks/decode/{job.folder}/{job.shard}.json",
            **settings,
        )

    def weights(self, encoder: str, entry: Mapping) -> list[str]:
        """Weights are downloaded before jobs start: nodes of a cluster have no internet."""
        tag = entry["weights"]
        return [f"{self.results}/weights/{encoder}/{tag}.json"] if is_hub_tag(tag) else []

    def _extraction(self, collection: str, folder: str) -> tuple[str, Paths]:
        """The encoder whose features a folder holds, and the files of a data set that names it."""
        for encoder, files in self.encoders(collection).items():
            if folder in [path.name for path in files.features_folders(encoder)]:
                return encoder, files
        raise AVQAError(f"{self.results}/{collection}/features/{folder}: is not of this configuration")

    def extraction_segments(self, job: Any) -> list[Path]:
        _, files = self._extraction(job.collection, job.folder)
        return [files.segments_file(self.inputs(job.collection), job.shard)]

    def extraction_weights(self, job: Any) -> list[str]:
        encoder, files = self._extraction(job.collection, job.folder)
        return self.weights(encoder, files.config["encoders"][encoder])

    def extraction_flags(self, job: Any) -> str:
        encoder, files = self._extraction(job.collection, job.folder)
        settings = files.config["encoders"][encoder] | {"outputs": job.folder.split("-")[-2].split("+")}
        timing = f"{self.results}/{job.collection}/benchmarks/{job.folder}/{job.shard}.json"
        return flags(encoder=encoder, key=files.encoding(encoder).text, timing=timing, **settings)

    # Texts, and all of it as one file

    def _text_encoder(self, job: Any) -> tuple[str, Paths]:
        files = self.made(job.dataset)
        for encoder in text_encoders(files.config):
            if files.text_file(encoder).stem == job.text:
                return encoder, files
        raise AVQAError(f"{files.folder}/text/{job.text}.h5: is not of this configuration")

    def text_questions(self, job: Any) -> list[Path]:
        return [self.made(job.dataset).manifest_dir / "questions.parquet"]

    def text_weights(self, job: Any) -> list[str]:
        encoder, files = self._text_encoder(job)
        return self.weights(encoder, text_encoders(files.config)[encoder])

    def text_flags(self, job: Any) -> str:
        encoder, files = self._text_encoder(job)
        settings = text_encoders(files.config)[encoder] | {"prompts": reads_prompts(files.config)}
        return flags(encoder=encoder, dataset=job.dataset, key=files.text_key(encoder).text, **settings)

    def index_inputs(self, job: Any) -> list[Path]:
        files = self.made(job.dataset)
        features = [path for encoder in files.config["encoders"] for path in files.features_files(encoder)]
        return [files.manifest_dir / "questions.parquet", *self._shard_lists(files), *features, *files.text_files()]

    def _shard_lists(self, files: Paths) -> list[Path]:
        return [files.shard_list(shard) for shard in files.manifest["shards"]]

    def index_flags(self, job: Any) -> str:
        files = self.made(job.dataset)
        texts = {name: str(files.text_file(name)) for name in text_encoders(files.config)}
        return flags(
            manifest=files.manifest_dir,
            collection=files.collection,
            features=json.dumps(files.features_names()),
            texts=json.dumps(texts),
            key=files.data_key.text,
        )

    def failures_inputs(self, job: Any) -> list[Path]:
        files = self.made(job.dataset)
        return [files.data_dir / "features.h5", *self._shard_lists(files)]

    def failures_flags(self, job: Any) -> str:
        files = self.paths[job.dataset]
        most = files.config["max_failed_fraction"]
        return flags(collection=files.collection, tables=files.failures_dir, max_failed_fraction=most)

    # Models

    def _models(self, dataset: str) -> list[tuple[str, dict | None]]:
        """The models of a data set: name and entry, None where it is the configuration's; then those of the papers'
        tables."""
        models: list[tuple[str, dict | None]] = [(model, None) for model in self.configs[dataset]["models"]]
        for model, table in self.tables(dataset):
            models += [(model, entry) for entry in self.rows(dataset, model, table).values()]
        return models

    def trained_model(self, job: Any) -> tuple[str, dict | None]:
        """Name and entry of the model that a job trains."""
        return self._find(job, lambda files, model, entry: files.run_dir(model, 0, entry))

    def scored_model(self, job: Any) -> tuple[str, dict | None]:
        """Name and entry of the model that a job scores or explains."""
        trained_on = getattr(job, "trained_on", job.dataset)
        return self._find(job, lambda files, model, entry: files.scores_dir(trained_on, model, 0, entry))

    def _find(self, job: Any, folder: Callable[[Paths, str, dict | None], Path]) -> tuple[str, dict | None]:
        files = self.made(job.dataset)
        for model, entry in self._models(job.dataset):
            if folder(files, model, entry).parent.name == job.run:
                return model, entry
        raise AVQAError(f"{files.folder}: {job.run} is not of this configuration")

    def data(self, job: Any) -> list[Path]:
        """What models read, and the table that is not there where too many videos failed."""
        return self._data(job.dataset)

    def _data(self, dataset: str) -> list[Path]:
        files = self.made(dataset)
        return [files.data_dir / "features.h5", files.data_dir / "failures.tsv"]

    def one_model(self, job: Any) -> dict:
        """The configuration of a training."""
        return self.made(job.dataset).one_model(*self.trained_model(job))

    def train_flags(self, job: Any) -> str:
        files, (model, entry), config = self.made(job.dataset), self.trained_model(job), self.one_model(job)
        config = {name: config[name] for name in ("results", "dataset", "models", "train")}
        key = files.run_key(model, entry).text
        return flags(config=as_json(config), data=files.data_dir, model=model, seed=job.seed, key=key)

    def run_dir(self, job: Any) -> Path:
        """The folder of the training whose model is scored."""
        model, entry = self.scored_model(job)
        return self.made(getattr(job, "trained_on", job.dataset)).run_dir(model, job.seed, entry)

    def evaluate_inputs(self, job: Any) -> list[Path]:
        run, data = self.run_dir(job), [*self.data(job), *self._data(getattr(job, "trained_on", job.dataset))]
        return [run / "config.yaml", run / "checkpoint.safetensors", *dict.fromkeys(data)]

    def evaluate_flags(self, job: Any) -> str:
        (model, entry), files = self.scored_model(job), self.made(job.dataset)
        trained_on = getattr(job, "trained_on", job.dataset)
        key, data = files.scores_key(trained_on, model, entry).text, self.made(trained_on).data_dir
        given = flags(questions_of=files.data_dir, training_data=data, key=key)
        return f"{shlex.quote(str(self.run_dir(job)))} {given}"

    def explain_inputs(self, job: Any) -> list[Path]:
        model, entry = self.scored_model(job)
        scores = self.made(job.dataset).scores_dir(job.dataset, model, job.seed, entry) / "scores.json"
        return [scores, *self.evaluate_inputs(job)]

    def report_inputs(self, job: Any) -> list[Path]:
        files = self.made(job.dataset)
        folders = [tested.scores_dir(trained, model, seed) for tested, trained, model, seed in files.scored()]
        explanations = [scores / "explanation.json" for scores, _ in files.explained()]
        scores = [folder / "scores.json" for folder in folders]
        return [*scores, *explanations, *self.data(job), files.data_dir / "missing.tsv"]

    def report_flags(self, job: Any) -> str:
        files = self.made(job.dataset)
        links = {name: str(path) for name, path in files.report_view().items()}
        return flags(config=as_json(files.config), links=json.dumps(links), key=files.report_key.text)

    # The papers' tables

    def tables(self, dataset: str) -> Iterable[tuple[str, str]]:
        """The model and the name of each table."""
        if dataset not in self.grids:
            return []
        pairs = self.grids[dataset][["entry", "table"]].drop_duplicates()
        return list(pairs.itertuples(index=False, name=None))

    def rows(self, dataset: str, model: str, table: str) -> dict[int, dict]:
        """The entry of each row of a table, by the row's number."""
        return rows_of(self.grids[dataset], self.configs[dataset], model, table)

    def table_file(self, dataset: str, model: str, table: str) -> Path:
        return self.made(dataset).table_file(model, table, self.rows(dataset, model, table).values())

    def _row_folders(self, job: Any) -> dict[int, Path]:
        """The folder of the scores of each row, whatever the seed, by the row's number."""
        files, rows = self.made(job.dataset), self.rows(job.dataset, job.model, job.table)
        return {n: files.scores_dir(job.dataset, job.model, 0, entry).parent for n, entry in rows.items()}

    def table_inputs(self, job: Any) -> list[Path]:
        seeds = self.configs[job.dataset]["train"]["seeds"]
        return [folder / f"seed-{n}" / "scores.json" for folder in self._row_folders(job).values() for n in seeds]

    def table_flags(self, job: Any) -> str:
        config = self.configs[job.dataset]
        config = {name: config[name] for name in ("results", "dataset", "encoders", "models", "train")}
        rows = json.dumps({n: str(folder) for n, folder in self._row_folders(job).items()})
        return flags(config=as_json(config), model=job.model, table=job.table, rows=rows)

    # Targets

    def features(self, dataset: str) -> list[Path]:
        """Everything that is made before training. Features are requested by name: Snakemake does not look for what
        features.h5, which is there, was made from."""
        files = self.made(dataset)
        features = [path for encoder in files.config["encoders"] for path in files.features_files(encoder)]
        questions = [files.manifest_dir / name for name in MANIFEST]
        return [*questions, *features, *files.text_files(), *(files.data_dir / name for name in DATA_FILES)]

    def results_of(self, dataset: str) -> list[Path]:
        """What is made of a data set, checkpoints and scores by name for the same reason."""
        files = self.made(dataset)
        runs = [(model, seed) for model in files.config["models"] for seed in files.config["train"]["seeds"]]
        folders = [files.run_dir(*run) for run in runs] if dataset in self.trained else []
        checkpoints = [folder / name for folder in folders for name in RUN_FILES]
        scores = [files.scores_dir(*run) / name for run in files.scored_here() for name in SCORES_FILES]
        explanations = [folder / "explanation.json" for folder, _ in files.explained()]
        page = [files.report_dir / name for name in REPORT_FILES]
        return [*self.features(dataset), *checkpoints, *scores, *explanations, *page]
