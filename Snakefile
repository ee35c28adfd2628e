# Videos and questions in, aligned features, trained models and their scores out.
#
#     snakemake --cores 8                                             the demo
#     snakemake --cores 8 --configfile config/music_avqa.yaml         a real data set
#     snakemake --cores 8 music_avqa_r --configfile config/mine.yaml  one data set of several

import sys

from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, workflow.basedir)

# Not unconditionally: Snakemake would merge the demo's settings into those of --configfile.
if "dataset" not in config and "datasets" not in config:

    configfile: f"{workflow.basedir}/config/config.yaml"


include: "pipeline/rules/common.smk"
include: "pipeline/rules/manifest.smk"
include: "pipeline/rules/decode.smk"
include: "pipeline/rules/extract.smk"
include: "pipeline/rules/index.smk"
include: "pipeline/rules/train.smk"
include: "pipeline/rules/report.smk"
include: "pipeline/rules/ablations.smk"


for name in CONFIGS:

    rule:
        name:
            name
        input:
            planned(JOBS.results_of, name),


rule features:
    input:
        [planned(JOBS.features, name) for name in CONFIGS],


rule all:
    default_target: True
    input:
        [planned(JOBS.results_of, name) for name in CONFIGS],


onstart:
    start_run()


onsuccess:
    end_run(well=True)


onerror:
    end_run(well=False)
