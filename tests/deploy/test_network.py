"""The file of a network: written whole or not at all, read or refused in words."""

import dataclasses
import json
import pickle
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from fda_jax import deploy
from fda_jax.deploy.network import write_whole
from fda_jax.layers import make_method
from tests.deploy.test_freezing import SHAPE, can_count, frozen, pictures, tiny, trained


@pytest.fixture(scope="module")
def network():
    key = jax.random.key(3)
    model = tiny(method=make_method("fda"))
    return frozen(model, trained(model, SHAPE, key), SHAPE)


@pytest.fixture
def path(network, tmp_path):
    network.save(tmp_path / "net.npz")
    return tmp_path / "net.npz"


def test_a_network_that_is_read_answers_as_the_one_that_was_written(network, path, key):
    read = deploy.load(path)
    assert read.facts == network.facts
    assert read.program == network.program
    np.testing.assert_array_equal(read(pictures(SHAPE, key)), network(pictures(SHAPE, key)))


@pytest.mark.parametrize("arithmetic", ["bits", "real"] if can_count else ["real"])
def test_a_network_may_be_called_first_within_a_compiled_function(path, key, arithmetic):
    images = pictures(SHAPE, key)
    wanted = deploy.load(path, arithmetic=arithmetic)(images)
    read = deploy.load(path, arithmetic=arithmetic)
    inside = jax.jit(lambda images: read(images))(images)
    np.testing.assert_allclose(inside, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(read(images), wanted)
    np.testing.assert_allclose(jax.jit(read)(images), wanted, rtol=1e-5, atol=1e-6)
    assert read.weights().keys() == read.facts["binary"].keys()


def test_a_network_that_was_called_can_be_pickled_and_is_only_itself(network, key):
    images = pictures(SHAPE, key)
    wanted = network(images)
    again = pickle.loads(pickle.dumps(network))
    np.testing.assert_array_equal(again(images), wanted)
    assert len({network, again, network}) == 2


def test_a_network_is_shown_in_a_line(network, path):
    read = dataclasses.replace(network, facts={**network.facts, "network": "tiny", "method": "fda"})
    assert repr(read).startswith(f"<PackedNetwork tiny, fda; images {SHAPE}; ")
    layers, size = len(network.facts["binary"]), network.sizes()["binary"]
    assert f"; {layers} binary layers, {size:,} bytes; " in repr(network)
    assert len(repr(deploy.load(path))) < 200


def test_the_same_network_is_the_same_file(network, path):
    network.save(path.with_name("again.npz"))
    assert path.read_bytes() == path.with_name("again.npz").read_bytes()


def test_batches_of_any_size_are_taken(network, key):
    images = pictures(SHAPE, key, 7)
    together = np.asarray(network(images))
    for number in (1, 3):
        np.testing.assert_allclose(network(images[:number]), together[:number], rtol=1e-5)


@pytest.mark.parametrize("program", ["program", "bit_program"])
def test_a_program_that_this_jax_cannot_read_is_refused_with_both_versions(network, key, program):
    written = getattr(network, program)
    start = written.index(b"ML\xefR")  # of MLIR's bytecode
    later = written[: start + 4] + b"\xff" * 64 + written[start + 68 :]
    facts = {**network.facts, "jax": "99.1"}
    arithmetic = "bits" if program == "bit_program" else "real"
    unread = dataclasses.replace(network, facts=facts, arithmetic=arithmetic, **{program: later})
    message = rf"JAX {jax.__version__} cannot read the network's program, which JAX 99\.1 wrote"
    with pytest.raises(ValueError, match=message):
        unread(pictures(SHAPE, key))


def test_a_program_that_is_none_is_refused(network, key):
    for program in (b"", bytes(100)):
        unread = dataclasses.replace(network, program=program, arithmetic="real")
        with pytest.raises(ValueError, match="cannot read the network's program"):
            unread(pictures(SHAPE, key))


def test_a_file_that_exists_is_left_alone(network, path):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"net\.npz exists already: choose another"):
        network.save(path)
    assert path.read_bytes() == before


def test_of_two_that_write_one_name_at_once_one_is_refused(tmp_path):
    both = threading.Barrier(2)

    def written(letter):
        def write(file):
            file.write(letter)
            both.wait(10)
            file.write(letter)

        try:
            write_whole(tmp_path / "file", write)
        except FileExistsError:
            return b""
        return 2 * letter

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(written, (b"a", b"b")))
    assert answers == [b"", (tmp_path / "file").read_bytes()]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_leaves_nothing_behind(network, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        network.save(tmp_path / "net.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), r"float32 of shape \(2, 8, 8, 1\).*uint8"),
        (
            np.zeros((2, 9, 8, 1), np.uint8),
            r"\(batch, 8, 8, 1\), at least one: resize",
        ),
        (np.zeros((8, 8, 1), np.uint8), r"\(8, 8, 1\).*\(batch, 8, 8, 1\)"),
        ([1, 2], r"images are list of shape \(2,\)"),
        (np.zeros((0, 8, 8, 1), np.uint8), r"\(0, 8, 8, 1\).*at least one"),
    ],
)
def test_images_that_do_not_fit_are_refused(network, images, words):
    with pytest.raises(ValueError, match=words):
        network(images)


def test_a_damaged_file_is_refused(path):
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no archive", whole[:60] + whole[80:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"net\.npz is no packed network, or it is damaged"):
            deploy.load(path)


def test_whatever_bits_are_turned_over_it_is_read_or_refused_in_words(path):
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = whole.copy()
        damaged[random.integers(len(whole), size=2)] ^= np.uint8(1 << random.integers(8))
        path.write_bytes(damaged.tobytes())
        try:
            deploy.load(path)
        except ValueError as error:
            assert "damaged" in str(error) or "of format" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 100


LAYER = "stage1_block1/conv1"


@pytest.mark.parametrize(
    ("facts", "arrays", "words"),
    [
        ({}, {f"{LAYER}/planes": np.zeros((1, 13), np.uint8)}, "conv1/planes has shape"),
        ({}, {f"{LAYER}/levels": np.zeros((2, 3), np.float32)}, "conv1/levels has shape"),
        ({"image_shape": [8, 8]}, {}, "is no packed network"),
        ({"image_shape": ["a", 8, 1]}, {}, r"image_shape is \['a', 8, 1\] instead of height"),
        ({"kernels": None}, {}, "kernels is None instead of a list of names"),
        ({"kernels": [{}]}, {}, "is no packed network"),
        ({"binary": None}, {}, "is no packed network"),
        ({}, {"params/stem/kernel": np.array(["a"])}, "stem/kernel holds <U1 instead of numbers"),
        ({}, {f"{LAYER}/planes": np.zeros((1, 18))}, "conv1/planes holds no bytes"),
        ({"binary": {"other": {"shape": [3], "bits": 1}}}, {}, "other/planes"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(network, tmp_path, facts, arrays, words):
    broken = dataclasses.replace(
        network, facts={**network.facts, **facts}, arrays={**network.arrays, **arrays}
    )
    broken.save(tmp_path / "broken.npz")
    with pytest.raises(ValueError, match=words):
        deploy.load(tmp_path / "broken.npz")


@pytest.mark.parametrize("arithmetic", ["bits", "real"] if can_count else ["real"])
@pytest.mark.parametrize(
    ("facts", "arrays", "words"),
    [
        ({}, {"params/stem/kernel": np.zeros((3, 3), np.float32)}, "holds float32.3, 3.: export"),
        ({}, {"params/more": np.zeros(3, np.float32)}, "takes nothing as params/more"),
        (
            {"binary": {}},
            {f"{LAYER}/planes": np.zeros((1, 3), np.uint8)},
            "the network's program takes",
        ),
        ({"image_shape": [9, 8, 1]}, {}, "takes uint8.8, 8, 1. as images, but the"),
    ],
)
def test_a_program_of_other_arrays_is_refused_in_words(network, facts, arrays, words, arithmetic):
    broken = dataclasses.replace(
        network,
        facts={**network.facts, **facts},
        arrays={**network.arrays, **arrays},
        arithmetic=arithmetic,
    )
    images = np.zeros((1, *broken.facts["image_shape"]), np.uint8)
    with pytest.raises(ValueError, match=words):
        broken(images)


def test_another_archive_is_refused(path):
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(ValueError, match="is no packed network"):
        deploy.load(path)


def test_a_model_for_onnx_runtime_is_called_what_it_is(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"a graph")
    with pytest.raises(ValueError, match=r"net\.onnx is an ONNX model by its name.*\.npz"):
        deploy.load(tmp_path / "net.onnx")
    with pytest.raises(FileNotFoundError):
        deploy.load(tmp_path / "none.onnx")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        deploy.load(tmp_path / "none.npz")


def test_a_later_format_is_refused(network, tmp_path):
    later = dataclasses.replace(network, facts={**network.facts, "format": 3})
    later.save(tmp_path / "later.npz")
    with pytest.raises(ValueError, match=r"of format 3, but this version reads formats up to 2"):
        deploy.load(tmp_path / "later.npz")


def test_a_bit_that_is_turned_over_is_noticed(path):
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("stage1_block1/conv1/planes.npy")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + 200] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        deploy.load(path)


WITHOUT_THE_PACKAGE = """
import json, sys
import jax, numpy as np
from jax import export

sys.modules["fda_jax"] = None  # importing it would fail
NOT_ARRAYS = ("facts", "program", "bit_program")
file = np.load(sys.argv[1])
facts = json.loads(file["facts"].tobytes())
arrays = {name: file[name] for name in file.files if name not in NOT_ARRAYS}
program = export.deserialize(bytearray(file["program"].tobytes()))
images = np.load(sys.argv[2])
np.save(sys.argv[3], jax.jit(program.call)(arrays, images))
print(json.dumps(facts["image_shape"]))
"""


def test_a_file_runs_where_there_is_no_fda_jax(network, path, tmp_path, key):
    images = pictures(SHAPE, key)
    np.save(tmp_path / "images.npy", images)
    words = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(json.loads(done.stdout)) == SHAPE
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), network(images), rtol=1e-5)
