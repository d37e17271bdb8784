"""Figures in one style, readable from the last row; each helper draws on `ax` and returns it.

The colours are Okabe and Ito's, safe for colour-blind eyes; the line styles differ too, for a poor
projector and a black-and-white printer. matplotlib is imported when the first figure is drawn.
"""

import numpy as np

from ..parts import evaluation
from ..tensor import no_grad, plain
from .graphs import graph
from .style import LOOKS, STYLE, figure, folder, legend, plain_ticks, show

__all__ = ["LOOKS", "STYLE", "band", "compare", "decision_boundary", "figure", "folder", "graph",
           "history", "legend", "lr_range", "numbers", "plain_ticks", "show", "sweep"]


def _axes(ax):
    return figure()[1] if ax is None else ax


def band(x, ys, label, number=0, ax=None):
    """The median of several runs as a line, their range as a band.

    x: (n,) or (runs, n), ys: (runs, n).
    """
    ax = _axes(ax)
    color, line = LOOKS[number % len(LOOKS)]
    x = np.ma.median(np.ma.masked_invalid(np.atleast_2d(x)), axis=0)
    ys = np.ma.masked_invalid(ys)  # steps after a run has ended
    ax.plot(x, np.ma.median(ys, axis=0), linestyle=line, color=color, label=label, linewidth=3)
    ax.fill_between(x, ys.min(axis=0), ys.max(axis=0), color=color, alpha=0.2, linewidth=0)
    return ax


def compare(result, what="accuracy", against="steps", target=None, ax=None):
    """The curves of an `experiments.Comparison`, one band per network.

    what: "accuracy" (test set) or "losses" (training, log scale, mean over 20 steps). against:
    "steps" or "seconds" (accuracy only). target: an accuracy to mark. A run that diverged ends in a
    cross.
    """
    if (what, against) not in (("accuracy", "steps"), ("accuracy", "seconds"), ("losses", "steps")):
        raise ValueError("compare draws accuracy against steps or seconds, or losses against "
                         f"steps; got {what!r}, {against!r}")
    ax = _axes(ax)
    for i, (name, runs) in enumerate(result.runs.items()):
        ys = result.array(name, what)
        if what == "losses":
            width = min(20, ys.shape[1])
            ys = np.array([np.convolve(row, np.ones(width) / width, "valid") for row in ys])
            xs = np.tile(np.arange(width, width + ys.shape[1]), (len(ys), 1))
        else:
            xs = result.array(name, "seconds" if against == "seconds" else "eval_steps")
        band(xs, ys, name, i, ax)
        for run, x, y in zip(runs, xs, ys):
            alive = np.flatnonzero(np.isfinite(y))
            if run.diverged_at is not None and len(alive):
                ax.plot(
                    x[alive[-1]],
                    y[alive[-1]],
                    "x",
                    color=LOOKS[i % len(LOOKS)][0],
                    markersize=12,
                    markeredgewidth=3,
                )
    if what == "losses":
        ax.set(xlabel="training step", ylabel="training loss", yscale="log")
        plain_ticks(ax.yaxis)
    else:
        ax.set(
            xlabel="seconds of training" if against == "seconds" else "training step",
            ylabel="test accuracy",
            ylim=(0, 1),
        )
        if target is not None:
            ax.axhline(target, color="0.4", linewidth=1.2, linestyle=":")
    return legend(ax)


def lr_range(result, below=None, ax=None):
    """Final loss against learning rate of an `experiments.LearningRateRange`, both on log axes.

    below: the bound under which a rate counts as working. The bands cover the runs that did not
    diverge; a cross at the upper edge, above all losses, marks a rate where a run did.
    """
    ax = _axes(ax)
    for i, (name, losses) in enumerate(result.losses.items()):
        color, _ = LOOKS[i % len(LOOKS)]
        band(result.rates, losses, name, i, ax)
        died = result.rates[~np.isfinite(losses).all(axis=0)]
        if len(died):
            ax.plot(died, np.full(len(died), 0.97 - 0.05 * i), "x", color=color, markersize=11,
                    markeredgewidth=3, label=f"{name}: diverged", zorder=5,
                    transform=ax.get_xaxis_transform())
    ax.set(xlabel="learning rate", ylabel="final training loss", xscale="log", yscale="log")
    ax.margins(y=0.15)  # room for the crosses
    for axis in (ax.xaxis, ax.yaxis):
        plain_ticks(axis)
    if below is not None:
        ax.axhline(below, color="0.4", linewidth=1.5, linestyle=":")
        ax.annotate(
            f"works below {below:g}",
            (1, below),
            xycoords=ax.get_yaxis_transform(),
            ha="right",
            va="top",
            color="0.3",
            fontsize=STYLE["legend.fontsize"],
        )
    return legend(ax)


def sweep(result, x, y, by=None, ax=None):
    """One result of a `sweeps.Sweep` against one of its settings, as a band over all others.

    x, by: keys of the grid; by: one line for each of its values. y: a result that is a single
    number.
    """
    for name in (x, by):
        if name is not None and name not in result.axes:
            raise ValueError(f"the grid of this sweep has no {name!r}; it has "
                             f"{', '.join(result.axes)}")
    if np.asarray(result.axes[x]).dtype.kind not in "iuf":
        raise ValueError(f"the values of {x!r} are no numbers: x={x!r} cannot be drawn, but "
                         f"by={x!r} can")
    ax = _axes(ax)
    first = [list(result.axes).index(name) for name in (by, x) if name is not None]
    values = np.moveaxis(result.array(y), first, range(len(first)))
    lines = values if by is not None else values[None]
    for i, line in enumerate(lines):
        band(
            result.axes[x],
            line.reshape(len(line), -1).T,
            y if by is None else f"{by} {result.axes[by][i]}",
            i,
            ax,
        )
    if min(result.axes[x]) > 0 and max(result.axes[x]) >= 30 * min(result.axes[x]):
        ax.set_xscale("log")
    ax.set(xlabel=x, ylabel=y)
    return legend(ax)


def history(run, name="history"):
    """Show, or save, a figure of the History that fit returned: `show` of `run.plot()`."""
    show(run.plot(), name)


def decision_boundary(model, x, y, ax=None):
    """The class that the model assigns to each point of the plane, with the samples on top.

    model: a Module, built; in evaluation mode meanwhile. Its outputs are scores of classes, or one
    output for two classes: the probability of a sigmoid, or else the logit of class 1. x: (n, 2),
    such as data.load("moons"). y: class numbers (n,) or one-hot rows. ValueError for other shapes.
    """
    x, y = np.asarray(plain(x)), np.asarray(plain(y))
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError("a decision boundary is drawn in the plane, x of shape (n, 2), got "
                         f"{x.shape}")
    y = y.reshape(-1) if y.size == len(x) else y.argmax(axis=1)
    ax = _axes(ax)
    low, high = x.min(axis=0), x.max(axis=0)
    edge = 0.1 * (high - low)
    sides = np.linspace(low - edge, high + edge, 200)
    places = np.stack(np.meshgrid(sides[:, 0], sides[:, 1]), axis=-1)
    with evaluation(model), no_grad():
        scores = model(places.reshape(-1, 2).astype(np.float32))
    scores = plain(scores if scores.logits is None else scores.logits)
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    for number in range(scores.shape[1]):
        color, marker = LOOKS[number % len(LOOKS)][0], "os^Dv"[number % len(LOOKS)]
        others = np.delete(scores, number, axis=1).max(axis=1)
        lead = (scores[:, number] - others).reshape(200, 200)
        if lead.max() > 0:
            ax.contourf(*sides.T, lead, levels=[0, lead.max()], colors=[color], alpha=0.25)
        if lead.min() < 0 < lead.max():
            ax.contour(*sides.T, lead, levels=[0], colors="0.3", linewidths=1.5)
        here = y == number
        ax.plot(*x[here].T, marker, color=color, markeredgecolor="white", markersize=8,
                label=f"class {number}")
    ax.set(xlabel="first feature", ylabel="second feature")
    ax.grid(False)
    return legend(ax)


def numbers(fig):
    """The data that a figure shows, as plain lists: each panel's title, axis labels and series.

    Lines, points, areas (such as bands, as their outlines), bars and images. Numbers that are not
    finite become None, because JSON has no NaN.
    """
    from matplotlib.collections import PathCollection
    panels = []
    for ax in fig.axes:
        series = []
        for line in ax.lines:
            coordinates = line.get_data_3d() if ax.name == "3d" else line.get_data()
            series.append(
                {
                    "kind": "line",
                    "label": line.get_label(),
                    **dict(zip("xyz", map(_plain, coordinates))),
                }
            )
        for part in ax.collections:
            if isinstance(part, PathCollection):
                series.append(
                    {"kind": "points", "label": part.get_label(), "xy": _plain(part.get_offsets())}
                )
            else:
                series += [{"kind": "area", "label": part.get_label(), "xy": _plain(path.vertices)}
                           for path in part.get_paths()]
        bars = [bar for group in ax.containers for bar in group if hasattr(bar, "get_height")]
        series += [
            {"kind": "bar", "x_y_width_height": _plain(bar.get_bbox().bounds)} for bar in bars
        ]
        series += [{"kind": "image", "values": _plain(image.get_array())} for image in ax.images]
        panels.append(
            {"title": ax.get_title(), "x": ax.get_xlabel(), "y": ax.get_ylabel(), "series": series}
        )
    return {"title": fig.get_suptitle(), "panels": panels}


def _plain(values):
    values = np.ma.filled(np.ma.asarray(values, float), np.nan)
    return np.where(np.isfinite(values), values.astype(object), None).tolist()
