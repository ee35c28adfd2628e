# The tables of the models' papers: a model for each row of a grid and each seed, then a table beside the paper's.

from pipeline.ablations import changed_entry, read_grid

try:
    GRIDS = {name: read_grid(CONFIGS[name]) for name in TRAINED}
except AVQAError as error:
    raise WorkflowError(str(error))
ABLATED = f"{DATASET}/ablations/{{model}}/table~{{table}}/row~{{row}}/seed-{{seed}}"


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


def encoders_of_row(wildcards):
    return extracted_for(wildcards, "all", ablated_entry(wildcards))


BOTH = from_manifest("training", "test")


def index_first(wildcards):
    index, made = f"{RESULTS}/{wildcards.dataset}/features.h5", f"{ABLATED}/scores.json".format(**wildcards)
    params = [ablation_settings, BOTH, text_settings]
    return ordered(index, wildcards, made, encoders_of_row(wildcards), params)


rule ablation:
    input:
        features=index_first,
        extracted=encoders_of_row,
        questions=questions,
    output:
        checkpoint=f"{ABLATED}/checkpoint.safetensors",
        scores=f"{ABLATED}/scores.json",
    log:
        f"{DATASET}/logs/ablations/{{model}}/table~{{table}}/row~{{row}}/seed-{{seed}}.log",
    wildcard_constraints:
        table=r"\w+",
        row=r"\d+",
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
        text=text_settings,
        workers=workers,
        folder=lambda wildcards, output: Path(output.scores).parent,
    shell:
        f"(avqa train --config {{params.settings:q}} --seed {{wildcards.seed}} --workers {{params.workers}}"
        f" --out {{params.folder:q}} && avqa evaluate {{params.folder:q}}) {LOG}"


def rows_of_table(wildcards):
    folder = f"{RESULTS}/{wildcards.dataset}/ablations/{wildcards.model}/table~{wildcards.table}"
    seeds = CONFIGS[wildcards.dataset]["train"]["seeds"]
    return expand(f"{folder}/row~{{row}}/seed-{{seed}}/scores.json", row=grid_of(wildcards)["row"], seed=seeds)


def table_settings(wildcards):
    own = CONFIGS[wildcards.dataset]
    models = {wildcards.model: own["models"][wildcards.model]}
    return settings("results", "dataset", "encoders", models=models, train={"seeds": own["train"]["seeds"]})(wildcards)


rule ablation_table:
    input:
        rows_of_table,
    output:
        f"{DATASET}/ablations/{{model}}/{{table}}.csv",
    log:
        f"{DATASET}/logs/ablations/{{model}}/{{table}}.log",
    wildcard_constraints:
        table=r"\w+",
    conda:
        "../../envs/torch.yaml"
    params:
        settings=table_settings,
    shell:
        f"avqa ablations --config {{params.settings:q}} --table {{wildcards.table}} {LOG}"


TABLES = {}  # target: its files, one of each data set
for name, grid in GRIDS.items():
    for model, table in grid[["entry", "table"]].drop_duplicates().itertuples(index=False, name=None):
        TABLES.setdefault(f"{model}_{table}", []).append(f"{RESULTS}/{name}/ablations/{model}/{table}.csv")


for target, files in TABLES.items():

    rule:
        name:
            f"ablations_{target}"
        input:
            files,


rule ablations:
    input:
        [file for files in TABLES.values() for file in files],


localrules:
    extracted,
    index,
    failures,
    report,
    ablation_table,
