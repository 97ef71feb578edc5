"""Pictures of benchmarks: what they show, and that it can be read on paper and on a dark page."""

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from benchmarks import op_pictures, pictures

STAMP = {"cpu": "Some CPU", "threads": "2", "torch": "2.13", "isa": "avx2", "commit": "0123abc"}
PAGES = ("#ffffff", "#0d1117")


def panel():
    return pictures.new_figure("Title", [STAMP], 1, 6, 4)


def written(figure):
    """All words on a figure."""
    axes = figure.axes[0]
    names = [label.get_text() for label in (*axes.get_yticklabels(), *axes.texts)]
    names += [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
    return [name.strip() for name in names]


def luminance(color):
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    """As WCAG 2 has it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES)
def test_colours_stand_out_on_every_page(page):
    assert contrast(pictures.TEXT, page) >= 4.0
    for color in (pictures.OURS, *pictures.RIVALS, *op_pictures.DTYPE_COLORS.values()):
        assert contrast(color, page) >= 2.5, color


def test_the_machine_stands_below():
    figure = panel()
    assert figure.get_supxlabel() == "Some CPU, 2 threads; torch 2.13, kernels avx2, commit 0123abc"
    assert pictures.machine({**STAMP, "threads": "1", "gpu": ""}).startswith("Some CPU, 1 thread;")
    assert pictures.machine({**STAMP, "gpu": "H100", "isa": ""}).startswith("H100; torch 2.13, kernels triton")


def test_a_picture_is_written_whole_and_without_a_background(tmp_path):
    path = tmp_path / "new" / "x.png"
    figure = panel()
    pictures.speedup_bars(figure.axes[0], {"a": {"rival": 3.0}})
    pictures.save(figure, path)
    pixels = imread(path)
    assert pixels[0, 0, 3] == 0.0
    assert (pixels[..., 3] == 1.0).any()
    assert [each.name for each in path.parent.iterdir()] == ["x.png"]


def test_bars_say_how_many_times_faster():
    figure = panel()
    pictures.speedup_bars(figure.axes[0], {"small": {"a": 0.25, "b": 1450.4}, "large": {"a": 3.04}})
    widths = [patch.get_width() for patch in figure.axes[0].patches if patch.get_width() > 0]
    assert widths[:3] == [0.25, 1450.4, 3.04]
    assert {"small", "large", "a", "b", "0.25x", "1,450x", "3.0x"} <= set(written(figure))
    assert figure.axes[0].get_xscale() == "log"
    low, high = figure.axes[0].get_xlim()
    assert low < 0.25
    assert high > 1450.4


def test_many_rivals_are_named_beside_their_bars():
    figure = panel()
    pictures.speedup_bars(figure.axes[0], {"gather": {"a": 2.0}, "swap": {"b": 4.0}}, named=True)
    assert figure.axes[0].get_legend() is None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert {"gather", "swap"} <= set(written(figure))


def test_a_bar_of_one_name_has_one_colour():
    figure = panel()
    pictures.bars(figure.axes[0], {"x": {"a": 1.0, "b": 2.0}, "y": {"b": 3.0}}, str, colors={"a": "#123456"})
    colors = [patch.get_facecolor()[:3] for patch in figure.axes[0].patches[:3]]
    assert colors[0] == to_rgb("#123456")
    assert colors[1] == colors[2] != colors[0]


def test_lines_are_drawn_against_their_limit():
    figure = panel()
    lines = {"ours": [(1e6, 1.0), (1e7, 9.0)], "rival": [(1e6, 30.0)]}
    pictures.scaling_lines(figure.axes[0], lines, "scalars", "ms", limit=[(1e6, 0.8), (1e7, 8.0)])
    drawn = figure.axes[0].get_lines()
    assert [list(zip(*line.get_data(), strict=True)) for line in drawn] == [*lines.values(), [(1e6, 0.8), (1e7, 8.0)]]
    assert [line.get_linestyle() for line in drawn] == ["-", "-", "--"]
    assert written(figure)[-3:] == ["ours", "rival", "read limit"]
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


def test_parts_of_memory_are_stacked_and_added_up():
    figure = panel()
    stacks = {"ours": {"weights": 4e8, "state": 2e6}, "dense": {"weights": 4e8, "state": 8e8, "mask": 1e8}}
    pictures.memory_bars(figure.axes[0], stacks)
    spans = [(patch.get_x(), patch.get_width()) for patch in figure.axes[0].patches[:6]]
    assert spans == [(0, 4e8), (4e8, 2e6), (4.02e8, 0), (0, 4e8), (4e8, 8e8), (12e8, 1e8)]
    assert {"402.00 MB", "1.30 GB", "weights", "state", "mask", "ours", "dense"} <= set(written(figure))


def op_row(op, what, axis="base", dtype="float32", speedup="", percent="80.0"):
    return {
        "op": op, "what": what, "axis": axis, "dtype": dtype, "speedup": speedup, "percent_of_bound": percent,
        "bound": "read", "model": "minilm-l6", "scalars": "22713986", **STAMP,
    }  # fmt: skip


def test_operations_are_drawn_from_rows_alone(tmp_path):
    rows = [
        op_row("gather", "ours"), op_row("gather", "index_select", speedup="2.0"),
        op_row("gather", "ours", "k"), op_row("gather", "index_select", "k", speedup="7.0"),
        op_row("gather", "ours", "dtype", "bfloat16", percent="40.0"),
    ]  # fmt: skip
    figure = op_pictures.figure(rows)
    left, right = figure.axes
    assert [patch.get_width() for patch in left.patches] == [2.0]
    assert [patch.get_width() for patch in right.patches if patch.get_width() > 1] == [80.0, 40.0]
    op_pictures.draw(rows, tmp_path / "ops.png")
    assert (tmp_path / "ops.png").stat().st_size > 5000
