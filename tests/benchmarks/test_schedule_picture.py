"""The picture of schedules shows what optimizers do."""

import pytest
import torch
from matplotlib.image import imread
from selective_peft import SelectiveSGD

from benchmarks import schedule_picture
from benchmarks.schedule_picture import BUDGET, EVERY, STEPS, draw, schedules, spent, updates


def run(**options):
    """How many scalars an optimizer has selected after each step."""
    param = torch.nn.Parameter(torch.linspace(1, 2, 2 * BUDGET))
    param.grad = torch.ones_like(param)
    optimizer = SelectiveSGD([("w", param)], lr=1e-3, budget=BUDGET, total_steps=STEPS, **options)
    selected = []
    for _ in range(STEPS):
        optimizer.step()
        selected.append(optimizer.num_selected)
    return selected


@pytest.mark.parametrize("name", schedules())
def test_curves_are_those_of_optimizers(name):
    options = {"strategy": "static"} if name == "static" else {"schedule": name}
    assert schedules()[name] == run(**options)


@pytest.mark.parametrize("every", EVERY)
def test_stairs_are_those_of_optimizers(every):
    assert spent("uniform", select_every=every) == run(select_every=every)


def test_updates_are_the_papers():
    """Increment with the uniform schedule: (T + 1) / 2 times the budget; static: T times."""
    assert updates(spent("uniform")) == (STEPS + 1) / (2 * STEPS)
    assert updates(spent("uniform", static=True)) == 1


def test_it_is_drawn(tmp_path):
    draw(tmp_path / "made.png")
    assert imread(tmp_path / "made.png").shape == imread(schedule_picture.PICTURE).shape
