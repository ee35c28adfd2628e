"""State dicts from files of others: arrays of NumPy are read, and nothing else that a pickle may name."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from extractors.base import read_state_dict

CODES = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
NUMBERS = ["?", *(f"{end}{code}" for end in "<>" for code in CODES)]
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3)


def saved(value, path, legacy=False):
    """As torch.save writes it, in the zip layout or in that of before PyTorch 1.6, in which PANNs' checkpoint is."""
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def of_numpy_1(path):
    """The file with the names of NumPy 1, of which the published files are: numpy.core in place of numpy._core."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in members.items():
            if name.endswith("data.pkl"):
                assert b"numpy._core" in content
                content = content.replace(b"numpy._core", b"numpy.core")
            new.writestr(name, content)
    return path


@given(
    values=st.sampled_from(NUMBERS).flatmap(lambda code: arrays.arrays(code, SHAPES)),
    by_columns=st.booleans(),
    legacy=st.booleans(),
    numpy_1=st.booleans(),
)
def test_arrays_of_any_numbers_become_tensors(tmp_path_factory, values, by_columns, legacy, numpy_1):
    values = np.asfortranarray(values) if by_columns and values.ndim else values
    path = saved({"w": values, "b": torch.ones(2)}, tmp_path_factory.mktemp("f") / "w.pt", legacy)
    found = read_state_dict(path if legacy or not numpy_1 else of_numpy_1(path))
    assert found.keys() == {"w", "b"} and torch.equal(found["b"], torch.ones(2))
    assert found["w"].shape == values.shape
    np.testing.assert_array_equal(found["w"].numpy(), values)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_with_the_state_of_a_sampler(tmp_path, legacy):
    """As in PANNs' checkpoint: lists of arrays, counters, and numbers of NumPy beside the state dict."""
    sampler = {
        "indexes_per_class": [np.arange(n) for n in range(4)],
        "queue": [3, np.int64(1), np.float32(0.5)],
        "pointers_of_classes": [0, 1],
        "random_state": np.random.RandomState(0).get_state(legacy=False)["state"]["key"],
    }
    made = {"iteration": 600000, "model": {"fc1.weight": torch.arange(6.0).view(2, 3)}, "sampler": sampler}
    found = read_state_dict(saved(made, tmp_path / "Cnn14.pth", legacy))
    assert found.keys() == {"fc1.weight"} and torch.equal(found["fc1.weight"], torch.arange(6.0).view(2, 3))


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Built:
    """Pickled as an array with a state of its own."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.state


def touch(name):
    open(name, "w").close()


OBJECTS = Calls(np.dtype, "O")
HOSTILE = {
    "a function of the file": Calls(touch, "exploded"),
    "open": Calls(open, "exploded", "w"),
    "eval": Calls(eval, "open('exploded', 'w')"),
    "a function of NumPy that reads files": Calls(np.fromfile, "victim"),
    "numpy.load, which unpickles": Calls(np.load, "victim", None, True),
    "numpy.memmap, which writes": Calls(np.memmap, "exploded", "uint8", "w+", 0, (3,)),
    "objects at addresses that the file gives": Calls(np.ndarray, (1,), OBJECTS, b"A" * 8),
    "a set of objects at such addresses": Calls(set, Calls(np.ndarray, (1,), OBJECTS, b"A" * 8)),
    "an array of objects": np.array([1, None], dtype=object),
    "an array of objects with another state": Built(1, (1,), OBJECTS, False, b"A" * 8),
    "a structure with objects": Built(1, (1,), Calls(np.dtype, "O,O"), False, b"A" * 16),
    "a structure": np.zeros(2, [("a", "f4")]),
    "text": np.array(["a"]),
    "more numbers than there are bytes": Built(1, (10**9,), np.dtype("f8"), False, b"A" * 8),
    "a negative shape": Built(1, (-5,), np.dtype("f8"), False, b"A" * 16),
    "a state that is none": Built(1, 2),
    "no numbers at all": {},
    "a number of NumPy alone": np.float32(3),
    "a scalar of objects": Calls(np._core.multiarray.scalar, OBJECTS, b"A" * 8),
}


@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_array_of_numbers_is_refused_and_runs_nothing(tmp_path, monkeypatch, name, layout):
    monkeypatch.chdir(tmp_path)
    np.save("victim.npy", np.ones(3))
    before = sorted(tmp_path.iterdir())
    path = tmp_path / "hostile.pt"
    if layout == "pickle":
        file = io.BytesIO()
        pickle.Pickler(file, protocol=2).dump({"w": HOSTILE[name]})
        path.write_bytes(file.getvalue())
    else:
        saved({"w": HOSTILE[name]}, path, layout == "legacy")
    with pytest.raises(ValueError, match=r"cannot be read as a plain state dict|must hold a state dict") as error:
        read_state_dict(path)
    assert sorted(tmp_path.iterdir()) == sorted([*before, path])
    assert "weights_only" not in str(error.value) and "add_safe_globals([" not in str(error.value)


def test_what_pytorch_may_unpickle_elsewhere_is_as_before(tmp_path):
    """The names are allowed while a weights file is read, and not in the whole process."""
    path = saved({"w": np.ones(2)}, tmp_path / "w.pt")
    read_state_dict(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
