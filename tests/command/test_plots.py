"""What the pictures show is what `selective_peft.analysis` computes, and nothing of it is cut off."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from selective_peft import analysis, drawing, plots
from selective_peft.updates import Updates

MODULES = ("attention.query", "attention.value", "mlp.up")
LONG = "base_model.model.some_rather_long_wrapper.transformer_blocks.module_{}.linear_projection.lora_A.default.weight"


def record(names, entries, steps=30, seed=0, size=400):
    """A run that selected random entries of tensors of one size, in random steps, and moved them at random."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(size * len(names), generator=generator)[:entries].sort().values
    counts = torch.bincount(flat // size, minlength=len(names))
    before = torch.randn(entries, generator=generator)
    return Updates(
        names=tuple(names),
        sizes=(size,) * len(names),
        starts=(0, *counts.cumsum(0).tolist()),
        offsets=flat % size,
        before=before,
        after=before + 1e-3 * torch.randn(entries, generator=generator),
        chosen=torch.randint(0, steps, (entries,), generator=generator, dtype=torch.int32) if steps else None,
        steps=steps,
    )


def model(layers=4, extra=("embeddings.weight",)):
    return [*extra, *(f"encoder.layer.{i}.{module}.weight" for i in range(layers) for module in MODULES)]


RUNS = {"id3": record(model(), 70), "static, $a": record(model(), 900, seed=1), "full": record(model(), 5000, steps=0)}
ONE = record(["weight"], 5)
NOTHING = record(["m.0.a.weight", "b.weight"], 0)
MANY = record([LONG.format(i) for i in range(200)], 3000)
HARD = {"one tensor": ONE, "nothing selected": NOTHING, "many long names": MANY, "80 layers": record(model(80), 9000)}
OF_A_RUN = (
    plots.tensor_sparsity, plots.selection_entropy, plots.budget_by_layer_and_module, plots.update_size_by_module
)  # fmt: skip
OF_TWO = (plots.update_correlation, plots.selection_overlap)


@pytest.fixture(autouse=True)
def no_warnings():
    """Among them: a layout that does not work out, a glyph that the font does not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", ["tensor_sparsity", "selection_entropy"])
def test_lines_over_steps(name):
    axes = getattr(plots, name)(RUNS)
    measure = getattr(analysis, name)
    for line, updates in zip(axes.lines, RUNS.values(), strict=False):
        if updates.steps:
            assert line.get_xdata().tolist() == list(range(1, 31))
            assert line.get_ydata().tolist() == measure(updates).tolist()
        else:
            assert list(line.get_ydata()) == measure(updates).tolist() * 2  # a level line from left to right
    assert set(RUNS) <= set(texts(axes))
    colors = [text.get_color() for text in axes.texts if text.get_text() in RUNS]
    assert sorted(colors) == sorted(line.get_color() for line in axes.lines[:3])
    assert axes.get_xlabel() == "step"


def test_entropy_shows_its_bound():
    axes = plots.selection_entropy(RUNS["id3"])
    assert list(axes.lines[-1].get_ydata()) == [math.log(13)] * 2
    assert texts(axes) == ["the same share of all 13 tensors"]


def test_labels_at_the_ends_are_apart_and_beside_their_lines():
    runs = {f"run {i}": record(model(), 700, seed=i) for i in range(6)}
    axes = drawn(plots.tensor_sparsity(runs))
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    ends = plots.tensor_sparsity(RUNS)
    for text in ends.texts:
        wanted = float(analysis.tensor_sparsity(RUNS[text.get_text()])[-1])
        low, high = ends.get_ylim()
        assert abs(text.get_position()[1] - (wanted - low) / (high - low)) < 0.14


def test_map_shows_the_budget():
    updates = record(model(), 900)
    axes = plots.budget_by_layer_and_module(updates)
    rows, layers, counts = plots.budget_map(analysis.budget_by_place(updates))
    assert counts.sum() == 900
    assert axes.images[0].get_array().tolist() == counts.tolist()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == rows
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["none", "0", "1", "2", "3"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    for (row, column), count in np.ndenumerate(counts):
        assert shown[(column, row)] == (str(count) if count else "")
    assert layers == ["", "0", "1", "2", "3"]


def dots(axes):
    """Per collection of dots: {(row, value)}; rows of several runs are shifted by less than half."""
    found = [each.get_offsets() for each in axes.collections if isinstance(each, PathCollection)]
    return [{(round(float(y)), float(x)) for x, y in offsets} for offsets in found]


def test_dots_are_mean_updates():
    axes = plots.update_size_by_module(RUNS)
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert set(rows) == {"embeddings", *MODULES}
    for number, updates in enumerate(RUNS.values()):
        layers, modules = dots(axes)[2 * number : 2 * number + 2]
        assert modules == {(rows.index(m), value) for m, value in analysis.mean_update_by_module(updates).items()}
        by_place = analysis.mean_update_by_place(updates)
        assert layers == {(rows.index(place.module), value) for place, value in by_place.items()}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(RUNS)


def test_modules_past_the_first_few_share_a_row():
    axes = plots.update_size_by_module(MANY)
    rows = [tick.get_text().replace("\n", "") for tick in axes.get_yticklabels()]
    assert len(rows) == plots.MODULES
    assert rows[-1] == f"others ({200 - plots.MODULES + 1})"
    own = set(rows[:-1])
    moved = (MANY.after.double() - MANY.before.double()).abs()
    others = [moved[MANY.slice_of(name)] for name in MANY.names if name.removesuffix(".weight") not in own]
    assert len(others) == 200 - plots.MODULES + 1
    assert dict(dots(axes)[1])[plots.MODULES - 1] == pytest.approx(float(torch.cat(others).mean()), rel=1e-12)


def test_scatter_shows_every_shared_scalar():
    axes = plots.update_correlation(RUNS["id3"], RUNS["full"], labels=("a $1", "b"))
    x, y = analysis.shared_updates(RUNS["id3"], RUNS["full"])
    assert len(x) > 50
    assert axes.collections[0].get_offsets().tolist() == torch.stack([x, y], 1).tolist()
    rho = analysis.update_correlation(RUNS["id3"], RUNS["full"])
    assert axes.get_title(loc="left") == f"Updates of the {len(x):,} scalars in both: Spearman {rho:.3f}"
    assert axes.get_xlabel().endswith(", a $1")
    assert axes.get_ylabel().endswith(", b")


def test_cells_count_every_shared_scalar():
    full = RUNS["full"]
    axes = plots.update_correlation(full, full)
    cells = axes.collections[0]
    assert isinstance(cells, PolyCollection)
    assert cells.get_array().sum() == 5000 > plots.POINTS
    assert axes.get_title(loc="left").endswith("Spearman 1.000")


def test_bars_are_shares_of_the_union():
    a, b = RUNS["id3"], RUNS["static, $a"]
    axes = plots.selection_overlap(a, b, labels=("id3", "static, $a"))
    found = analysis.overlap_by_module(a, b)
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert set(rows) == set(found)
    first, both, second = axes.containers
    for i, row in enumerate(rows):
        each = found[row]
        widths = [bars[i].get_width() * each.union for bars in (first, both, second)]
        assert widths == pytest.approx([each.first - each.shared, each.shared, each.second - each.shared])
        assert [bars[i].get_x() * each.union for bars in (first, both, second)] == pytest.approx(
            [0, widths[0], widths[0] + widths[1]]
        )
        assert texts(axes)[i] == f"{each.jaccard:.0%} of {each.union:,}"
    whole = analysis.overlap(a, b)
    assert f"{whole.shared:,} scalars in both, Jaccard index {whole.jaccard:.3f}" in axes.get_title(loc="left")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["only id3", "both", "only static, $a"]


def drawn(axes):
    axes.figure.draw_without_rendering()
    return axes


def assert_nothing_is_cut(axes):
    """All texts lie inside the picture, which was drawn, and names of rows do not lie on each other."""
    page = axes.figure.figure.bbox
    ticks = [
        label
        for number, axis in enumerate((axes.xaxis, axes.yaxis))
        for low, high in [sorted(axis.get_view_interval())]
        for label in axis.get_ticklabels()
        if low <= label.get_position()[number] <= high  # those outside are not drawn
    ]
    for text in [*ticks, *axes.texts, axes.xaxis.label, axes.yaxis.label, axes._left_title]:
        box = text.get_window_extent()
        if text.get_text() and box.width:
            assert page.x0 - 1 <= box.x0, text.get_text()
            assert box.x1 <= page.x1 + 1, text.get_text()
            assert page.y0 - 1 <= box.y0, text.get_text()
            assert box.y1 <= page.y1 + 1, text.get_text()
    boxes = sorted((tick.get_window_extent() for tick in axes.get_yticklabels()), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    assert axes.get_window_extent().width > 100


@pytest.mark.parametrize("case", [*HARD, "id3"])
def test_hard_cases_fit_on_their_pages(case):
    updates = HARD.get(case, RUNS["id3"])
    for draw in OF_A_RUN:
        assert_nothing_is_cut(drawn(draw(updates)))
    for draw in OF_TWO:
        assert_nothing_is_cut(drawn(draw(updates, updates)))


@pytest.mark.parametrize("draw", [plots.tensor_sparsity, plots.selection_entropy, plots.update_size_by_module])
def test_several_runs_fit_on_their_page(draw):
    assert_nothing_is_cut(drawn(draw(RUNS)))
    with pytest.raises(ValueError, match="runs: expected at least one run"):
        draw({})


def test_nothing_selected_is_said():
    for draw in (plots.budget_by_layer_and_module, plots.update_size_by_module):
        assert "nothing selected" in texts(draw(NOTHING))
    assert "nothing selected" in texts(plots.selection_overlap(NOTHING, NOTHING))
    correlation = plots.update_correlation(NOTHING, NOTHING)
    assert "nothing in both" in texts(correlation)
    assert correlation.get_title(loc="left").endswith("Spearman undefined")


def test_given_axes_are_drawn_into():
    axes = Figure().subplots(2, 3).flatten()
    for draw, each in zip(OF_A_RUN, axes, strict=False):
        assert draw(RUNS["id3"], each) is each
    for draw, each in zip(OF_TWO, axes[4:], strict=True):
        assert draw(RUNS["id3"], RUNS["full"], each) is each


@pytest.mark.parametrize("case", [*HARD, "id3"])
def test_overview_has_four_panels(case, tmp_path, monkeypatch):
    kept = []
    save = drawing.save
    monkeypatch.setattr(plots, "save", lambda path, figure: (kept.append(figure), save(path, figure)))
    updates = HARD.get(case, RUNS["id3"])
    plots.overview(tmp_path / "a.png", updates, title="model_x: $5 {id3}")
    panels = [axes for axes in kept[0].axes if axes.get_title(loc="left")]
    assert len(panels) == 4
    kept[0].draw_without_rendering()  # at its own resolution
    for axes in panels:
        assert_nothing_is_cut(axes)
    assert panels[0].lines[0].get_ydata().tolist() == analysis.tensor_sparsity(updates).tolist()
    assert panels[1].lines[0].get_ydata().tolist() == analysis.selection_entropy(updates).tolist()
    assert panels[2].images[0].get_array().sum() == len(updates.offsets)
    rows = [axes.yaxis.get_major_formatter().format_ticks(axes.get_yticks()) for axes in panels[2:]]
    assert rows[0] == rows[1] != [""]  # so that the names beside the map serve both
    height, width, _ = image.imread(tmp_path / "a.png").shape
    assert (width, height) == (1210, round(kept[0].get_size_inches()[1] * 110))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    axes = plots.tensor_sparsity(RUNS["id3"])
    plots.save(str(path), axes.figure)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")
    assert path.stat().st_mode & 0o777 == 0o644

    def full_disk(name, **_):
        name.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(axes.figure, "savefig", full_disk)
    with pytest.raises(OSError, match="no space left"):
        plots.save(path, axes.figure)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(FileNotFoundError, match="path: expected a file in a folder that exists"):
        plots.save(tmp_path / "none" / "a.png", axes.figure)


def test_names_are_broken_but_not_cut():
    name = LONG.format(7)
    lines = drawing.wrapped(name).split("\n")
    assert "".join(lines) == name
    assert max(map(len, lines)) <= drawing.LABEL_WIDTH
    assert drawing.wrapped("a" * 99) == "a" * 99
    assert drawing.wrapped("bert.pooler") == "bert.pooler"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (999, "999"), (1000, "1k"), (12_400, "12k"), (999_499, "999k"), (999_500, "1M"), (2 * 10**9, "2G")],
)
def test_short_counts(count, text):
    assert drawing.short_count(count) == text
