"""Compiled programs on disk: kept, found again, and never in the way of a run."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fda_jax.experiment import compilation
from tests.conftest import REPOSITORY

# Of JAX's variables those that say where programs are kept, and which.
VARIABLES = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")

# Prints a result and how many programs were found on disk.
PROGRAM = """
import jax
from fda_jax.experiment.compilation import keep_programs

found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
keep_programs()
print(jax.jit(lambda x: 2 * x + 1)(20.0), sum("cache_hits" in event for event in found))
"""


def run(cache_home):
    """What the program prints, and what it says on the side."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        env={**unset, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache_home)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split(), done.stderr


@pytest.fixture
def unset(monkeypatch):
    """JAX's settings as a new process has them; what they were comes back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.slow
def test_a_second_process_finds_the_programs_and_a_damaged_one_is_compiled_anew(tmp_path):
    assert run(tmp_path) == (["41.0", "0"], "")
    (answer, found), said = run(tmp_path)
    assert (answer, said) == ("41.0", "")
    assert int(found) > 0
    files = [path for path in (tmp_path / "fda_jax" / "xla").rglob("*-cache") if path.is_file()]
    assert files
    for number, path in enumerate(files):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * (number % 3) // 3])
    (answer, found), said = run(tmp_path)
    assert (answer, found) == ("41.0", "0")
    assert "Error reading persistent compilation cache entry" in said


@pytest.mark.slow
def test_a_folder_that_cannot_be_used_costs_a_line_and_not_the_run(tmp_path):
    (tmp_path / "fda_jax").write_text("a file stands where the folder should")
    answers, said = run(tmp_path)
    assert answers == ["41.0", "0"]
    assert "not kept" in said
    assert str(tmp_path / "fda_jax") in said
    assert said.count("\n") == 1


def test_a_full_disk_is_met_before_anything_is_written(tmp_path, monkeypatch, capsys, unset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compilation.tempfile, "TemporaryFile", full)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize("chosen", ["", "/somewhere/else"])
def test_what_the_user_chose_stays(chosen, tmp_path, monkeypatch, unset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", chosen)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir == chosen
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    assert not list(tmp_path.iterdir())


def test_the_folder_is_the_users_own(tmp_path, monkeypatch, unset):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.keep_programs()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder == tmp_path / "fda_jax" / "xla"
    assert folder.stat().st_mode & 0o077 == 0
    for value in ("", "relative/to/nothing"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert compilation.folder() == Path.home() / ".cache" / "fda_jax" / "xla"


def test_shrink_deletes_what_was_not_used_for_longest(tmp_path):
    (tmp_path / "deeper").mkdir()
    names = ["oldest", "deeper/old", "new", "newest"]
    for age, name in enumerate(reversed(names)):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 0))
    compilation.shrink(tmp_path, 250)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"new", "newest"}
