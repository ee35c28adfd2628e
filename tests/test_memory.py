"""The limits of control groups and Slurm jobs count where they are below the machine's memory."""

import psutil
import pytest
import torch
from made_results import make_results

from pipeline.data.features import Features
from pipeline.memory import available_memory
from pipeline.storage.features import FeatureIndex

MIB = 2**20


@pytest.fixture(autouse=True)
def outside_of_slurm(monkeypatch):
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 10_000 * MIB}))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: type("", (), {"rss": 100 * MIB}))


def tree(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def group(limit, use, cached, version=2):
    """The files of a control group, in MiB."""
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit = limit if limit == "max" else limit * MIB
    return {names[0]: limit, names[1]: use * MIB, "memory.stat": f"anon 5\n{names[2]} {cached * MIB}"}


def within(path, files):
    return {f"{path}/{name}": text for name, text in files.items()}


def test_without_any_limit_the_machines_memory_counts(tmp_path):
    assert available_memory(tmp_path) == 10_000 * MIB  # no /proc
    files = {"proc/self/cgroup": "0::/user.slice"} | within("sys/fs/cgroup/user.slice", group("max", 3, 1))
    assert available_memory(tree(tmp_path, files)) == 10_000 * MIB


@pytest.mark.parametrize(
    ("version", "line", "top"),
    [(2, "0::/job/step", "sys/fs/cgroup"), (1, "12:pids:/x\n5:cpu,memory:/job/step\n0::/", "sys/fs/cgroup/memory")],
)
@pytest.mark.parametrize(("inner", "outer", "left"), [(600, 900, 350), (900, 600, 350), (5000, 99_999, 4750)])
def test_the_tightest_control_group_counts(tmp_path, version, line, top, inner, outer, left):
    files = {"proc/self/cgroup": line}
    files |= within(f"{top}/job/step", group(inner, 300, 50, version))
    files |= within(f"{top}/job", group(outer, 300, 50, version))
    assert available_memory(tree(tmp_path, files)) == left * MIB


def test_a_container_has_its_own_group_at_the_top(tmp_path):
    files = {"proc/self/cgroup": "0::/../not/here"} | within("sys/fs/cgroup", group(700, 100, 0))
    assert available_memory(tree(tmp_path, files)) == 600 * MIB


def test_more_use_than_the_limit_leaves_nothing(tmp_path):
    files = {"proc/self/cgroup": "0::/a"} | within("sys/fs/cgroup/a", group(100, 200, 0))
    assert available_memory(tree(tmp_path, files)) == 0


@pytest.mark.parametrize(
    ("variables", "megabytes"),
    [
        ({"SLURM_MEM_PER_NODE": "4000"}, 4000),
        ({"SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_ON_NODE": "6"}, 6000),
        ({"SLURM_MEM_PER_CPU": "3000"}, 3000),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # all of the node
        ({"SLURM_MEM_PER_NODE": "50000"}, None),
        ({"SLURM_MEM_PER_NODE": "much"}, None),
    ],
)
def test_the_limit_of_a_slurm_job_counts(tmp_path, monkeypatch, variables, megabytes):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = available_memory(tmp_path) / MIB
    if megabytes is None:
        assert found == 10_000
    else:
        assert found == megabytes - 100  # less what this process has


def test_features_stay_on_disk_where_they_do_not_fit(tmp_path, monkeypatch):
    """What a job may take decides, not what the machine has."""
    index = FeatureIndex(make_results(tmp_path) / "features.h5")
    name = next(name for name in index.names if name.startswith("vggish"))
    assert Features(index, name, torch.device("cpu")).values is not None
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert Features(index, name, torch.device("cpu")).values is None
