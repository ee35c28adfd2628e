# Scores of all models and seeds to a summary and a page.


def scores(wildcards):
    """The scores of each model on the data set, of all data sets that it is trained on."""
    own = CONFIGS[wildcards.dataset]
    return [
        str(scores_dir(own, trained_on, model, seed) / "scores.json")
        for trained_on in own["trained_on"]
        for model in own["models"]
        for seed in own["train"]["seeds"]
    ]


rule report:
    input:
        scores,
        rules.failures.output,
    output:
        page=f"{DATASET}/report.html",
        summary=f"{DATASET}/summary.txt",
    log:
        f"{DATASET}/logs/report.log",
    conda:
        "../../envs/torch.yaml"
    params:
        lambda wildcards: settings(
            "results",
            "dataset",
            "videos",
            "trained_on",
            "models",
            encoders={name: {"weights": ""} for name in CONFIGS[wildcards.dataset]["encoders"]},
            train={"seeds": CONFIGS[wildcards.dataset]["train"]["seeds"]},
        )(wildcards),
    shell:
        "avqa report --config {params:q} > {log:q} 2>&1"
