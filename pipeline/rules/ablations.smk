# The tables of the first model's paper: a model for each row of the grid and each seed, then a table beside the paper's.

from pipeline.ablations import read_grid

try:
    GRIDS = {name: read_grid(CONFIGS[name]) for name in TRAINED}
except AVQAError as error:
    raise WorkflowError(str(error))
TABLES = list(dict.fromkeys(table for grid in GRIDS.values() for table in grid["table"]))
ABLATED = f"{DATASET}/ablations/table~{{table}}/row~{{row}}/seed-{{seed}}"


def ablation_settings(wildcards):
    """The first model of the configuration, with what the row of a table changes in it."""
    grid, own = GRIDS[wildcards.dataset], CONFIGS[wildcards.dataset]
    chosen = (grid["table"] == wildcards.table) & (grid["row"] == int(wildcards.row))
    model = next(iter(own["models"]))
    models = {model: own["models"][model] | json.loads(grid.loc[chosen, "settings"].item())}
    return settings("results", "dataset", models=models, train=schedule(wildcards))(wildcards)


BOTH = from_manifest("training", "test")


def read_by_first_model(wildcards):
    """That the encoders which the first model reads have read all."""
    model = next(iter(CONFIGS[wildcards.dataset]["models"]))
    return extracted("all")(Wildcards(fromdict={"dataset": wildcards.dataset, "model": model}))


def index_if_not_ablated(wildcards):
    made, inputs = f"{ABLATED}/scores.json".format(**wildcards), read_by_first_model(wildcards)
    read = all(is_read(wildcards, "all", Path(name).name) for name in inputs)
    params = [ablation_settings(wildcards), BOTH(wildcards), text_flags(wildcards)]
    return [] if read and is_current(made, inputs, params) else f"{RESULTS}/{wildcards.dataset}/features.h5"


rule ablation:
    input:
        features=index_if_not_ablated,
        extracted=read_by_first_model,
        questions=questions,
    output:
        checkpoint=f"{ABLATED}/checkpoint.safetensors",
        scores=f"{ABLATED}/scores.json",
    log:
        f"{DATASET}/logs/ablations/table~{{table}}/row~{{row}}/seed-{{seed}}.log",
    conda:
        "../../envs/torch.yaml"
    threads: training_threads
    resources:
        gpu=gpu,
        mem_mb=mem_mb("train"),
        runtime=runtime("train"),
    params:
        settings=ablation_settings,
        questions=BOTH,
        text=text_flags,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        f"(avqa train --config {{params.settings:q}} --seed {{wildcards.seed}} --out {{params.folder:q}}"
        f" && avqa evaluate {{params.folder:q}}) {LOG}"


def rows_of_table(wildcards):
    grid = GRIDS[wildcards.dataset]
    rows, seeds = grid.loc[grid["table"] == wildcards.table, "row"], CONFIGS[wildcards.dataset]["train"]["seeds"]
    folder = f"{RESULTS}/{wildcards.dataset}/ablations/table~{wildcards.table}"
    return expand(f"{folder}/row~{{row}}/seed-{{seed}}/scores.json", row=rows, seed=seeds)


def table_settings(wildcards):
    own = CONFIGS[wildcards.dataset]
    first = dict([next(iter(own["models"].items()))])
    return settings("results", "dataset", models=first, train={"seeds": own["train"]["seeds"]})(wildcards)


rule ablation_table:
    input:
        rows_of_table,
    output:
        f"{DATASET}/ablations/{{table}}.csv",
    wildcard_constraints:
        table="[^/]+",
    log:
        f"{DATASET}/logs/ablations/{{table}}.log",
    conda:
        "../../envs/torch.yaml"
    params:
        settings=table_settings,
    shell:
        f"avqa ablations --config {{params.settings:q}} --table {{wildcards.table}} {LOG}"


def tables(*wanted):
    return [
        f"{RESULTS}/{name}/ablations/{table}.csv" for name, grid in GRIDS.items() for table in wanted
        if table in set(grid["table"])
    ]


for table in TABLES:

    rule:
        name:
            f"ablations_{table}"
        input:
            tables(table),


rule ablations:
    input:
        tables(*TABLES),


localrules:
    extracted,
    index,
    failures,
    report,
    ablation_table,
