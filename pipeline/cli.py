"""The `avqa` command: each stage of the workflow by hand.

Stages import what they need when they run, so that those without a network do not wait for PyTorch.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from extractors import ENCODERS, EncoderError
from pipeline.config import (
    check_config,
    dataset_dir,
    load_config,
    load_configs,
)
from pipeline.data.layouts import LAYOUTS
from pipeline.errors import AVQAError, forbidden, out_of_memory, out_of_space
from pipeline.gpu import claim
from pipeline.models import MODELS, model_class
from pipeline.paths import paths_of
from pipeline.storage.atomic import check_writable, link_all, write_if_changed
from pipeline.storage.shard_list import list_files, read_shard_list

# Commands whose --out, or DIR itself, is a folder.
OUTPUT_FOLDERS = ("synthesize", "train", "evaluate", "explain", "convert-checkpoint", "export")
OUTPUT_FOLDERS += ("manifest", "index", "failures", "report")
OUTPUT_FILES = ("failures", "timing", "json", "plot")  # and --out of other commands
EXPORTS = ("webdataset", "datasets", "safetensors")  # rows of pipeline/data/containers.py

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; an error that a user can mend is printed without a traceback and ends in status 1."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        _check_outputs(arguments)
        arguments.run(arguments)
    except (AVQAError, EncoderError) as error:
        print(f"avqa {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"avqa {arguments.command}: stopped; run it again to go on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if out_of_memory(error):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(
                f"avqa {arguments.command}: too little memory ({reason}); set a smaller batch_size, end other programs "
                "on this GPU or machine, or use a larger one: what is finished is kept",
                file=sys.stderr,
            )
            return 1
        if forbidden(error):
            print(
                f"avqa {arguments.command}: {error}: this may not be read or written; change its permissions, or name "
                "another file or folder",
                file=sys.stderr,
            )
            return 1
        if not out_of_space(error):
            raise
        print(
            f"avqa {arguments.command}: the disk is full ({error}); free some space and run again: "
            "what is finished is kept",
            file=sys.stderr,
        )
        return 1
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Before the work, which may take hours, and not after it: that what it ends in can be written."""
    paths = {name: Path(getattr(args, name)) for name in ("out", *OUTPUT_FILES) if getattr(args, name, None)}
    if args.command in OUTPUT_FOLDERS and (folder := paths.pop("out", None) or getattr(args, "folder", None)):
        check_writable(folder)
    for path in paths.values():
        if path.is_dir():
            raise AVQAError(f"{path}: is a folder; name a file in it")
        check_writable(path.parent)


def _config(args: argparse.Namespace, *sections: str) -> dict:
    return load_config(args.config, *sections, dataset=args.dataset)


def synthesize(args: argparse.Namespace) -> None:
    from pipeline.synthesize import synthesize

    synthesize(args.out, clips=args.clips, seconds=args.seconds, seed=args.seed)


def manifest(args: argparse.Namespace) -> None:
    from pipeline.manifest import build_manifest

    config = _config(args, "dataset", "videos", "annotations")
    (files,) = paths_of({config["dataset"]: config}).values()
    build_manifest(config, args.out or files.manifest_dir, args.key or files.manifest_key.text)
    if not args.out:
        files.link_manifest()


def shard_list(args: argparse.Namespace) -> None:
    from pipeline.manifest import write_lost_list

    write_lost_list(args.out)


def decode(args: argparse.Namespace) -> None:
    from pipeline.decode import decode_shard

    if args.backend == "nvdec":
        claim()
    if [Path(name).suffix for name in args.videos] == [".tsv"]:
        videos = read_shard_list(args.videos[0])
        shard = Path(args.videos[0]).stem
    else:
        videos, shard = list_files(args.videos), ""
    decode_shard(
        videos,
        args.out,
        inputs=[item for name in args.encoder for item in ENCODERS[name].inputs],
        collection=args.collection,
        shard=shard,
        segments=args.segments,
        backend=args.backend,
        pad=args.pad,
        frame_at=args.frame_at,
        frame_selection=args.frame_selection,
        selective=args.selective,
        workers=args.workers,
        failures=args.failures or f"{args.out}.failures.tsv",
        timing=args.timing,
        key=args.key,
    )


def extract(args: argparse.Namespace) -> None:
    from pipeline.extract import extract_shard

    claim()
    extract_shard(args.segments, args.out, outputs=args.outputs, timing=args.timing, key=args.key, **_weights(args))


def text(args: argparse.Namespace) -> None:
    from pipeline.text import encode_texts

    claim()
    given = {name: getattr(args, name) for name in ("sentence", "drop_last_character", "prompts", "key")}
    encode_texts(args.questions, args.out, dataset=args.dataset, **given, **_weights(args))


def _weights(args: argparse.Namespace) -> dict:
    return {name: getattr(args, name) for name in ("encoder", "weights", "sha256", "seed", "dtype", "batch_size")}


def index(args: argparse.Namespace) -> None:
    from pipeline.index import build_index

    features, texts = json.loads(args.features), json.loads(args.texts)
    build_index(args.manifest, args.collection, features, texts, args.out, args.key)


def failures(args: argparse.Namespace) -> None:
    from pipeline.index import gather_failures

    gather_failures(args.folder, args.collection, args.tables, args.max_failed_fraction)


def train(args: argparse.Namespace) -> None:
    from pipeline.ablations import changed_entry
    from pipeline.train import train

    claim()
    config = _config(args, "dataset", "models", "train")
    name = args.model or next(iter(config["models"]))
    if args.settings:
        config["models"][name] = changed_entry(config["models"][name], json.loads(args.settings))
        check_config(config, "--settings", ("dataset", "models", "train"))
    if args.workers is not None:
        config["train"]["workers"] = args.workers
    if args.data:
        config["data"] = args.data
    train(config, name, args.seed, args.out, args.timing, args.key)


def evaluate(args: argparse.Namespace) -> None:
    from pipeline.accuracy import format_scores
    from pipeline.checkpoints import evaluate_released
    from pipeline.evaluate import evaluate, evaluate_by_second

    claim()
    if args.checkpoint:
        config, written = _released(args)
        folder = args.folder or dataset_dir(config) / "released" / args.model
        print(format_scores(evaluate_released(config, written, args.model, args.checkpoint, folder, args.split)))
        return
    if not args.folder:
        raise AVQAError("give the folder that `avqa train` wrote, or --checkpoint FILE")
    print(format_scores(evaluate(args.folder, args.split, args.questions_of, args.out, args.training_data)))
    if args.steps:
        print(evaluate_by_second(args.folder, args.split, args.questions_of, args.out).to_string(index=False))


def convert_checkpoint(args: argparse.Namespace) -> None:
    from pipeline.checkpoints import take_over, write_released

    if Path(args.source).is_dir():
        write_released(args.source, args.out)
        return
    config, written = _released(args)
    take_over(config, written, args.model, args.source, args.out)


def _released(args: argparse.Namespace) -> tuple[dict, dict]:
    """The configuration for a published checkpoint, and the model's entry as it is written."""
    from pipeline.checkpoints import written_entry

    if not args.config or not args.model:
        raise AVQAError("a published checkpoint needs --config FILE and --model NAME, which say what features it reads")
    config = _config(args, "dataset", "models")
    if args.model not in config["models"]:
        raise AVQAError(f"--model: {args.config} has no {args.model}; it has {', '.join(config['models'])}")
    return config, written_entry(args.config, config["dataset"], args.model)


def model(args: argparse.Namespace) -> None:
    from pipeline.models.complexity import as_text

    try:
        settings = json.loads(args.settings)
        model = model_class(args.architecture).in_paper_setting(args.seconds, args.answers, **settings)
    except (TypeError, ValueError) as error:
        raise AVQAError(f"--settings: {error}") from error
    print(as_text(model))


def reproduction(args: argparse.Namespace) -> None:
    from pipeline.reproduction import reproduction

    text = reproduction()
    if args.out:
        write_if_changed(args.out, text)
    print(text)


def report(args: argparse.Namespace) -> None:
    from pipeline.report import write_report

    sections = ("dataset", "videos", "encoders", "models", "decode", "train")
    config = _config(args, *sections)
    if not args.out:
        print(write_report(config))
        return
    link_all(Path(args.out, "files"), json.loads(args.links))
    print(write_report(config, args.out, Path(args.out, "files")))


def explain(args: argparse.Namespace) -> None:
    from pipeline.evaluate import suffix
    from pipeline.explain import explain

    claim()
    explanation = explain(args.folder, args.split, args.questions_of, args.out, args.training_data)
    for name, reason in explanation["not_offered"].items():
        log.info(f"{name}: {reason}")
    written = Path(args.out or args.folder) / f"explanation{suffix(args.split)}.json"
    log.info(f"{explanation['questions']} questions: {written}")


def results(args: argparse.Namespace) -> None:
    from pipeline.results import format_results, format_survey

    if args.survey:
        print(format_survey(args.method))
        return
    config = load_config(args.config, "dataset", "models", "train", dataset=args.ours) if args.config else None
    print(format_results(args.dataset, args.method, args.source, args.sort, config))


def look(args: argparse.Namespace) -> None:
    from pipeline.look import look

    print(look(args.video, _config(args) if args.config else None, args.out))


def runs(args: argparse.Namespace) -> None:
    from pipeline.runs import list_runs

    print(list_runs(_config(args, "dataset", "videos")).to_string(index=False))


def adopt(args: argparse.Namespace) -> None:
    from pipeline.adopt import adopt

    lines = adopt(load_configs(args.config))
    print("\n".join([*lines, f"{len(lines)} files and runs were not adopted; what was there before is in former/"]))


def clean(args: argparse.Namespace) -> None:
    from pipeline.clean import remove, unnamed

    found = unnamed([paths_of(load_configs(path)) for path in args.configs])
    for path, size in found:
        print(f"{size / 1e6:12,.1f} MB  {path}")
    total = f"{sum(size for _, size in found) / 1e9:,.2f} GB"
    if args.yes:
        remove([path for path, _ in found])
        print(f"removed {len(found)} files and folders, {total}")
        return
    print(f"{len(found)} files and folders that no given configuration names, {total}; --yes removes them")


def retry(args: argparse.Namespace) -> None:
    from pipeline.retry import retry

    for collection, videos in retry(paths_of(load_configs(args.config))).items():
        print("\n".join(videos))
        print(f"{collection}: {len(videos)} videos failed; the next run decodes them again")


def ablations(args: argparse.Namespace) -> None:
    from pipeline.ablations import write_table

    config = _config(args, "dataset", "models", "train")
    rows = {int(row): Path(folder) for row, folder in json.loads(args.rows).items()}
    print(write_table(config, args.model or next(iter(config["models"])), args.table, rows, args.out))


def verify(args: argparse.Namespace) -> None:
    from pipeline.verify import run

    run(args.path, args.json, show=print)


def compare(args: argparse.Namespace) -> None:
    from pipeline.compare import compare, plot

    result = compare(args.a, args.b, args.output)
    print(result)
    if args.plot:
        plot(result, args.plot)


def provenance(args: argparse.Namespace) -> None:
    from pipeline.provenance import provenance

    print(provenance(args.file))


def export(args: argparse.Namespace) -> None:
    from pipeline.export import export

    export(args.folder, args.layout, args.out, dtype=args.dtype, force=args.force)


def import_(args: argparse.Namespace) -> None:
    from pipeline.import_ import import_features
    from pipeline.import_source import layout_of

    if args.layout and len(args.folder) > 1:
        raise AVQAError("--layout: takes the one folder that holds the layout's folders")
    layout = LAYOUTS[args.layout] if args.layout else layout_of(args.folder)
    root, name = (args.folder[0], args.layout) if args.layout else (".", "folders")
    import_features(root, layout, name, _config(args, "dataset", "videos", "annotations"))


def plan(args: argparse.Namespace) -> None:
    from pipeline.plan import plan

    config = _config(args, "dataset", "videos", "annotations", "encoders", "text", "models")
    print(plan(config, args.calibrate))


def doctor(args: argparse.Namespace) -> None:
    from pipeline.doctor import examine, format_findings

    findings = examine(list(load_configs(args.config, "dataset", "videos", "encoders", "text").values()))
    print(format_findings(findings))
    if missing := [item.name for item in findings if not item.well]:
        raise AVQAError(f"missing: {', '.join(missing)}")


def weights(args: argparse.Namespace) -> None:
    from pipeline.weights import fetch

    print("\n".join(map(str, fetch(args.encoder, args.weights, args.out))))


def build_parser() -> argparse.ArgumentParser:
    """The command line: a subcommand a stage."""
    parser = argparse.ArgumentParser(prog="avqa", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            run.__name__.rstrip("_").replace("_", "-"),
            help=help,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            description=help,
        )
        sub.set_defaults(run=run)
        return sub

    def add_config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--config", required=True)
        sub.add_argument("--dataset", help="which data set of a configuration with several (default: the first)")

    def add_weights(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--encoder", required=True, choices=list(ENCODERS))
        sub.add_argument("--weights", required=True, help="hub tag, local .safetensors or .pt file, or random")
        sub.add_argument("--sha256", help="expected sha256 of the weights file")
        sub.add_argument("--seed", type=int, default=0, help="seed of random weights")
        sub.add_argument("--dtype", choices=["bfloat16", "float32"], help="(default: the encoder's)")
        sub.add_argument("--batch-size", type=int, help="seconds or texts that are encoded together")
        sub.add_argument("--out", required=True)

    def add_timing(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--timing", help="JSON file for the seconds that each part of the job took")

    sub = command(synthesize, "Make the demo's clips and questions.")
    sub.add_argument("--out", required=True, help="folder")
    sub.add_argument("--clips", type=int, required=True)
    sub.add_argument("--seconds", type=int, required=True)
    sub.add_argument("--seed", type=int, default=0)

    def add_key(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--key", default="", help="text of what decides the file, which is recorded in it")

    sub = command(manifest, "Turn annotations and a folder of videos into tables and shards.")
    add_config(sub)
    sub.add_argument("--out", help="folder (default: the one that the workflow uses)")
    add_key(sub)

    sub = command(shard_list, "Write the lost list of a shard again, from videos.parquet of its collection.")
    sub.add_argument("out", metavar="SHARD.tsv")

    sub = command(decode, "Cut videos into one-second segments of frames and audio.")
    sub.add_argument("videos", nargs="+", metavar="VIDEO", help="video files, or one shard's .tsv")
    sub.add_argument("--out", required=True)
    sub.add_argument(
        "--encoder",
        nargs="+",
        choices=list(ENCODERS),
        default=["clip_vit_l14", "vggish"],
        help="encoders whose inputs are written",
    )
    sub.add_argument("--backend", choices=["pyav", "decord", "nvdec"], default="pyav")
    sub.add_argument("--segments", type=int, default=60, help="seconds per video")
    sub.add_argument("--pad", choices=["repeat", "zero"], default="repeat")
    sub.add_argument("--frame-at", type=float, default=0.5, help="position of a frame in its part of a second")
    sub.add_argument("--frame-selection", choices=["exact", "reference", "keyframe"], default="exact")
    sub.add_argument(
        "--selective",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="decode only the packets that the wanted frames need; the frames are the same",
    )
    sub.add_argument("--workers", type=int, default=2, help="videos decoded at the same time")
    sub.add_argument("--failures", help="table of the videos that cannot be decoded (default: OUT.failures.tsv)")
    sub.add_argument("--collection", default="")
    add_key(sub)
    add_timing(sub)

    sub = command(extract, "Run a frozen encoder over a segments file.")
    sub.add_argument("segments", metavar="SEGMENTS.h5")
    add_weights(sub)
    sub.add_argument("--outputs", nargs="+", help="outputs to keep (default: all)")
    add_key(sub)
    add_timing(sub)

    sub = command(text, "Encode each different question once.")
    sub.add_argument("questions", metavar="QUESTIONS", help=".parquet of the manifest, or a text file, one per line")
    add_weights(sub)
    sub.add_argument("--sentence", choices=["eot", "first", "mean"], default="eot")
    sub.add_argument(
        "--drop-last-character",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="encode questions without their last character, the question mark, as some releases do",
    )
    sub.add_argument(
        "--prompts",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="encode the questions as statements too, for models that read them (TSPM)",
    )
    sub.add_argument("--dataset", default="")
    add_key(sub)

    sub = command(index, "Join a data set's shards into features.h5.")
    sub.add_argument("--manifest", required=True, metavar="DIR", help="what `avqa manifest` wrote")
    sub.add_argument("--collection", required=True, metavar="DIR", help="holds shards and features")
    sub.add_argument("--features", required=True, help="JSON: folders of each encoder/output below features")
    sub.add_argument("--texts", required=True, help="JSON: the file of each text encoder")
    sub.add_argument("--out", required=True, metavar="DIR")
    add_key(sub)

    sub = command(failures, "List the videos that could not be decoded; too many are an error.")
    sub.add_argument("folder", metavar="DIR", help="what `avqa index` wrote")
    sub.add_argument("--collection", required=True, metavar="DIR", help="holds shards and features")
    sub.add_argument("--tables", required=True, metavar="DIR", help="the tables that `avqa decode` wrote")
    sub.add_argument("--max-failed-fraction", type=float, required=True, help="share of the videos that may fail")

    sub = command(train, "Train a model on a data set's features.")
    add_config(sub)
    sub.add_argument("--model", help="name under models: in the configuration (default: the first)")
    sub.add_argument("--settings", help='JSON of the model\'s settings to change, such as {"inputs": ["question"]}')
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--workers", type=int, help="batches read ahead at the same time (default: the configuration's)")
    sub.add_argument("--data", metavar="DIR", help="what `avqa index` wrote (default: the data set's folder)")
    sub.add_argument("--out", required=True)
    add_key(sub)
    add_timing(sub)

    def add_questions_of(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--questions-of", help="folder with features.h5 and the questions that are asked in place")
        sub.add_argument(
            "--training-data", help="folder with the same questions and features as those that the model was trained on"
        )
        sub.add_argument("--out", help="folder for what is written (default: DIR)")

    sub = command(evaluate, "Score a trained model, or a published checkpoint.")
    sub.add_argument(
        "folder", metavar="DIR", nargs="?", help="what `avqa train` wrote; of a checkpoint, where to write"
    )
    sub.add_argument("--checkpoint", help="published weights, .safetensors or .pt")
    sub.add_argument("--model", help="of the checkpoint: name under models: in the configuration")
    sub.add_argument("--config", help="of the checkpoint: configuration with the data set and the features")
    sub.add_argument("--dataset", help="of the checkpoint: which data set of a configuration with several")
    sub.add_argument("--split", default="test")
    add_questions_of(sub)
    add_key(sub)
    sub.add_argument("--steps", action="store_true", help="accuracy after each second as well, if the model offers it")

    sub = command(
        convert_checkpoint,
        "Turn what `avqa train` wrote into a checkpoint of the model's release, or such a one into it.",
    )
    sub.add_argument(
        "source", metavar="DIR|FILE", help="what `avqa train` wrote, or published weights (.safetensors, .pt)"
    )
    sub.add_argument("--out", required=True, help="folder")
    sub.add_argument("--model", help="of published weights: name under models: in the configuration")
    sub.add_argument("--config", help="of published weights: configuration with the data set and the features")
    sub.add_argument("--dataset", help="of published weights: which data set of a configuration with several")

    sub = command(model, "Parameters and FLOPs of a model, by part.")
    sub.add_argument("architecture", choices=list(MODELS))
    sub.add_argument("--seconds", type=int, help="of the video (default: as in the model's paper)")
    sub.add_argument("--answers", type=int, default=42, help="to choose from")
    sub.add_argument("--settings", default="{}", help='JSON of the model\'s settings, such as {"width": 256}')

    sub = command(reproduction, "Compare the papers' numbers that need no training with ours.")
    sub.add_argument("--out", type=Path, help="Markdown file to write, such as manifests/reproduction.md")

    sub = command(explain, "Examine what a trained model's answers depend on: modalities, seconds, words, features.")
    sub.add_argument("folder", metavar="DIR", help="what `avqa train` wrote")
    sub.add_argument("--split", default="test")
    add_questions_of(sub)
    add_key(sub)

    sub = command(report, "Write a data set's results as text and as report.html.")
    add_config(sub)
    sub.add_argument("--out", help="folder (default: the data set's)")
    sub.add_argument("--links", default="{}", help="JSON: what is read, by its name in the folder of results")
    add_key(sub)

    sub = command(results, "Print the papers' results, best first, and with --config ours beside them.")
    sub.add_argument("--dataset", default="MUSIC-AVQA", help="MUSIC-AVQA, MUSIC-AVQA-R, MUSIC-AVQA-v2.0, AVQA, …")
    sub.add_argument("--method", help="only methods with this in their name")
    sub.add_argument("--source", help="only results from papers or tables with this in their name, such as Table XII")
    sub.add_argument("--sort", default="overall", metavar="COLUMN", help="such as Audio/Counting")
    sub.add_argument("--config", help="configuration whose models' scores are added")
    sub.add_argument("--ours", metavar="NAME", help="which of the configuration's data sets, if it has several")
    sub.add_argument("--survey", action="store_true", help="print the survey's methods and data sets instead")

    sub = command(look, "Write a page with what the pipeline reads of a video: frames, waveform, log-mel spectrogram.")
    sub.add_argument("video", metavar="VIDEO_ID|FILE")
    sub.add_argument("--config", help="of the video's data set; needed for a video id")
    sub.add_argument("--dataset", help="which of the configuration's data sets, if it has several")
    sub.add_argument("--out", help="page to write (default: VIDEO_ID.html)")

    sub = command(runs, "List the trainings that are there: what differs, scores, when, how long.")
    add_config(sub)

    sub = command(adopt, "Give results of version 0.2.0 the names of a configuration, where they are what it names.")
    sub.add_argument("--config", required=True, metavar="FILE")

    sub = command(clean, "List what none of the given configurations names any more, with sizes.")
    sub.add_argument("configs", metavar="CONFIG.yaml", nargs="+", help="all configurations whose results stay")
    sub.add_argument("--yes", action="store_true", help="remove what is listed")

    sub = command(retry, "Have videos that failed for a reason outside their files decoded again by the next run.")
    sub.add_argument("--config", required=True)

    sub = command(ablations, "Put the scores of one table of a model's paper beside the paper's.")
    add_config(sub)
    sub.add_argument("--model", help="name under models: in the configuration (default: the first)")
    sub.add_argument("--table", required=True, help="a name in manifests/<architecture>_tables.csv")
    sub.add_argument("--rows", required=True, help="JSON: the folder of the scores of each row")
    sub.add_argument("--out", required=True, metavar="FILE.csv")

    sub = command(plan, "Jobs, hours, temporary disk and bytes that a data set will take.")
    add_config(sub)
    sub.add_argument("--calibrate", action=argparse.BooleanOptionalAction, default=True, help="measure the rates here")

    sub = command(doctor, "What this machine lacks for a configuration, and the command that mends it.")
    sub.add_argument("--config", required=True)

    sub = command(weights, "Download all that an encoder needs, where it is not in the cache yet.")
    sub.add_argument("--encoder", required=True, choices=list(ENCODERS))
    sub.add_argument("--weights", required=True, help="a hub tag")
    sub.add_argument("--out", help="JSON file to write when all is there: the files and their sha256")

    sub = command(verify, "Check every number of features and whether they belong together; errors end in status 1.")
    sub.add_argument("path", metavar="PATH", help="an HDF5 file, a folder of results, or a configuration")
    sub.add_argument("--json", help="write the findings to this file as well")

    sub = command(compare, "Say whether two sets of features are the same, shifted, scaled, or of another encoder.")
    for name in ("a", "b"):
        sub.add_argument(name, metavar=name.upper(), help="a features file, or a folder of .h5 or .npy files")
    sub.add_argument("--output", help="which output of an encoder with several, such as cls")
    sub.add_argument("--plot", metavar="FILE", help="similarity by second and by shift, and norms, as an image")

    sub = command(provenance, "Print where a file comes from and the command that makes it again.")
    sub.add_argument("file", metavar="FILE", help="an HDF5 file of the pipeline, or the folder of an export")

    sub = command(export, "Write a data set's features as published models and other tools read them.")
    sub.add_argument("folder", metavar="DIR", help="results of a data set")
    sub.add_argument("--layout", required=True, choices=[*LAYOUTS, *EXPORTS])
    sub.add_argument("--out", required=True, help="folder; an interrupted export resumes there")
    sub.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    sub.add_argument(
        "--force", action="store_true", help="export features that are not those of the layout's release, and list how"
    )

    sub = command(import_, "Take published .npy folders over into shards, so that a model can be trained on them.")
    sub.add_argument(
        "folder",
        metavar="DIR|ENCODER/OUTPUT=DIR",
        nargs="+",
        help="holds the layout's folders, or links to them; without --layout, a folder of arrays for each feature, as "
        "vggish/embedding=feats/vggish",
    )
    sub.add_argument("--layout", choices=list(LAYOUTS))
    add_config(sub)
    return parser
