"""Pictures as notebooks show them."""

import numpy as np
from matplotlib.image import imread

from fda_jax.experiment.figures import new_figure, picture, save, tidy


def drawn():
    figure = new_figure(2.0, 1.0, dots_per_inch=50)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    tidy(axes, title="line", x="x", y="y")
    return figure


def test_a_picture_is_the_file_that_save_writes_and_jupyter_shows(tmp_path):
    save(drawn(), tmp_path / "line.png")
    shown = picture(drawn())._repr_png_()
    assert shown == (tmp_path / "line.png").read_bytes()
    assert b"Software" not in shown
    pixels = imread(tmp_path / "line.png")
    assert pixels.shape[:2] == (50, 100)
    assert len(np.unique(pixels)) > 2


def test_the_name_of_a_picture_is_short():
    assert repr(picture(drawn())) == "Picture()"
