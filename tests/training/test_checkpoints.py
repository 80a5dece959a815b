"""Checkpoints come back as they were saved, or say what is wrong with them."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fda_jax.training.checkpoints import CheckpointError, Checkpoints
from fda_jax.training.metrics import Metrics
from fda_jax.training.state import TrainState

OPTIMIZER = optax.sgd(0.1, 0.9)


def a_state(seed=0, width=300, with_ema=False):
    kernel = jax.random.normal(jax.random.key(seed), (width, 3))
    params = {"conv": {"latent_kernel": kernel}, "dense": {"bias": jnp.zeros((2,))}}
    return TrainState(
        step=jnp.int32(7),
        params=params,
        batch_stats={"norm": {"mean": jnp.ones((3,))}},
        opt_state=OPTIMIZER.init(params),
        ema={"params": params} if with_ema else {},
    )


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def checkpoints(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints")
    yield store
    store.close()


@pytest.mark.parametrize("with_ema", [False, True])
def test_a_checkpoint_comes_back_bit_for_bit(checkpoints, with_ema):
    tree = (a_state(with_ema=with_ema), Metrics.zero())
    checkpoints.save(7, tree, {"seconds": 1.5})
    like = (a_state(seed=1, with_ema=with_ema), Metrics.zero())
    restored, notes = checkpoints.restore(like, 7)
    assert_same(restored, tree)
    assert notes == {"seconds": 1.5}


def test_the_last_and_the_best_are_kept_and_nothing_else(checkpoints):
    for step, accuracy in ((1, 0.5), (2, None), (3, 0.8), (4, None), (5, None)):
        checkpoints.save(step, a_state(step), {}, new_best=accuracy)
    kept = sorted(int(path.name) for path in checkpoints.folder.iterdir())
    assert kept == [3, 5]
    assert checkpoints.latest_step() == 5
    assert checkpoints.best_step() == 3


def test_the_choice_of_last_and_best_survives_a_restart(checkpoints):
    checkpoints.save(1, a_state(1), {}, new_best=0.9)
    checkpoints.save(2, a_state(2), {})
    again = Checkpoints(checkpoints.folder)
    again.save(3, a_state(3), {})
    assert (again.latest_step(), again.best_step()) == (3, 1)
    again.close()


def test_a_kill_while_an_old_checkpoint_is_removed_harms_no_other(tmp_path, monkeypatch):
    class Killed(BaseException):
        """What no handler catches."""

    def killed(path: object, *_: object, **__: object) -> None:
        for part in Path(str(path)).rglob("description"):
            remove(part)
            raise Killed

    remove = shutil.rmtree
    store = Checkpoints(tmp_path)
    for step, accuracy in ((1, 0.5), (2, None)):
        store.save(step, a_state(step), {}, new_best=accuracy)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        store.save(3, a_state(3), {})
    monkeypatch.undo()
    again = Checkpoints(tmp_path)
    assert (again.latest_step(), again.best_step()) == (3, 1)
    again.save(4, a_state(4), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "4"]
    for step in (1, 4):
        assert_same(again.restore(a_state(), step)[0], a_state(step))


def test_a_step_that_is_there_already_is_left_as_it_is(checkpoints):
    checkpoints.save(1, a_state(1), {"seconds": 1})
    checkpoints.save(1, a_state(2), {"seconds": 2})
    restored, notes = checkpoints.restore(a_state(), 1)
    assert_same(restored, a_state(1))
    assert notes == {"seconds": 1}


def test_a_checkpoint_of_another_network_is_refused_by_the_first_difference(checkpoints):
    checkpoints.save(1, a_state(width=300), {})
    with pytest.raises(CheckpointError, match="another network") as error:
        checkpoints.restore(a_state(width=4), 1)
    assert "float32[300, 3]" in str(error.value)
    assert "float32[4, 3]" in str(error.value)
    assert "--workdir" in str(error.value)


def test_a_missing_part_and_another_dtype_are_another_network_too(checkpoints):
    checkpoints.save(1, a_state(), {})
    with pytest.raises(CheckpointError, match="nothing"):
        checkpoints.restore(a_state(with_ema=True), 1)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), a_state())
    with pytest.raises(CheckpointError, match="bfloat16"):
        checkpoints.restore(half, 1)


def test_every_file_of_a_checkpoint_cut_short_or_altered_is_noticed_or_harmless(tmp_path):
    store = Checkpoints(tmp_path / "whole")
    tree = a_state()
    store.save(1, tree, {})
    store.close()
    noticed = 0
    files = [path.relative_to(store.folder) for path in store.folder.rglob("*") if path.is_file()]
    for number, name in enumerate(files):
        for kind in ("cut", "altered"):
            folder = tmp_path / f"{kind}{number}"
            shutil.copytree(store.folder, folder)
            content = (folder / name).read_bytes()
            middle = len(content) // 2
            if kind == "cut":
                content = content[:middle]
            else:
                content = content[:middle] + bytes(b ^ 0x55 for b in content[middle:])
            (folder / name).write_bytes(content)
            problem = ""
            try:
                damaged = Checkpoints(folder)
                restored, _ = damaged.restore(a_state(seed=1), 1)
                damaged.close()
                assert_same(restored, tree)  # a file that holds nothing of ours
            except CheckpointError as error:
                noticed += 1
                problem = str(error)
            assert not problem or (str(folder) in problem and "--workdir" in problem)
    assert noticed >= 4


@pytest.mark.parametrize("name", ["a[1]", "a\\b"])
def test_a_folder_that_would_give_nothing_back_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot be read again: choose a --workdir without"):
        Checkpoints(tmp_path / name / "run")
    assert not (tmp_path / name).exists()
    (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / name)
    for harmless in (tmp_path / "link", tmp_path / "a[" / "*?", tmp_path / "a]"):
        store = Checkpoints(harmless)
        store.save(1, a_state(), {})
        assert_same(store.restore(a_state(1), 1)[0], a_state())
        store.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be made \(File exists\): move"):
        Checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("is_known_before", [False, True])
def test_a_full_disk_is_reported_and_the_checkpoints_before_it_are_untouched(
    checkpoints, monkeypatch, is_known_before
):
    checkpoints.save(1, a_state(1), {})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    words = "No space left on device"
    monkeypatch.setattr(checkpoints._manager, "save", full)
    if is_known_before:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000))
        words = "it takes 7,[0-9]{3} bytes, and 5,000 are free"
    with pytest.raises(CheckpointError, match=words) as error:
        checkpoints.save(2, a_state(2), {})
    assert "free some space" in str(error.value)
    restored, _ = Checkpoints(checkpoints.folder).restore(a_state(), 1)
    assert_same(restored, a_state(1))
