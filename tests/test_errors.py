"""Errors that a user can mend are sentences, without a traceback."""

import pytest
import torch

from pipeline import evaluate
from pipeline.cli import main


def allocate_on_the_cpu():
    torch.empty(2**62, dtype=torch.uint8)


def allocate_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 0 bytes free")


def allocate_in_python():
    bytearray(2**62)


def fail_while_that_is_handled():
    try:
        allocate_on_a_gpu()
    except RuntimeError as error:
        raise ValueError("something else") from error


@pytest.mark.parametrize(
    "allocate", [allocate_on_the_cpu, allocate_on_a_gpu, allocate_in_python, fail_while_that_is_handled]
)
def test_too_little_memory(monkeypatch, capsys, allocate):
    monkeypatch.setattr(evaluate, "evaluate", lambda *args: allocate())
    assert main(["evaluate", "runs/mine"]) == 1
    printed = capsys.readouterr().err
    assert "avqa evaluate: too little memory" in printed and "smaller batch_size" in printed
    assert printed.count("\n") == 1


def test_other_errors_are_not_taken_for_that(monkeypatch):
    def fail(*args):
        raise RuntimeError("a mistake in the program")

    monkeypatch.setattr(evaluate, "evaluate", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["evaluate", "runs/mine"])
