# What the rules' inputs and params are made of, in the order of the stages: which files a job reads, and what decides
# whether it is due.


def annotations(wildcards):
    own = CONFIGS[wildcards.dataset]
    files = {}
    for each in [own, *([own["numbered_as"]] if "numbered_as" in own else [])]:
        files |= dict.fromkeys(path for _, _, path in annotation_files(each))
        if isinstance(each.get("answers"), str):
            files[each["answers"]] = None
    if CONFIGS[wildcards.dataset]["format"] == "music_avqa":
        files[f"{workflow.basedir}/manifests/prompts.csv"] = None
    return list(files)


@functools.cache
def sha256_of(path):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # Snakemake names the missing file


def state_of_annotations(wildcards):
    """What makes the manifest due when an annotation file is replaced, by an older one as well, which Snakemake does not
    detect by its time."""
    if SYNTHESIZE:
        return "synthesized"
    return " ".join(map(sha256_of, annotations(wildcards)))


@functools.cache
def fingerprint(collection):
    return videos_fingerprint(SETTINGS_OF[collection]["videos"])


def state_of_videos(wildcards):
    """What makes the manifest due when a video appears, vanishes or is replaced."""
    if SYNTHESIZE:
        return "synthesized"  # they change with the annotations that come with them
    try:
        return fingerprint(collection_of(wildcards))
    except OSError as error:
        sys.exit(f"videos.folder: {error}; see README.md for what goes there")


def state_of_weights(field, encoder, entry):
    """What makes features due when a weights file is replaced, or when the encoder's code gives other numbers."""
    version = ENCODERS[encoder].version(entry["weights"])
    numbers = [f"version {version} of the numbers"] if version != 1 else []
    try:
        return " ".join([weights_fingerprint(entry), *numbers])
    except OSError as error:
        sys.exit(f"{field}.weights: {entry['weights']}: {error.strerror}; give a file, a hub tag, or random")


MANIFEST_SECTIONS = ["results", "dataset", "videos", "annotations", "format", "card", "answers", "video_ids"]
MANIFEST_SECTIONS += ["merge_answers", "numbered_as", "trained_on", "allow_missing", "shard_size"]


NUMBERS = "answers and words numbered as published"  # what results of earlier versions lack


def manifest_settings(wildcards):
    return settings(*MANIFEST_SECTIONS)(wildcards)


@functools.cache
def made_in_this_run(collection):
    """The data sets of a collection that this run makes: those named as targets with the ones that their models are
    trained on, or else all."""
    named = set(workflow.dag_settings.targets)
    if not named or not named <= CONFIGS.keys():
        named = set(CONFIGS)
    named |= {trained_on for name in named for trained_on in CONFIGS[name]["trained_on"]}
    return [name for name in CONFIGS if name in named and CONFIGS[name]["videos"]["collection"] == collection]


def manifest_before(wildcards):
    """The manifest of the data set before this one with the same collection, if this run makes both: in the
    configuration's order, so that the shards of a collection are the same in every run."""
    params = [state_of_annotations(wildcards), state_of_videos(wildcards), manifest_settings(wildcards), NUMBERS]
    names = made_in_this_run(collection_of(wildcards))
    made = f"{RESULTS}/{wildcards.dataset}/manifest.json"
    if not workflow.is_main_process or wildcards.dataset not in names[1:]:
        return []
    if is_current(made, annotations(wildcards), params):
        return []
    return f"{RESULTS}/{names[names.index(wildcards.dataset) - 1]}/manifest.json"


def inputs_of(collection):
    """The inputs that a collection's encoders read, as the name of a folder."""
    keys = {item.key for name in ENCODERS_OF[collection] for item in ENCODERS[name].inputs}
    return "+".join("-".join(Path(key).parts) for key in sorted(keys))


def decode_settings(collection):
    return deciding(SETTINGS_OF[collection]["decode"])


def features_file(wildcards, encoder, shard):
    return f"{RESULTS}/{wildcards.collection}/features/{encoder}/{shard}.h5"


def extraction_settings(wildcards):
    """What decides an encoder's features."""
    entry = ENCODERS_OF[wildcards.collection][wildcards.encoder]
    state = state_of_weights(f"encoders.{wildcards.encoder}", wildcards.encoder, entry)
    return " ".join(
        [weights_flags(entry), state, f"decoder {DECODER_VERSION}", flags(**decode_settings(wildcards.collection))]
    )


def is_made(wildcards, encoder, shard):
    """Whether features are there and up to date. Then their segments are of no use, although they are a missing input."""
    of = Wildcards(fromdict={"collection": wildcards.collection, "encoder": encoder})
    listed = f"{RESULTS}/{wildcards.collection}/shards/{shard}.tsv"
    return is_current(features_file(wildcards, encoder, shard), [listed], [extraction_settings(of)])


def decode_flags(wildcards):
    return flags(collection=wildcards.collection, **decode_settings(wildcards.collection))


def segments_file(wildcards):
    folder = SEGMENTS.format(collection=wildcards.collection)
    return f"{folder}/{inputs_of(wildcards.collection)}/{wildcards.shard}.h5"


def is_decoded(wildcards):
    """Whether a shard's segments are there and up to date."""
    listed = f"{RESULTS}/{wildcards.collection}/shards/{wildcards.shard}.tsv"
    return is_current(segments_file(wildcards), [listed], [decode_flags(wildcards), DECODER_VERSION])


def read_before(wildcards):
    """The features that must be there before a shard is decoded: those of the shard `ahead` places before it that this
    run makes. So the segments of no more than `ahead` shards are on the disk, whatever the scheduler does. (A resource
    of Snakemake's could not count them: a job holds it only while it runs, and segments stay until they are read.)"""
    if not workflow.is_main_process or is_decoded(wildcards):
        return []
    ahead = SETTINGS_OF[wildcards.collection]["decode"]["ahead"]
    encoders = dict.fromkeys(e for name in made_in_this_run(wildcards.collection) for e in CONFIGS[name]["encoders"])
    for n in range(int(wildcards.shard) - ahead, -1, -ahead):
        due = [encoder for encoder in encoders if not is_made(wildcards, encoder, f"{n:05d}")]
        if due:
            return [features_file(wildcards, encoder, f"{n:05d}") for encoder in due]
    return []


def segments(wildcards):
    """A shard's segments, unless the encoder's features are up to date: they are temporary, and what only another
    encoder needs must not make this one's features due."""
    if workflow.is_main_process and is_made(wildcards, wildcards.encoder, wildcards.shard):
        return []
    return segments_file(wildcards)


def weights_first(wildcards):
    """Weights are downloaded before jobs start: nodes of a cluster have no internet."""
    tag = ENCODERS_OF[wildcards.collection][wildcards.encoder]["weights"]
    if not is_hub_tag(tag) or is_made(wildcards, wildcards.encoder, wildcards.shard):
        return []
    return f"{RESULTS}/weights/{wildcards.encoder}/{tag}.json"


def text_weights_first(wildcards):
    tag, made = text_entry(wildcards)["weights"], f"{RESULTS}/{wildcards.dataset}/text/{wildcards.encoder}.h5"
    if not is_hub_tag(tag) or is_current(made, [], [one_text_settings(wildcards), state_of_texts(wildcards)]):
        return []
    return f"{RESULTS}/weights/{wildcards.encoder}/{tag}.json"


def batch_size(wildcards, threads):
    return flags(batch_size=ENCODERS_OF[wildcards.collection][wildcards.encoder].get("batch_size"))


def shards(wildcards):
    """The shards that hold the data set's videos, or those of training only."""
    return manifest_of(wildcards)["shards" if wildcards.use == "all" else "training_shards"]


def is_read(wildcards, use, encoder):
    """Whether an encoder has read the shards of a data set, and does not have to read any again."""
    own = {"dataset": wildcards.dataset, "use": use, "collection": collection_of(wildcards), "encoder": encoder}
    of = Wildcards(fromdict=own)
    files = [features_file(of, encoder, shard) for shard in shards(of)]
    made = f"{RESULTS}/{wildcards.dataset}/extracted/{use}/{encoder}"
    return is_current(made, files, [json.dumps(shards(of))]) and all(is_made(of, encoder, n) for n in shards(of))


def text_entry(wildcards):
    """The settings of one text encoder."""
    return text_encoders(CONFIGS[wildcards.dataset])[wildcards.encoder]


def one_text_flags(wildcards):
    return weights_flags({"encoder": wildcards.encoder, **text_entry(wildcards)})


def one_text_settings(wildcards):
    """What decides the features of texts of one text encoder."""
    state = state_of_weights(f"text {wildcards.encoder}", wildcards.encoder, text_entry(wildcards))
    return f"{one_text_flags(wildcards)} {state}"


def state_of_texts(wildcards):
    """What makes text features due when a text is added, or a first model that reads prompts."""
    return from_manifest("texts", *(["prompts"] if reads_prompts(CONFIGS[wildcards.dataset]) else []))(wildcards)


def text_settings(wildcards):
    """What decides the text features that a job reads."""
    of = ({"dataset": wildcards.dataset, "encoder": name} for name in text_encoders(CONFIGS[wildcards.dataset]))
    return " ".join(one_text_settings(Wildcards(fromdict=each)) for each in of)


def index_settings(wildcards):
    own = CONFIGS[wildcards.dataset]
    encoders = {name: {"weights": ""} for name in own["encoders"]}
    others = {name: {"weights": ""} for name in own["text"]["others"]}
    text = {"encoder": own["text"]["encoder"], "weights": "", "others": others}
    return settings("results", "dataset", "videos", "trained_on", encoders=encoders, text=text)(wildcards)


def failures_settings(wildcards):
    return settings("results", "dataset", "videos", "trained_on", "max_failed_fraction")(wildcards)


def decoded_with(wildcards):
    return flags(**decode_settings(collection_of(wildcards)))


def read_by_all(wildcards):
    """That all encoders have read the data set's videos."""
    folder = f"{RESULTS}/{wildcards.dataset}/extracted/all"
    return [f"{folder}/{encoder}" for encoder in CONFIGS[wildcards.dataset]["encoders"]]


def text_files(wildcards):
    """One file of each text encoder."""
    return [f"{RESULTS}/{wildcards.dataset}/text/{encoder}.h5" for encoder in text_encoders(CONFIGS[wildcards.dataset])]


def failures_first(wildcards):
    """Too many failed videos stop the run before training; the table alone is no reason to make the index again."""
    folder, inputs = f"{RESULTS}/{wildcards.dataset}", [*read_by_all(wildcards), *text_files(wildcards)]
    params = [index_settings(wildcards), from_manifest("shards", "video_ids")(wildcards)]
    return [] if is_current(f"{folder}/features.h5", inputs, params) else f"{folder}/failures.tsv"


def decoded_first(wildcards):
    """The tables of failures are there when the encoders have read all; a list that is up to date needs nothing."""
    made, params = f"{RESULTS}/{wildcards.dataset}/failures.tsv", [failures_settings, decoded_with]
    params.append(from_manifest("shards", "training", "test"))
    return [] if is_current(made, [], [param(wildcards) for param in params]) else read_by_all(wildcards)


def extracted(use):
    """That the encoders which the model reads have read what is needed."""
    return lambda wildcards: extracted_for(wildcards, use, model_entry(wildcards))


def model_entry(wildcards):
    return CONFIGS[wildcards.dataset]["models"][wildcards.model]


def extracted_for(wildcards, use, entry):
    """That the encoders which an entry of models reads have read what is needed."""
    return [f"{RESULTS}/{wildcards.dataset}/extracted/{use}/{encoder}" for encoder in encoders_read(entry)]


def training_settings(wildcards):
    """Which other models and seeds there are, and the number of threads, is no reason to train again."""
    return run_settings(wildcards, wildcards.model, model_entry(wildcards))


def run_settings(wildcards, model, entry):
    """What a run with a given seed depends on: the model, and its complete schedule."""
    schedule = training(CONFIGS[wildcards.dataset] | {"models": {model: entry}}, model)
    entry = {name: value for name, value in entry.items() if name != "train"}
    return settings("results", "dataset", models={model: entry}, train=schedule)(wildcards)


def workers(wildcards, threads):
    return CONFIGS[wildcards.dataset]["train"]["workers"]


def is_trained_already(wildcards, trained_on):
    """Whether a model is there and up to date."""
    of = Wildcards(fromdict={"dataset": trained_on, "model": wildcards.model, "seed": wildcards.seed})
    made = scores_dir(CONFIGS[trained_on], trained_on, of.model, of.seed) / "config.yaml"
    params = [training_settings(of), TRAINING(of), text_settings(of)]
    read = all(is_read(of, "training", encoder) for encoder in encoders_read(model_entry(of)))
    return read and is_current(str(made), extracted("training")(of), params)


def is_scored_already(wildcards, trained_on):
    """Whether the scores of a model on a data set are there and up to date."""
    folder = scores_dir(CONFIGS[wildcards.dataset], trained_on, wildcards.model, wildcards.seed)
    model = scores_dir(CONFIGS[trained_on], trained_on, wildcards.model, wildcards.seed) / "config.yaml"
    inputs, params = [*extracted("all")(wildcards), model], [TEST(wildcards), text_settings(wildcards)]
    read = all(is_read(wildcards, "all", encoder) for encoder in encoders_read(model_entry(wildcards)))
    return (
        read and is_trained_already(wildcards, trained_on) and is_current(str(folder / "scores.json"), inputs, params)
    )


def is_explained_already(wildcards, trained_on):
    """Whether the explanation of a model is there and up to date."""
    own = CONFIGS[wildcards.dataset]
    folder = scores_dir(own, trained_on, wildcards.model, wildcards.seed)
    inputs = [str(folder / name) for name in ("config.yaml", "scores.json")]
    return is_scored_already(wildcards, trained_on) and is_current(str(folder / "explanation.json"), inputs, [])


def index_if_not(done):
    """features.h5, for a job that is not `done`: what in it matters is said by `extracted` and by the params."""

    def path(wildcards):
        trained_on = getattr(wildcards, "trained_on", wildcards.dataset)
        return [] if done(wildcards, trained_on) else f"{RESULTS}/{wildcards.dataset}/features.h5"

    return path


def checkpoint_files(name):
    """The checkpoints of a data set that is trained."""
    own = CONFIGS[name]
    return (
        expand(rules.train.output.checkpoint, dataset=name, model=own["models"], seed=own["train"]["seeds"])
        if name in TRAINED
        else []
    )


def training_threads(wildcards):
    return threads_for("train", CONFIGS[wildcards.dataset]["train"]["threads"])


def scores(wildcards):
    """The scores of each model on the data set, of all data sets that it is trained on. Where models of two data sets are
    tested on both, those on the other one as well: the report has a table of all."""
    own = CONFIGS[wildcards.dataset]
    others = [n for n in own["trained_on"] if n != own["dataset"] and own["dataset"] in CONFIGS[n]["trained_on"]]
    return [
        str(scores_dir(CONFIGS[tested_on], trained_on, model, seed) / "scores.json")
        for tested_on in (own["dataset"], *others)
        for trained_on in own["trained_on"]
        for model in own["models"]
        for seed in own["train"]["seeds"]
    ]


def explanations(wildcards):
    """What the answers depend on, of the first seed of each model that is trained on the data set."""
    own = CONFIGS[wildcards.dataset]
    seed, models = own["train"]["seeds"][0], own["models"] if is_trained(own) else ()
    return [str(scores_dir(own, own["dataset"], model, seed) / "explanation.json") for model in models]


def grid_of(wildcards):
    """The rows of a table."""
    grid = GRIDS[wildcards.dataset]
    return grid[(grid["entry"] == wildcards.model) & (grid["table"] == wildcards.table)]


def ablated_entry(wildcards):
    """The model of a table, with what the row changes in it."""
    changes = grid_of(wildcards).set_index("row").loc[int(wildcards.row), "settings"]
    return changed_entry(CONFIGS[wildcards.dataset]["models"][wildcards.model], json.loads(changes))


def ablation_settings(wildcards):
    return run_settings(wildcards, wildcards.model, ablated_entry(wildcards))


def read_by_row(wildcards):
    """That the encoders which the row's model reads have read all."""
    return extracted_for(wildcards, "all", ablated_entry(wildcards))


def index_if_not_ablated(wildcards):
    made, inputs = f"{ABLATED}/scores.json".format(**wildcards), read_by_row(wildcards)
    read = all(is_read(wildcards, "all", Path(name).name) for name in inputs)
    params = [ablation_settings(wildcards), BOTH(wildcards), text_settings(wildcards)]
    return [] if read and is_current(made, inputs, params) else f"{RESULTS}/{wildcards.dataset}/features.h5"


def rows_of_table(wildcards):
    folder = f"{RESULTS}/{wildcards.dataset}/ablations/{wildcards.model}/table~{wildcards.table}"
    seeds = CONFIGS[wildcards.dataset]["train"]["seeds"]
    return expand(f"{folder}/row~{{row}}/seed-{{seed}}/scores.json", row=grid_of(wildcards)["row"], seed=seeds)


def table_settings(wildcards):
    own = CONFIGS[wildcards.dataset]
    models = {wildcards.model: own["models"][wildcards.model]}
    return settings("results", "dataset", "encoders", models=models, train={"seeds": own["train"]["seeds"]})(wildcards)


@functools.cache
def warn_if_records_are_lost(name):
    """Without Snakemake's records, no change of settings makes anything due."""
    made, of_last_run = f"{RESULTS}/{name}/manifest.json", Path(RESULTS, name, "config.yaml")
    known = not os.path.exists(made) or workflow.persistence.params(IOFile(made)) is not None
    if known or not workflow.is_main_process or not of_last_run.exists() or workflow.dag_settings.forcerun:
        return
    before, now = yaml.safe_load(of_last_run.read_text()), CONFIGS[name]
    differing = [section for section in sorted({*before, *now}) if before.get(section) != now.get(section)]
    if differing:
        print(
            f"WARNING: {RESULTS}/{name} was made with other settings of {', '.join(differing)}, and Snakemake's records "
            "of it (.snakemake, in the folder where it ran) are gone, so that it is not made again for them. Move the "
            "records back, or run with --forcerun and the first of manifest, decode, extract, text and train that the "
            "settings concern",
            file=sys.stderr,
        )


def features(name):
    """All files of features of a data set. They are requested by name: else Snakemake would not detect that one was
    removed once features.h5 is there."""

    def files(wildcards):
        warn_if_records_are_lost(name)
        of = Wildcards(fromdict={"dataset": name, "use": "all"})
        folder = f"{RESULTS}/{collection_of(of)}/features"
        return expand(f"{folder}/{{encoder}}/{{shard}}.h5", encoder=CONFIGS[name]["encoders"], shard=shards(of))

    return files


def targets(name):
    """What is made of a data set. Checkpoints are requested by name for the same reason."""
    return [
        *expand(
            [*rules.index.output, *rules.verify.output, *rules.failures.output, *rules.report.output], dataset=name
        ),
        *expand(rules.text.output, dataset=name, encoder=text_encoders(CONFIGS[name])),
        *checkpoint_files(name),
    ]
