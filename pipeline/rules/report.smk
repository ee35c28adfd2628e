# Scores of all models and seeds, and what the first seed's answers depend on, to a summary and a page.

REPORT = f"{RESULTS}/{paths.REPORT}"


rule report:
    input:
        unless_made([f"{REPORT}/report.html", f"{REPORT}/summary.txt"], JOBS.report_inputs),
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
        settings=JOBS.report_flags,
        folder=lambda wildcards, output: Path(output.page).parent,
    shell:
        "avqa report {params.settings} --out {params.folder:q} > {log:q} 2>&1"


localrules:
    report,
