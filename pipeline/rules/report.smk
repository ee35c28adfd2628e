# Scores of all models and seeds to a summary and a page.


rule report:
    input:
        expand(rules.evaluate.output.scores, model=config["models"], seed=config["train"]["seeds"]),
        f"{RESULTS}/failures.tsv",
    output:
        page=f"{RESULTS}/report.html",
        summary=f"{RESULTS}/summary.txt",
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../../envs/torch.yaml"
    shell:
        f"avqa report --config {CONFIG} > {{log}} 2>&1"
