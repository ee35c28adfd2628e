"""profiles/generic against stand-ins for Grid Engine's commands."""

import os
import subprocess
from pathlib import Path

import pytest

PROFILE = Path(__file__).resolve().parent.parent / "profiles" / "generic"
QUEUE = "job-ID prior name user state\n----\n{rows}"
RECORD = "qname all.q\nfailed       {failed}\nexit_status  {status}\n"


@pytest.fixture
def run(tmp_path):
    """Run a script of the profile, with commands that print given texts; None: the command knows no such job."""

    def script(name, *arguments, **printed):
        for command, text in printed.items():
            path = tmp_path / command
            path.write_text("#!/bin/sh\nexit 1\n" if text is None else f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
            path.chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ACCOUNTING_SECONDS": "2"}
        done = subprocess.run(
            [PROFILE / name, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return script


@pytest.mark.parametrize(
    ("rows", "record", "status"),
    [
        ("17 0.5 job me r", None, "running"),
        ("17 0.5 job me qw", None, "running"),
        ("17 0.5 job me Eqw", None, "failed"),
        ("", RECORD.format(failed=0, status=0), "success"),
        ("", RECORD.format(failed=0, status=1), "failed"),
        ("", RECORD.format(failed=100, status=0), "failed"),
        ("117 0.5 job me r", RECORD.format(failed=0, status=0), "success"),
        ("", None, "failed"),
    ],
)
def test_status(run, rows, record, status):
    assert run("status.sh", "17", qstat=QUEUE.format(rows=rows), qacct=record) == status


def test_the_record_is_waited_for(run, tmp_path):
    """qacct knows the job from its second call on."""
    late = tmp_path / "qacct"
    late.write_text(f"#!/bin/sh\n[ -e {tmp_path}/asked ] || {{ touch {tmp_path}/asked; exit 1; }}\n")
    late.write_text(late.read_text() + "echo 'failed 0'; echo 'exit_status 0'\n")
    late.chmod(0o755)
    assert run("status.sh", "17", qstat="") == "success"


def test_memory_is_asked_for_per_slot(run, tmp_path):
    (tmp_path / "qsub").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "qsub").chmod(0o755)
    words = run("submit.sh", "4", "8001", "1", "90", "job.sh").split()
    assert words[-1] == "job.sh" and "h_vmem=2001M" in words and "h_rt=5400" in words and "gpu=1" in words
    assert "gpu" not in run("submit.sh", "4", "8000", "0", "90", "job.sh")
