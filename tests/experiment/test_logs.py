"""What a person sees: plain lines for a file, one line that moves for a terminal."""

import io
import json
import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from fda_jax import doctor, report
from fda_jax.experiment.logs import PIPE_CLOSED, TensorBoard, Terminal, duration
from tests.conftest import small_config

MEANS = {"loss": 1.25, "accuracy": 0.5}


def read_scalars(folder):
    """The scalars of the one event file, read by the documented record format."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, scalars, at = path.read_bytes(), {}, 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        at += 12 + length + 4
        for value in event.summary.value:
            scalars[value.tag, event.step] = value.simple_value
    return scalars


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_plain_lines_and_no_ticks():
    out = io.StringIO()
    terminal = Terminal(10, out=out)
    terminal.tick(1, 1, MEANS)
    terminal.tick(1, 3, MEANS)
    terminal.epoch(1, 2, MEANS, MEANS, 5, 1234.5)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
    for words in ("epoch 1/2", "loss 1.2500", "accuracy 50.00%", "1,234 images/s", "left"):
        assert words in lines[0]


def test_an_epoch_that_was_one_call_has_no_speed_yet():
    out = io.StringIO()
    Terminal(10, out=out).epoch(1, 2, MEANS, None, 5, 0.0)
    assert "unknown images/s  time left unknown" in out.getvalue()


def test_a_terminal_shows_each_step_on_a_line_that_the_next_overwrites():
    out = Screen()
    terminal = Terminal(10, out=out)
    terminal.tick(1, 1, MEANS)
    terminal.tick(1, 3, MEANS)
    assert out.getvalue().count("\r") == 2
    assert "step 3/10" in out.getvalue()
    assert "\n" not in out.getvalue()


def test_a_second_process_says_nothing():
    out = Screen()
    terminal = Terminal(10, is_writer=False, out=out)
    terminal.tick(1, 1, MEANS)
    terminal.line("hello")
    assert out.getvalue() == ""


def test_a_terminal_that_cannot_be_written_to_is_silent_from_there_on(monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    reader, writer = os.pipe()
    os.close(reader)
    for out in (os.fdopen(writer, "w"), io.StringIO(), Screen()):
        with out, monkeypatch.context() as patch:
            if isinstance(out, io.StringIO):
                patch.setattr(out, "write", full)
            terminal = Terminal(10, out=out)
            terminal.tick(1, 1, MEANS)
            terminal.line("hello")
            terminal.epoch(1, 2, MEANS, MEANS, 5, 1234.5)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0s"), (59.4, "59s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_a_length_of_time_is_said_as_a_person_says_it(seconds, words):
    assert duration(seconds) == words


def test_tensorboard_gets_every_number_under_its_split(tmp_path):
    board = TensorBoard(tmp_path, step=0)
    board.write({"split": "test", "step": 5, "epoch": 1, "loss": 0.5, "accuracy": 0.75})
    board.close()
    assert read_scalars(tmp_path) == {("test/loss", 5): 0.5, ("test/accuracy", 5): 0.75}


def test_tensorboard_gets_the_numbers_of_a_group_under_its_name(tmp_path):
    board = TensorBoard(tmp_path, step=0)
    board.write({"split": "diagnostics", "step": 5, "flips": {"block1/conv1": 0.25}})
    board.close()
    assert read_scalars(tmp_path) == {("diagnostics/flips/block1/conv1", 5): 0.25}


def test_events_that_cannot_be_written_cost_a_warning(tmp_path, monkeypatch, capsys):
    board = TensorBoard(tmp_path, step=0)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writer, "flush", full)
    for step in (5, 10):
        board.write({"split": "test", "step": step, "loss": 0.5})
    board.close()
    assert capsys.readouterr().err.count("warning: TensorBoard's events end here") == 1


def test_a_command_whose_output_nobody_reads_on_ends_without_a_word(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    for command in (doctor.main, report.main):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as out, monkeypatch.context() as patch:
            patch.setattr("sys.stdout", out)
            assert command([str(tmp_path)]) == PIPE_CLOSED
