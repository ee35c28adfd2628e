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


def features(name):
    """All files of features of a data set. They are requested by name: else Snakemake would not detect that one was
    removed once features.h5 is there."""

    def files(wildcards):
        of = Wildcards(fromdict={"dataset": name, "use": "all"})
        folder = f"{RESULTS}/{collection_of(of)}/features"
        return expand(f"{folder}/{{encoder}}/{{shard}}.h5", encoder=CONFIGS[name]["encoders"], shard=shards(of))

    return files


def targets(name):
    """What is made of a data set. Checkpoints are requested by name for the same reason."""
    return [
        *expand([*rules.index.output, *rules.failures.output, *rules.report.output], dataset=name),
        *expand(rules.text.output, dataset=name, encoder=CONFIGS[name]["text"]["encoder"]),
        *checkpoint_files(name),
    ]


for name in CONFIGS:

    rule:
        name:
            name
        input:
            features(name),
            targets(name),


rule features:
    input:
        [features(name) for name in CONFIGS],
        expand([*rules.index.output, *rules.failures.output], dataset=CONFIGS),


rule all:
    default_target: True
    input:
        [features(name) for name in CONFIGS],
        [targets(name) for name in CONFIGS],


onstart:
    start_run()


onsuccess:
    remove_leftovers()
    print_summaries()
