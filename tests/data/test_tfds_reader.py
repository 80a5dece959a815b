"""tensorflow-datasets without TensorFlow: mocked, and prepared for real in a tiny form."""

import io
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fda_jax.data import ArraySplit, DataError, StreamSplit, load, tfds_reader

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("importlib_resources")
pillow = pytest.importorskip("PIL.Image")


def mocked(num_examples: int) -> AbstractContextManager[Any]:
    policy = tfds.testing.MockPolicy.USE_CODE
    return tfds.testing.mock_data(num_examples=num_examples, policy=policy)


def test_a_small_data_set_of_one_shape_becomes_resident(tmp_path: Path) -> None:
    with mocked(11):
        dataset = load("tfds:cifar10", dir=tmp_path, num_threads=2)
    assert isinstance(dataset.train, ArraySplit)
    assert dataset.train.images.shape == (11, 32, 32, 3)
    assert dataset.train.labels.dtype == np.int32
    assert (dataset.name, dataset.num_classes) == ("tfds:cifar10", 10)
    assert dataset.mean == (0.485, 0.456, 0.406)


def test_grey_images_keep_one_channel_and_known_statistics(tmp_path: Path) -> None:
    with mocked(5):
        dataset = load("tfds:mnist", dir=tmp_path, num_threads=0)
    assert dataset.image_shape_hwc == (28, 28, 1)
    assert (dataset.mean, dataset.std) == ((0.1307,), (0.3081,))


def test_images_of_many_shapes_are_streamed_at_the_size_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("grain")
    with mocked(9):
        dataset = load("tfds:imagenet2012", dir=tmp_path, image_size=24, num_threads=2)
        train = dataset.train
        assert isinstance(train, StreamSplit)
        assert train.labels is None
        chunks = [(np.array([3, -1, 0]), np.arange(3)), (np.array([8]), np.array([3]))]
        out = list(train.stream(chunks, seed=0, train=True))
    assert [images.shape for images, _ in out] == [(3, 24, 24, 3), (1, 24, 24, 3)]
    assert dataset.num_classes == 1000
    assert not out[0][0][1].any()


@pytest.mark.parametrize(("limit", "value"), [("EXAMPLES", 9), ("BYTES", 20 * 784 - 1)])
def test_a_data_set_above_either_limit_is_streamed_in_rgb(
    limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grain")
    monkeypatch.setattr(tfds_reader, f"MAX_RESIDENT_{limit}", value)
    with mocked(10):
        dataset = load("tfds:mnist", dir=tmp_path, image_size=14, num_threads=1)
        assert isinstance(dataset.train, StreamSplit)
        ((images, _),) = dataset.train.stream([(np.arange(2), np.arange(2))], seed=0, train=False)
    assert images.shape == (2, 14, 14, 3)
    assert dataset.image_shape_hwc == (14, 14, 3)
    assert len(dataset.mean) == 3


def test_a_data_set_that_is_not_prepared_is_answered_with_how_to(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load("tfds:mnist", dir=tmp_path)
    message = str(caught.value)
    assert f"tfds.builder('mnist', data_dir={str(tmp_path)!r}" in message
    assert "file_format='array_record').download_and_prepare()" in message
    assert "pip install 'fda_jax[tfds-prepare]'" in message


def test_an_unknown_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set 'cifar11'"):
        load("tfds:cifar11", dir=tmp_path)


def prepare(root: Path, splits: dict[str, list[int]], num_classes: int = 3) -> dict[str, list]:
    """Writes a prepared data set "tiny" as tfds would, but without TensorFlow."""
    array_record = pytest.importorskip("array_record.python.array_record_module")
    protos = pytest.importorskip("tensorflow_datasets.proto.tf_example_generated_pb2")
    features = pytest.importorskip("tensorflow_datasets.proto.tf_feature_generated_pb2")
    folder = root / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    rng, infos, pixels = np.random.default_rng(0), [], {}
    for split, labels in splits.items():
        pixels[split] = rng.integers(0, 256, (len(labels), 6, 5, 3), dtype=np.uint8)
        path = folder / f"tiny-{split}.array_record-00000-of-00001"
        writer = array_record.ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(pixels[split], labels, strict=True):
            buffer = io.BytesIO()
            pillow.fromarray(image).save(buffer, "png")
            example = protos.Example()
            content = {
                "image": features.Feature(bytes_list=features.BytesList(value=[buffer.getvalue()])),
                "label": features.Feature(int64_list=features.Int64List(value=[label])),
            }
            for key, feature in content.items():
                example.features.feature[key].CopyFrom(feature)
            writer.write(example.SerializeToString())
        writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(labels)], num_bytes=path.stat().st_size
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(6, 5, 3)),
                "label": tfds.features.ClassLabel(names=["red", "green", "blue"][:num_classes]),
            }
        ),
        split_infos=infos,
        supervised_keys=("image", "label"),
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
    )
    return pixels


@pytest.mark.parametrize("eval_split", ["test", "validation"])
def test_a_prepared_data_set_is_read_without_tensorflow(tmp_path: Path, eval_split: str) -> None:
    pixels = prepare(tmp_path, {"train": [0, 2, 1, 2], eval_split: [1, 0]})
    dataset = load("tfds:tiny", dir=tmp_path, num_threads=2)
    assert isinstance(dataset.train, ArraySplit)
    assert isinstance(dataset.test, ArraySplit)
    np.testing.assert_array_equal(dataset.train.images, pixels["train"])
    np.testing.assert_array_equal(dataset.test.images, pixels[eval_split])
    assert dataset.train.labels.tolist() == [0, 2, 1, 2]
    assert dataset.test.labels.tolist() == [1, 0]
    assert dataset.classes == ("red", "green", "blue")
    assert "tensorflow" not in sys.modules


def test_labels_that_name_no_class_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path, {"train": [0, 1], "test": [-1, -1]})
    with pytest.raises(DataError, match=r"label -1 of example 0 is outside 0..2"):
        load("tfds:tiny", dir=tmp_path)


def test_a_data_set_with_nothing_to_test_on_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, {"train": [0, 1]})
    with pytest.raises(DataError, match=r"splits \['train'\]"):
        load("tfds:tiny", dir=tmp_path)
