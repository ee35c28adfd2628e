"""VGGish against torchvggish's own outputs."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvggish import torchvggish, vggish_input

from extractors import ENCODERS, EncoderError, fetch_weights, load_encoder
from extractors.vggish import log_mel
from pipeline.extract import Piece, read_audio_windows


def test_embeddings_are_torchvggishs_own(vggish):
    audio = (np.random.default_rng(1).standard_normal((3, 16000)) / 5).astype("float32")
    with torch.inference_mode():
        expected = torch.cat([vggish.network(vggish_input.waveform_to_examples(s, 16000)) for s in audio])
    torch.testing.assert_close(vggish.encode(audio)["embedding"], expected, rtol=1e-4, atol=1e-5)


def test_random_weights_keep_different_audio_different(vggish):
    """Random weights are of use only if different audio stays different on its way through nine layers."""
    time = np.arange(16000) / 16000
    tones = np.stack([np.sin(2 * np.pi * f * time) / 2 for f in (220, 440, 1760)] + [np.zeros(16000)])
    embedding = torch.nn.functional.normalize(vggish.encode(tones.astype("float32"))["embedding"], dim=-1)
    similarity = embedding @ embedding.T
    assert similarity.fill_diagonal_(0).max() < 0.99


@pytest.fixture
def minute():
    """61 s of tones, noise and silence."""
    rng = np.random.default_rng(2)
    loud = np.repeat(rng.uniform(0, 0.5, 61) * (rng.random(61) > 0.2), 16000)
    return (rng.standard_normal(61 * 16000) * loud).astype("float32")


def test_the_spectrogram_is_torchvggishs(minute):
    seconds = minute.reshape(61, 16000)[:8]
    expected = torch.cat([vggish_input.waveform_to_examples(second, 16000) for second in seconds])[:, 0]
    torch.testing.assert_close(log_mel(torch.from_numpy(seconds)), expected.float(), rtol=1e-4, atol=2e-4)


def test_rows_with_a_hop_are_those_of_the_whole_track(vggish, minute):
    """Oracle: torchvggish on the whole track at once, which cuts it every 0.96 s."""
    encoder = load_encoder("vggish_hop096", "random", dtype="float32")
    (audio,) = encoder.spec.inputs
    windows = read_audio_windows(minute.reshape(1, 61, 16000), audio, 61, Piece(0, 0, 60))
    examples = vggish_input.waveform_to_examples(minute, 16000)[:60]
    assert len(windows) == len(examples) == 60
    torch.testing.assert_close(log_mel(torch.from_numpy(windows.copy())), examples[:, 0].float(), rtol=1e-4, atol=2e-4)
    chosen = [0, 1, 30, 59]
    with torch.inference_mode():
        expected = vggish.network(examples[chosen].float())
    torch.testing.assert_close(encoder.encode(windows[chosen])["embedding"], expected, rtol=1e-3, atol=1e-4)


PCA_FILE = ENCODERS["vggish_hop096_pca"].beside


def audioset(embeddings, matrix, means):
    """AudioSet's postprocessing as its description has it, in NumPy and double precision: PCA with whitening, clipped
    to -2…2, mapped to 0…255, cast to uint8."""
    projected = (matrix.astype(float) @ (embeddings.astype(float).T - means.astype(float).reshape(-1, 1))).T
    return ((np.clip(projected, -2, 2) + 2) * (255 / 4)).astype("uint8")


@pytest.fixture(scope="module")
def pca():
    """With a mean that no output of a ReLU can have, and rows that whiten more and more, as the published one."""
    rng = np.random.default_rng(5)
    rotation = np.linalg.qr(rng.standard_normal((128, 128)))[0]
    means = rng.uniform(-0.3, 0.3, 128)
    return {
        "pca_eigen_vectors": (rotation * np.geomspace(1, 8, 128)[:, None]).astype("float32"),
        "pca_means": means.astype("float32"),
    }


@pytest.fixture(scope="module")
def published(vggish, pca, tmp_path_factory):
    """The encoder with weights and a PCA file beside them, and torchvggish's own network with these weights. The last
    layer's outputs are about as large as the PCA expects."""
    folder = tmp_path_factory.mktemp("published")
    state = vggish.network.state_dict()
    state = {name: tensor * (0.1 if name.startswith("embeddings.4.") else 1) for name, tensor in state.items()}
    torch.save(state, folder / "vggish.pt")
    torch.save(pca, folder / PCA_FILE)
    reference = torchvggish.VGG(torchvggish.make_layers(), postprocess=False).eval()
    reference.load_state_dict(state)
    return load_encoder("vggish_hop096_pca", str(folder / "vggish.pt")), reference


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), loudness=st.floats(1e-3, 1))
def test_pca_is_audiosets(published, pca, seed, loudness):
    """Oracle: the embedding before the last ReLU from torchvggish's own network, then NumPy."""
    encoder, reference = published
    seconds = (np.random.default_rng(seed).standard_normal((2, 16000)) * loudness).clip(-1, 1).astype("float32")
    before = []
    hook = reference.embeddings[4].register_forward_hook(lambda module, given, out: before.append(out.clone()))
    with torch.inference_mode():
        for second in seconds:
            reference(vggish_input.waveform_to_examples(second, 16000))
    hook.remove()
    raw = torch.cat(before)
    expected = audioset(raw.numpy(), pca["pca_eigen_vectors"], pca["pca_means"])
    found = encoder.encode(seconds)["embedding"].numpy()
    assert set(np.unique(found)) <= set(range(256)) and len(np.unique(expected)) > 10
    # Where a number is a hair from a whole one, float32 may fall on its other side.
    assert (np.abs(found - expected) <= 1).all() and (found == expected).mean() > 0.97
    rectified = audioset(raw.relu().numpy(), pca["pca_eigen_vectors"], pca["pca_means"])
    assert (found == rectified).mean() < 0.7, "the last ReLU makes a difference"


def test_the_pca_computes_in_float32_unless_told_otherwise():
    assert load_encoder("vggish_hop096_pca", "random").dtype == torch.float32
    assert load_encoder("vggish_hop096_pca", "random", dtype="bfloat16").dtype == torch.bfloat16
    assert load_encoder("vggish", "random").dtype == torch.bfloat16


def test_plain_embeddings_keep_the_last_relu(vggish, minute):
    assert vggish.encode(minute.reshape(61, 16000)[:4])["embedding"].min() == 0


@pytest.fixture(scope="module")
def weights_file(vggish, tmp_path_factory):
    """270 MB, written once; tests make links to it."""
    path = tmp_path_factory.mktemp("weights") / "vggish.pt"
    torch.save(vggish.network.state_dict(), path)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def downloads(offline, tmp_path, monkeypatch, weights_file, pca):
    """What torchvggish publishes, in torch.hub's cache, under names with the digits that these files have here."""
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    files = []
    torch.save(pca, tmp_path / "pca.pt")
    for setting, made in (("VGGISH_WEIGHTS", weights_file), ("PCA_PARAMS", tmp_path / "pca.pt")):
        files.append(folder / f"{setting.lower()}-{sha256(made)[:8]}.pth")
        files[-1].hardlink_to(made)
        monkeypatch.setattr(torchvggish, setting, f"https://example.org/{files[-1].name}")
    return files


def test_a_hub_tag_has_the_pca_file_too_and_its_hash_covers_both(downloads, offline):
    weights, pca_file = downloads
    encoder = load_encoder("vggish_hop096_pca", "torchvggish")
    both = hashlib.sha256((sha256(weights) + sha256(pca_file)).encode()).hexdigest()
    assert encoder.provenance["weights_sha256"] == both and encoder.provenance["weights"] == "torchvggish"
    assert load_encoder("vggish", "torchvggish").provenance["weights_sha256"] == sha256(weights)
    for given_sha256 in (both, sha256(weights)):  # what a features file records, or what sha256sum says of the weights
        load_encoder("vggish_hop096_pca", "torchvggish", sha256=given_sha256)
    with pytest.raises(EncoderError, match="sha256 is"):
        load_encoder("vggish_hop096_pca", "torchvggish", sha256=sha256(pca_file))
    assert fetch_weights("vggish_hop096_pca", "torchvggish") == downloads
    assert fetch_weights("vggish_hop096", "torchvggish") == [weights]
    assert offline == []
    pca_file.unlink()
    with pytest.raises(EncoderError, match=rf"weights {pca_file.name} cannot be downloaded"):
        fetch_weights("vggish_hop096_pca", "torchvggish")


def test_the_file_beside_local_weights_is_named_as_torchvggishs_download():
    assert torchvggish.PCA_PARAMS.endswith(f"/{PCA_FILE}")


def test_the_pca_may_be_in_the_weights_file_or_beside_it(vggish, weights_file, pca, tmp_path):
    path = tmp_path / "mine.pt"
    torch.save(vggish.network.state_dict() | pca, path)
    of_one = load_encoder("vggish_hop096_pca", str(path))
    assert of_one.provenance["weights_sha256"] == sha256(path)
    path.unlink()
    path.hardlink_to(weights_file)
    with pytest.raises(EncoderError, match=rf"mine\.pt: has no pca_eigen_vectors and pca_means; put {PCA_FILE} beside"):
        load_encoder("vggish_hop096_pca", str(path))
    torch.save({name: values.reshape(1, -1) for name, values in pca.items()}, tmp_path / PCA_FILE)  # any shape
    of_two = load_encoder("vggish_hop096_pca", str(path))
    assert of_two.provenance["weights_sha256"] not in (sha256(path), of_one.provenance["weights_sha256"])
    audio = np.random.default_rng(0).standard_normal((2, 16000)).astype("float32")
    assert torch.equal(of_one.encode(audio)["embedding"], of_two.encode(audio)["embedding"])


@pytest.mark.parametrize("content", [b"x" * 50, {"pca_means": np.zeros(128)}, {"a": 1}])
def test_a_wrong_pca_file_is_named_and_not_the_weights(weights_file, tmp_path, content):
    (tmp_path / "mine.pt").hardlink_to(weights_file)
    wrong = tmp_path / PCA_FILE
    wrong.write_bytes(content) if isinstance(content, bytes) else torch.save(content, wrong)
    with pytest.raises(EncoderError, match=f"weights {wrong}: ") as error:
        load_encoder("vggish_hop096_pca", str(tmp_path / "mine.pt"))
    assert "mine.pt" not in str(error.value)
