# The tables of the models' papers: a model for each row of a grid and each seed, then a table beside the paper's.

TABLE = f"{RESULTS}/{paths.TABLE}"


rule ablation_table:
    input:
        unless_made(TABLE, JOBS.table_inputs),
    output:
        report(
            TABLE,
            caption="captions/ablations.rst",
            category="Tables of the paper",
            labels={"data set": "{dataset}", "model": "{model}", "result": "{table}"},
        ),
    log:
        f"{DATASET}/logs/ablations/{{model}}/{{table}}-{{key}}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        JOBS.table_flags,
    shell:
        f"avqa ablations {{params}} --out {{output:q}} {LOG}"


localrules:
    ablation_table,


TABLES = {}  # target: its files, one of each data set
for name in JOBS.trained:
    for model, table in JOBS.tables(name):
        TABLES.setdefault(f"{model}_{table}", []).append(planned(JOBS.table_file, name, model, table))


for target, files in TABLES.items():

    rule:
        name:
            f"ablations_{target}"
        input:
            files,


rule ablations:
    input:
        [file for files in TABLES.values() for file in files],
