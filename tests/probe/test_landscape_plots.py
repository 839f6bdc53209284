from __future__ import annotations

import math

import pytest
import torch

from thalweg.probe import LayerBarriers, LossPath, LossPlane, plot_barriers, plot_paths, plot_plane


def path(*losses: float) -> LossPath:
    at = tuple(index / (len(losses) - 1) for index in range(len(losses)))
    return LossPath(at, losses, (losses[0], losses[-1]), 1.0)


def grey(colour) -> bool:
    from matplotlib.colors import to_rgb

    return len(set(to_rgb(colour))) == 1


def test_paths_have_units_a_finding_a_grey_baseline_and_lines_that_differ_without_colour(tmp_path):
    figure = plot_paths({"line": path(0, 3, 0), "curve": path(0, 1, 0), "late": path(0, 0, 0)}, unit="nats")
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "Barrier: 3 (line), 1 (curve), 0 (late)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("share t of the way from start to end", "nats")
    line, curve, late, chord = axes.lines
    assert list(line.get_ydata()) == [0, 3, 0] and grey(line.get_color()) and grey(chord.get_color())
    assert curve.get_linestyle() != late.get_linestyle() and not grey(curve.get_color())
    figure.savefig(tmp_path / "paths.svg")
    assert (tmp_path / "paths.svg").stat().st_size > 1000


def test_more_lines_than_can_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="paths must hold 1 to 6 paths, got 7"):
        plot_paths({str(n): path(0, 1, 0) for n in range(7)})
    with pytest.raises(ValueError, match="got 0"):
        plot_paths({})


def test_barriers_are_bars_of_their_height_under_the_grey_one_of_all_layers():
    barriers = LayerBarriers(path(0, 3, 0), {"0": path(0, 1, 0), "2": path(0, 2, 0)})
    figure = plot_barriers(barriers, unit="nats")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [3, 1, 2]
    assert grey(axes.patches[0].get_facecolor()[:3]) and not grey(axes.patches[1].get_facecolor()[:3])
    assert axes.get_title(loc="left") == "Barrier: 3 with all layers, at most 2 alone (2)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("barrier height (nats)", "layer that moves")
    with pytest.raises(ValueError, match="at most 40 layers, got 41"):
        plot_barriers(LayerBarriers(path(0, 1, 0), {str(n): path(0, 1, 0) for n in range(41)}))


def plane(losses: list[list[float]]) -> LossPlane:
    x, y = (tuple(map(float, range(n))) for n in (len(losses[0]), len(losses)))
    grid = torch.tensor(losses, dtype=torch.float64)
    return LossPlane(x, y, grid, {"first": (0.0, 0.0), "second": (1.0, 1.0)}, "filter norms", 0.0)


def test_a_plane_shows_its_checkpoints_and_says_its_units():
    figure = plot_plane(plane([[1, 2, 3], [2, 3, 4], [3, 4, math.inf]]), names={"first": "SGD"}, unit="nats")
    axes, bar = figure.axes
    assert axes.get_title(loc="left") == "Loss over the plane: from 1 to 4 nats"
    assert axes.get_xlabel() == "first direction (filter norms)" and bar.get_ylabel() == "nats"
    assert [line.get_label() for line in axes.lines] == ["SGD", "second"]
    assert len({line.get_marker() for line in axes.lines}) == 2
    assert [list(line.get_xdata()) for line in axes.lines] == [[0], [1]]


def test_levels_are_logarithmic_where_losses_differ_by_orders_and_a_flat_plane_draws():
    levels = plot_plane(plane([[1e-4, 1e-2], [1.0, 100.0]])).axes[0].collections[0].levels
    ratios = levels[1:] / levels[:-1]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert (
        plot_plane(plane([[1.0, 1.0], [1.0, 1.0]])).axes[0].get_title(loc="left").endswith("from 1 to 1 loss")
    )
    with pytest.raises(ValueError, match="plane must hold a finite loss, got none"):
        plot_plane(plane([[math.nan] * 2] * 2))


def test_paths_need_labels():
    with pytest.raises(ValueError, match="paths must be a mapping of labels to paths, got list"):
        plot_paths([path(0, 1, 0)])
