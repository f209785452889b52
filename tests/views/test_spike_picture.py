import math

import pytest
from matplotlib.image import imread
from views.frames import Frame, clamped, reading

from stepguard.views.spike.picture import Window, save_picture


def draw(path, histories):
    save_picture(path, histories, title="a title", target=1.0, spike=Window(2, 5))
    return imread(path)


def has(image, red, green, blue):
    return bool(((image[..., :3] * 255).round() == (red, green, blue)).all(-1).any())


VERMILLION, ORANGE = (0xD5, 0x5E, 0x00), (0xE6, 0x9F, 0x00)


def test_a_picture_of_two_runs(tmp_path):
    calm = [Frame(step, loss=1.0 + step, reading=reading(step, 0.1)) for step in range(8)]
    image = draw(tmp_path / "a.png", {"no spike": [calm], "guarded": [[clamped(s, 50.0, loss=2.0) for s in range(8)]]})
    assert image.shape[1] == 1600
    assert has(image, *VERMILLION) and not has(image, *ORANGE)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_what_has_no_place_on_a_log_axis_leaves_a_gap(tmp_path, bad):
    frames = [Frame(step, loss=bad if step == 3 else 1.0, reading=reading(step, bad)) for step in range(6)]
    draw(tmp_path / "a.png", {"plain": [frames]})


def test_seeds_unmeasured_steps_and_a_single_step(tmp_path):
    draw(tmp_path / "a.png", {"plain": [[Frame(0)], [Frame(0, reading=reading(0, 2.0))]]})
