# The tables of the models' papers: a model for each row of a grid and each seed, then a table beside the paper's.

from pipeline.ablations import changed_entry, read_grid, rows_of

try:
    GRIDS = {name: read_grid(CONFIGS[name]) for name in TRAINED}
except AVQAError as error:
    sys.exit(str(error))
TABLE = f"{DATASET}/ablations/{{model}}/{{table}}-{{key}}.csv"


def folders_of(wildcards):
    """The folder of the scores of each row, whatever the seed, by the row's number."""
    files = made(wildcards.dataset)
    name = wildcards.dataset
    rows = rows_of(GRIDS[name], CONFIGS[name], wildcards.model, wildcards.table)
    return {n: files.scores_dir(wildcards.dataset, wildcards.model, 0, entry).parent for n, entry in rows.items()}


def table_inputs(wildcards):
    seeds = CONFIGS[wildcards.dataset]["train"]["seeds"]
    return [folder / f"seed-{seed}" / "scores.json" for folder in folders_of(wildcards).values() for seed in seeds]


rule ablation_table:
    input:
        unless_made(TABLE, table_inputs),
    output:
        report(
            TABLE,
            caption="captions/ablations.rst",
            category="Tables of the paper",
            labels={"data set": "{dataset}", "model": "{model}", "result": "{table}"},
        ),
    log:
        f"{DATASET}/logs/ablations/{{model}}/{{table}}-{{key}}.log",
    wildcard_constraints:
        table=r"\w+",
    conda:
        "../../envs/torch.yaml"
    params:
        lambda wildcards: flags(
            config=settings(wildcards.dataset, "results", "dataset", "encoders", "models", "train"),
            model=wildcards.model,
            table=wildcards.table,
            rows=json.dumps({n: str(folder) for n, folder in folders_of(wildcards).items()}),
        ),
    shell:
        f"avqa ablations {{params}} --out {{output:q}} {LOG}"


localrules:
    ablation_table,


def table_file(name, model, table):
    return lambda wildcards: made(name).table_file(
        model, table, rows_of(GRIDS[name], CONFIGS[name], model, table).values()
    )


TABLES = {}  # target: its files, one of each data set
for name, grid in GRIDS.items():
    for model, table in grid[["entry", "table"]].drop_duplicates().itertuples(index=False, name=None):
        TABLES.setdefault(f"{model}_{table}", []).append(table_file(name, model, table))


for target, files in TABLES.items():

    rule:
        name:
            f"ablations_{target}"
        input:
            files,


rule ablations:
    input:
        [file for files in TABLES.values() for file in files],
