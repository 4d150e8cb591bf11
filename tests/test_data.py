"""Data sets: what files and caches must be, what is refused, and class-balanced parts."""

import gzip
import pickle
import struct
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest

import sdelens as sl
from sdelens.data import _openml, is_text

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 28, 28), np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 10


def idx(array, code=0x08):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, images=None, labels=None, stem="train", mark="-", compress=False):
    images, labels = (idx(IMAGES) if images is None else images), (idx(LABELS) if labels is None else labels)
    pack, ending = (gzip.compress, ".gz") if compress else (bytes, "")
    (folder / f"{stem}-images{mark}idx3-ubyte{ending}").write_bytes(pack(images))
    (folder / f"{stem}-labels{mark}idx1-ubyte{ending}").write_bytes(pack(labels))


def write_cifar(folder, records, names=None):
    names = names or [*[f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"]
    folder.mkdir(exist_ok=True)
    for name, rows in zip(names, records, strict=True):
        (folder / name).write_bytes(rows.tobytes())


def cifar_records(count=2):
    records = RNG.integers(0, 256, (6, count, 3073), np.uint8)
    records[:, :, 0] %= 10
    return records


def test_the_bundled_sets():
    features, labels = sl.load_dataset("breast-cancer")
    assert features.shape == (569, 30)
    assert set(labels) == {0, 1}
    digits = sl.load_dataset("digits")
    assert digits.features.shape == (1797, 8, 8, 1)
    assert digits.features.max() == 16
    assert digits.classes == 10


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_plain_and_compressed(tmp_path, mark, compress):
    write_idx(tmp_path, mark=mark, compress=compress)
    write_idx(tmp_path, idx(IMAGES[:7]), idx(LABELS[:7]), "t10k", mark, compress)
    features, labels = sl.load_dataset("mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(features[..., 0], IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert len(sl.load_dataset("fashion-mnist", data_dir=str(tmp_path), split="test").labels) == 7


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(IMAGES)[:-1], None, "images.* contains 23519 bytes, but its header says 23520"),
        (idx(IMAGES) + b"x", None, "images.* contains more bytes"),
        (idx(IMAGES)[:9], None, "images.* ends within its header"),
        (b"", None, "images.* begins with nothing, not 00000803"),
        (idx(IMAGES, 0x0D), None, "images.* begins with 00000d03, not 00000803"),
        (None, idx(IMAGES), "labels.* begins with 00000803, not 00000801"),
        (None, idx(LABELS[:-1]), "30 images, .*labels.* 29 labels"),
        (idx(IMAGES[:0]), idx(LABELS[:0]), "contains 0 images"),
        (idx(IMAGES[:, :27]), None, r"images of \(27, 28\) pixels"),
        (None, idx(LABELS + 1), "contains the label 10"),
        (gzip.compress(idx(IMAGES))[:-2000], None, "images.* is incomplete or damaged"),
    ],
)
def test_idx_files_that_are_none(tmp_path, images, labels, message):
    write_idx(tmp_path, images, labels)
    with pytest.raises(ValueError, match=message):
        sl.load_dataset("mnist", data_dir=tmp_path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no file train-images-idx3-ubyte or train-images.*; it is empty"):
        sl.load_dataset("mnist", data_dir=tmp_path)
    with pytest.raises(NotADirectoryError, match=r"none' does not exist; give the folder that contains the files of"):
        sl.load_dataset("mnist", data_dir=tmp_path / "none")
    (tmp_path / "inner").mkdir()
    for number in range(7):
        (tmp_path / f"file{number}").touch()
    with pytest.raises(NotADirectoryError, match=r"file1' is a file; give the folder"):
        sl.load_dataset("mnist", data_dir=tmp_path / "file1")
    listed = (
        "it contains file0, file1, file2, file3, file4, file5 and 2 more. Folders in it that were tried: raw, FashionM"
    )
    with pytest.raises(FileNotFoundError, match=listed):
        sl.load_dataset("fashion-mnist", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no file data_batch_1.bin or data_batch_1; .*tried: cifar-10-b"):
        sl.load_dataset("cifar-10", data_dir=tmp_path)
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no file train-labels-idx1-ubyte or .* beside the images"):
        sl.load_dataset("mnist", data_dir=tmp_path)


def test_the_folders_of_torchvision_are_read(tmp_path):
    """One root for both data sets, whose files have equal names; so have the folders above the files."""
    for own, count in (("MNIST", 30), ("FashionMNIST", 20)):
        (tmp_path / own / "raw").mkdir(parents=True)
        write_idx(tmp_path / own / "raw", idx(IMAGES[:count]), idx(LABELS[:count]), compress=own == "MNIST")
    for name, own, count in (("mnist", "MNIST", 30), ("fashion-mnist", "FashionMNIST", 20)):
        for folder in (tmp_path, tmp_path / own, tmp_path / own / "raw"):
            assert len(sl.load_dataset(name, data_dir=folder).labels) == count
    for folder in (tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        with pytest.raises(
            ValueError, match=r"MNIST/raw' is torchvision's folder of another data set than fashion-mni"
        ):
            sl.load_dataset("fashion-mnist", data_dir=folder)


@pytest.mark.parametrize("inner", [False, True])
def test_cifar_is_read_from_its_binary_version(tmp_path, inner):
    records = cifar_records()
    write_cifar(tmp_path / "cifar-10-batches-bin" if inner else tmp_path, records)
    features, labels = sl.load_dataset("cifar-10", data_dir=tmp_path)
    assert features.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(labels, records[:5, :, 0].ravel())
    image, row, column, channel = 3, 5, 7, 2
    assert features[image, row, column, channel] == records[1, 1, 1 + channel * 1024 + row * 32 + column]
    assert sl.load_dataset("cifar-10", data_dir=tmp_path, split="test").features.shape == (2, 32, 32, 3)


def test_cifar_files_that_are_none(tmp_path):
    records = cifar_records()
    write_cifar(tmp_path, records)
    (tmp_path / "data_batch_3.bin").write_bytes(records[2].tobytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3.bin' has 6145 bytes, which is not a multiple of 3073"):
        sl.load_dataset("cifar-10", data_dir=tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(records[2, :1].tobytes())
    with pytest.raises(ValueError, match=r"data_batch_3.bin' contains 1 images, but data_batch_1.bin contains 2"):
        sl.load_dataset("cifar-10", data_dir=tmp_path)
    records[5, 1, 0] = 10
    (tmp_path / "test_batch.bin").write_bytes(records[5].tobytes())
    with pytest.raises(ValueError, match=r"test_batch.bin' contains the label 10"):
        sl.load_dataset("cifar-10", data_dir=tmp_path, split="test")


def text2(content):
    """A byte string as Python 2 pickles it."""
    return b"T" + struct.pack("<I", len(content)) + content


def pickled_batch(pixels, labels, names=(b"numpy.core.multiarray\n_reconstruct", b"numpy\ndtype")):
    """A batch as Python 2 and NumPy 1 wrote it, instruction by instruction."""
    dtype = b"c" + names[1] + b"\n" + text2(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text2(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    shape = b"".join(b"J" + struct.pack("<i", size) for size in pixels.shape) + b"\x86"
    array = b"c" + names[0] + b"\ncnumpy\nndarray\nK\x00\x85" + text2(b"b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89" + text2(pixels.tobytes()) + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text2(b"labels") + listed + text2(b"data") + array + b"u."


def test_cifar_is_read_from_its_version_for_python(tmp_path):
    records, folder = cifar_records(), tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, rows in zip(names, records, strict=True):
        (folder / name).write_bytes(pickled_batch(rows[:, 1:], rows[:, 0]))
    known = pickle.loads((folder / "test_batch").read_bytes(), encoding="bytes")  # by NumPy itself
    np.testing.assert_array_equal(known[b"data"], records[5, :, 1:])
    write_cifar(tmp_path / "binary", records)
    for split in ("train", "test"):
        binary = sl.load_dataset("cifar-10", data_dir=tmp_path / "binary", split=split)
        for place in (tmp_path, folder):
            for a, b in zip(binary, sl.load_dataset("cifar-10", data_dir=place, split=split), strict=True):
                np.testing.assert_array_equal(a, b)
    (folder / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match="has no file data_batch_4, but data_batch_1"):
        sl.load_dataset("cifar-10", data_dir=tmp_path)


CALLS = (b"numpy.core.multiarray\n_reconstruct", b"os\nsystem")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled_batch(IMAGES[:2, 0], [1, 2], CALLS), r"it names os\.system, which no batch of CIFAR does"),
        (pickle.dumps({b"data": IMAGES[:2, 0]}), r"version for Python, or damaged"),
        (pickled_batch(IMAGES[:2, 0], [1, 2])[:-20], "or damaged .*; download it again"),
        (pickled_batch(IMAGES[:2, 0], [1, 2]).replace(b"labels", b"Labels"), "it has no b'labels'"),
        (pickled_batch(IMAGES[:2, 0], [1, 2]).replace(b"u1", b"f4"), "does not consist of unsigned bytes"),
        (b"never read", "or damaged"),
        (pickled_batch(IMAGES[:2, 0], [1, 2]), r"contains an array of shape \(2, 28\) and 2 labels, not rows of 3072"),
        (
            pickled_batch(np.zeros((2, 3072), np.uint8), [1, 12]),
            "contains the label 12, but CIFAR-10's labels are 0 to",
        ),
    ],
)
def test_batches_that_are_none_are_refused_and_not_executed(tmp_path, content, message):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sl.load_dataset("cifar-10", data_dir=tmp_path, split="test")


@pytest.fixture
def openml(tmp_path, monkeypatch):
    """A small OpenML of three rows to train and two to test, that counts what is fetched, and an empty cache."""
    calls = []

    def fetch(name, version, as_frame, cache):
        calls.append((name, version))
        rows = np.arange(5 * 3072).reshape(5, 3072) % 251
        return SimpleNamespace(data=rows.astype(float), target=np.array(list("01239"), object))

    small = _openml.Source("CIFAR_10", 1, (32, 32, 3), 3, 2, "its binary version")
    monkeypatch.setitem(_openml.SOURCES, "cifar-10", small)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    monkeypatch.setenv("SDELENS_DATA", str(tmp_path / "cache"))
    return calls


def test_openml_is_asked_once_and_its_order_is_kept(openml, tmp_path):
    first = sl.load_dataset("cifar-10")
    assert first.features.shape == (3, 32, 32, 3)
    assert first.features[1, 2, 3, 1] == (3072 + 1024 + 2 * 32 + 3) % 251
    np.testing.assert_array_equal(first.labels, [0, 1, 2])
    again, test = sl.load_dataset("cifar-10"), sl.load_dataset("cifar-10", split="test")
    np.testing.assert_array_equal(again.features, first.features)
    np.testing.assert_array_equal(test.labels, [3, 9])
    assert openml == [("CIFAR_10", 1)]


def test_a_damaged_cache_is_fetched_again(openml, tmp_path):
    first = sl.load_dataset("cifar-10")
    (file,) = (tmp_path / "cache").rglob("output.pkl")
    file.write_bytes(file.read_bytes()[:100])
    again = sl.load_dataset("cifar-10")
    np.testing.assert_array_equal(again.features, first.features)
    assert len(openml) == 2


def test_what_openml_should_not_send_is_not_kept(openml, tmp_path, monkeypatch):
    def fetch(*args, **kwargs):
        return SimpleNamespace(data=np.zeros((5, 3071)), target=np.zeros(5, int))

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    with pytest.raises(ValueError, match=r"sent cifar-10 with shape \(5, 3071\)"):
        sl.load_dataset("cifar-10")
    assert not list((tmp_path / "cache").rglob("output.pkl"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("mnist", "IDX files"), ("fashion-mnist", "dataset-fashion-mnist"), ("cifar-10", "data_batch_1.bin")],
)
def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch, name, hint):
    def fetch(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    monkeypatch.setenv("SDELENS_DATA", str(tmp_path))
    with pytest.raises(ConnectionError, match=rf"{name} cannot be fetched .*no route.*as data_dir: .*{hint}"):
        sl.load_dataset(name)


def test_subsets_are_balanced_nested_and_functions_of_the_seed():
    whole = sl.load_dataset("digits")
    small, large, other = (sl.load_dataset("digits", subset=n, seed=s) for n, s in ((43, 1), (100, 1), (43, 2)))
    counts = np.bincount(small.labels)
    assert (counts.min(), counts.max(), counts.sum()) == (4, 5, 43)
    rows = {image.tobytes() for image in large.features}
    assert all(image.tobytes() in rows for image in small.features)
    assert not np.array_equal(small.features, other.features)
    np.testing.assert_array_equal(whole.balanced(1797, 5).labels, whole.labels)
    most = np.bincount(sl.load_dataset("breast-cancer", subset=500).labels)
    np.testing.assert_array_equal(most, [212, 288])  # all there are of the smaller class


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sl.load_dataset("digits", subset=1798), "subset: got 1798; there are 1797 examples of 10 classes"),
        (lambda: sl.load_dataset("digits", subset=9), "give a number from 10 to 1797"),
        (lambda: sl.load_dataset("digits", split="test"), "split: got 'test', but digits has no test set"),
        (lambda: sl.load_dataset("digits", split="tset"), "Did you mean 'test'?"),
        (lambda: sl.load_dataset("digits", data_dir="x"), "data_dir: digits is not read from a folder"),
        (lambda: sl.load_dataset("digits", context=3), "context: digits is not a text"),
        (lambda: sl.load_dataset("cifar10"), "Did you mean 'cifar-10'?"),
        (lambda: sl.load_dataset("python-docs", subset=10**6), "subset: got 1000000, but there are"),
        (lambda: sl.load_dataset("python-docs", split="test"), "split: got 'test', but python-docs has no test set"),
    ],
)
def test_options_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        call()


def test_windows_of_a_text_predict_its_next_characters(tmp_path):
    file = tmp_path / "poem"
    file.write_text("abracadabra", encoding="utf-8")
    text = sl.load_text(file)
    assert text.vocabulary == tuple("abcdr")
    features, labels = text.windows(3)
    assert [text.decode(row) for row in features] == ["abr", "aca", "dab"]
    assert [text.decode(row) for row in labels] == ["bra", "cad", "abr"]
    assert len(text.windows(10).labels) == 1
    with pytest.raises(ValueError, match="context: got 11, but the text has only 11 characters"):
        text.windows(11)
    assert is_text(file)
    np.testing.assert_array_equal(sl.load_dataset(file, context=3, subset=3).features, features)
    part = sl.load_dataset(file, context=2, subset=2, seed=1)
    np.testing.assert_array_equal(sl.load_dataset(file, context=2, subset=2, seed=1).features, part.features)


def test_rare_characters_of_a_large_vocabulary_become_unknown(tmp_path):
    file = tmp_path / "many.txt"
    common = "".join(chr(0x4E00 + i) for i in range(255))
    file.write_text(common * 2 + "ab" + chr(0x1F600), encoding="utf-8")
    text = sl.load_text(file)
    assert text.vocabulary == (*common, "\ufffd")
    assert text.decode(text.codes) == common * 2 + "\ufffd" * 3


def test_files_that_are_no_texts(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt' is not encoded in UTF-8 \(byte 2: invalid continuation byte\)"):
        sl.load_text(file)
    file.write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="has 1 characters"):
        sl.load_dataset(str(file))
    with pytest.raises(FileNotFoundError, match="the file 'none"):
        sl.load_dataset("none.txt")


def test_pythons_own_texts_are_there():
    text = sl.load_text()
    assert len(text.codes) > 200_000
    assert text.codes.max() == len(text.vocabulary) - 1
    features, labels = sl.load_dataset("python-docs", subset=5, context=7)
    np.testing.assert_array_equal(features[:, 1:], labels[:, :-1])
