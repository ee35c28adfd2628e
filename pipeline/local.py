"""The workflow in this process, stage after stage, for notebooks and small data: the same files under the same names.

Snakemake runs jobs side by side, limits them, tries again and submits to clusters; this does none of that.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from extractors import ENCODERS
from pipeline.config import is_trained, reads_prompts, text_encoders
from pipeline.decode import decode_shard
from pipeline.evaluate import evaluate
from pipeline.explain import explain
from pipeline.extract import extract_shard
from pipeline.index import build_index, gather_failures
from pipeline.manifest import build_manifest, write_lost_list
from pipeline.paths import REPORT_FILES, RUN_FILES, SCORES_FILES, Paths, link_views, paths_of
from pipeline.report import write_report
from pipeline.storage.atomic import link_all
from pipeline.storage.contract import MANIFEST
from pipeline.storage.shard_list import read_shard_list
from pipeline.text import encode_texts
from pipeline.train import train
from pipeline.verify import run as verify

log = logging.getLogger(__name__)

TARGETS = ("manifests", "features", "all")  # each with what is before it


def run_workflow(configs: Mapping[str, dict], target: str = "all") -> dict[str, Paths]:
    """Make what a configuration names and what is not there yet; returns where everything is, by data set.

    `configs` are the checked configurations of all data sets. `target`: manifests, features or all. Raises AVQAError
    as the stages do."""
    if target not in TARGETS:
        raise ValueError(f"target {target!r}: is none of {', '.join(TARGETS)}")
    paths = paths_of(configs)
    for files in paths.values():
        files.check()
        make_manifest(files)
    if target != "manifests":
        for collection in dict.fromkeys(files.collection for files in paths.values()):
            make_features([files for files in paths.values() if files.collection == collection])
        for files in paths.values():
            make_data(files)
    if target == "all":
        for files in paths.values():
            make_models(files)
        for files in paths.values():
            make_scores(files)
        for files in paths.values():
            make_report(files)
    link_views(paths)
    return paths


def made(folder: Path, *names: str) -> bool:
    """Whether all these files are in a folder: each of them is right then."""
    return all((folder / name).exists() for name in names)


def make_manifest(files: Paths) -> None:
    """Questions and shards."""
    if not made(files.manifest_dir, *MANIFEST):
        build_manifest(files.config, files.manifest_dir, files.manifest_key.text)


def make_features(of_collection: Sequence[Paths]) -> None:
    """The features of a collection's shards, with segments that are there only meanwhile."""
    inputs = [item for files in of_collection for name in files.config["encoders"] for item in ENCODERS[name].inputs]
    for shard in sorted({shard for files in of_collection for shard in files.manifest["shards"]}):
        tsv = of_collection[0].shard_list(shard)
        if not tsv.exists():  # lost: the manifest writes the lists of all shards
            write_lost_list(tsv)
        readers = [files for files in of_collection if shard in files.manifest["shards"]]
        reads = {name: files for files in readers for name in files.config["encoders"]}
        due = {name: files for name, files in reads.items() if not files.features_file(name, shard).exists()}
        if not due:
            continue
        first = next(iter(due.values()))
        segments = first.segments_file("local", shard)
        decode = {k: v for k, v in first.config["decode"].items() if k != "ahead"}
        decode_shard(
            read_shard_list(tsv),
            segments,
            inputs=inputs,
            collection=first.collection.name,
            shard=shard,
            failures=first.failures_dir / f"{shard}.tsv",
            key=first.decoding.text,
            **decode,
        )
        for name, files in due.items():
            out, entry = files.features_folder(name) / f"{shard}.h5", files.config["encoders"][name]
            given = entry | {"outputs": sorted(files.outputs(name)), "key": files.encoding(name).text}
            extract_shard(segments, out, encoder=name, **given)
        segments.unlink()


def make_data(files: Paths) -> None:
    """Texts, features.h5 and what failed."""
    for name, entry in text_encoders(files.config).items():
        out = files.text_file(name)
        if not out.exists():
            questions, key = files.manifest_dir / "questions.parquet", files.text_key(name).text
            prompts = reads_prompts(files.config)
            encode_texts(questions, out, encoder=name, dataset=files.name, prompts=prompts, key=key, **entry)
    data = files.data_dir
    if not made(data, "features.h5", *MANIFEST):
        texts = {name: files.text_file(name) for name in text_encoders(files.config)}
        build_index(files.manifest_dir, files.collection, files.features_names(), texts, data, files.data_key.text)
    if not made(data, "failures.tsv", "missing.tsv"):
        gather_failures(data, files.collection, files.failures_dir, files.config["max_failed_fraction"])
    if not (data / "verify.json").exists():
        verify(data / "features.h5", data / "findings.json", show=log.info)
        (data / "findings.json").rename(data / "verify.json")


def make_models(files: Paths) -> None:
    """A training of each model and seed."""
    if not is_trained(files.config):
        return
    for model in files.config["models"]:
        for seed in files.config["train"]["seeds"]:
            out = files.run_dir(model, seed)
            if not made(out, *RUN_FILES):
                config = files.one_model(model) | {"data": str(files.data_dir)}
                train(config, model, seed, out, out / "timing.json", files.run_key(model).text)


def make_scores(files: Paths) -> None:
    """The answers of all models to the test questions, and what those of the first seed depend on."""
    for trained_on, model, seed in files.scored_here():
        out, run = files.scores_dir(trained_on, model, seed), files.siblings[trained_on].run_dir(model, seed)
        if not made(out, *SCORES_FILES):
            evaluate(run, questions_of=files.data_dir, out=out, training_data=files.siblings[trained_on].data_dir)
    for out, run in files.explained():
        if not made(out, "explanation.json"):
            explain(run, questions_of=files.data_dir, out=out, training_data=files.data_dir)


def make_report(files: Paths) -> None:
    """summary.txt and report.html."""
    out = files.report_dir
    if made(out, *REPORT_FILES):
        return
    link_all(out / "files", files.report_view())
    write_report(files.config, out, out / "files")
