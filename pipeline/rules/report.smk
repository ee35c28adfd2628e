# Scores of all models and seeds, and what the first seed's answers depend on, to a summary and a page.

REPORT = f"{DATASET}/reports/{{key}}"


def report_inputs(wildcards):
    files = made(wildcards.dataset)
    scores = [tested.scores_dir(trained, model, seed) / "scores.json" for tested, trained, model, seed in files.scored()]
    explanations = [scores / "explanation.json" for scores, _ in files.explained()]
    return [*scores, *explanations, *data_files(files), files.data_dir / "missing.tsv"]


def report_flags(wildcards):
    files = made(wildcards.dataset)
    links = {name: str(path) for name, path in files.report_view().items()}
    return flags(config=json.dumps(files.config, sort_keys=True), links=json.dumps(links), key=files.report_key.text)


rule report:
    input:
        unless_made([f"{REPORT}/report.html", f"{REPORT}/summary.txt"], report_inputs),
    output:
        page=report(
            f"{REPORT}/report.html",
            caption="captions/report.rst",
            category="Report",
            labels={"data set": "{dataset}", "result": "report"},
        ),
        summary=report(
            f"{REPORT}/summary.txt",
            caption="captions/summary.rst",
            category="Report",
            labels={"data set": "{dataset}", "result": "summary"},
        ),
    log:
        f"{DATASET}/logs/report/{{key}}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        settings=report_flags,
        folder=lambda wildcards, output: Path(output.page).parent,
    shell:
        "avqa report {params.settings} --out {params.folder:q} > {log:q} 2>&1"


localrules:
    report,


def features(name):
    """Everything that is made before training. Features are requested by name: Snakemake does not look for what
    features.h5, which is there, was made from."""

    def names(wildcards):
        files = made(name)
        begin()
        shards = [path for encoder in files.config["encoders"] for path in files.features_files(encoder)]
        data = [files.data_dir / part for part in ("features.h5", "failures.tsv", "missing.tsv", "verify.json")]
        return [*shards, *files.text_files(), *data]

    return names


def targets(name):
    """What is made of a data set, checkpoints and scores by name for the same reason."""

    def names(wildcards):
        files = made(name)
        runs = [(model, seed) for model in files.config["models"] for seed in files.config["train"]["seeds"]]
        checkpoints = [files.run_dir(*run) / "checkpoint.safetensors" for run in runs if name in TRAINED]
        scores = [files.scores_dir(*run) / "scores.json" for run in files.scored_here()]
        explanations = [folder / "explanation.json" for folder, _ in files.explained()]
        page = [files.report_dir / part for part in ("report.html", "summary.txt")]
        return [*features(name)(wildcards), *checkpoints, *scores, *explanations, *page]

    return names
