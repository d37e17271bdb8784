"""Figures in one style, readable from the last row: each helper takes `ax=None` and returns the Axes.

The colours are Okabe and Ito's, safe for colour-blind eyes; the line styles differ too, for a poor
beamer and a black-and-white printer. matplotlib is imported when the first figure is drawn.
"""

import os

import numpy as np

from .files import expanded, replacing
from .tensor import Node, Tensor

# The first of a comparison, BatchNorm in the lessons, is solid; the second, the plain network, dashed.
LOOKS = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#E69F00", (0, (5, 1, 1, 1)))]
STYLE = {"font.size": 15, "axes.titlesize": 16, "axes.labelsize": 15, "legend.fontsize": 14,
         "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
         "figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True}


def figure(rows=1, columns=1, title=None, size=None, **options):
    """A new figure and its Axes in minidl's style. title: the figure's message, in one sentence."""
    import matplotlib.pyplot as plt
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(rows, columns, figsize=size or (2 + 5.5 * columns, 1 + 4.5 * rows), **options)
        if title:
            fig.suptitle(title, fontsize=18, fontweight="bold")
        interactive = plt.isinteractive()
    plt.interactive(interactive)  # a notebook's backend turns this on with the first figure; rc_context must not undo it
    return fig, axes


def _axes(ax):
    return figure()[1] if ax is None else ax


def legend(ax):
    """One legend for the whole figure, below it, where it hides no curve."""
    fig = ax.figure
    entries = {label: handle for panel in fig.axes for handle, label in zip(*panel.get_legend_handles_labels())}
    for old in list(fig.legends):
        old.remove()
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries), frameon=False,
               fontsize=STYLE["legend.fontsize"])
    return ax


def band(x, ys, label, number=0, ax=None):
    """The median of several runs as a line, their range as a band. x: (n,) or (runs, n), ys: (runs, n)."""
    ax = _axes(ax)
    color, line = LOOKS[number % len(LOOKS)]
    x = np.ma.median(np.ma.masked_invalid(np.atleast_2d(x)), axis=0)
    ys = np.ma.masked_invalid(ys)  # runs that have ended
    ax.plot(x, np.ma.median(ys, axis=0), linestyle=line, color=color, label=label, linewidth=3)
    ax.fill_between(x, ys.min(axis=0), ys.max(axis=0), color=color, alpha=0.2, linewidth=0)
    return ax


def compare(result, what="accuracy", against="steps", target=None, ax=None):
    """The curves of an `experiments.Comparison`, one band per network.

    what: "accuracy" (test set) or "losses" (training, log scale, mean over 20 steps). against: "steps" or
    "seconds" (accuracy only). target: an accuracy to mark. A run that diverged ends in a cross.
    """
    if (what, against) not in (("accuracy", "steps"), ("accuracy", "seconds"), ("losses", "steps")):
        raise ValueError(f"compare draws accuracy against steps or seconds, or losses against steps; got {what!r}, {against!r}")
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
                ax.plot(x[alive[-1]], y[alive[-1]], "x", color=LOOKS[i % len(LOOKS)][0], markersize=12, markeredgewidth=3)
    if what == "losses":
        ax.set(xlabel="training step", ylabel="training loss", yscale="log")
    else:
        ax.set(xlabel="seconds of training" if against == "seconds" else "training step", ylabel="test accuracy", ylim=(0, 1))
        if target is not None:
            ax.axhline(target, color="0.4", linewidth=1.2, linestyle=":")
    return legend(ax)


def lr_range(result, below=None, ax=None):
    """Final loss against learning rate of an `experiments.LearningRateRange`, both axes logarithmic.

    below: the bound under which a rate counts as working. A cross at the top marks a rate where a run diverged.
    """
    ax = _axes(ax)
    top = 2 * max(np.max(losses[np.isfinite(losses)], initial=1) for losses in result.losses.values())
    for i, (name, losses) in enumerate(result.losses.items()):
        color, _ = LOOKS[i % len(LOOKS)]
        band(result.rates, np.where(np.isfinite(losses), losses, top), name, i, ax)
        died = ~np.isfinite(losses).all(axis=0)
        if died.any():
            ax.plot(result.rates[died], np.full(died.sum(), top), "x", color=color, markersize=11, markeredgewidth=3,
                    clip_on=False, label=f"{name}: diverged", zorder=5)
    ax.set(xlabel="learning rate", ylabel="final training loss", xscale="log", yscale="log")
    if below is not None:
        ax.axhline(below, color="0.4", linewidth=1.5, linestyle=":")
        ax.annotate(f"works below {below:g}", (1, below), xycoords=ax.get_yaxis_transform(), ha="right", va="top",
                    color="0.3", fontsize=STYLE["legend.fontsize"])
    return legend(ax)


def sweep(result, x, y, by=None, ax=None):
    """One result of a `sweeps.Sweep` against one of its settings: a band over all other settings, such as seeds.

    x, by: keys of the grid; by: one line for each of its values. y: a result that is a single number.
    """
    for name in (x, by):
        if name is not None and name not in result.axes:
            raise ValueError(f"the grid of this sweep has no {name!r}; it has {', '.join(result.axes)}")
    if np.asarray(result.axes[x]).dtype.kind not in "iuf":
        raise ValueError(f"the values of {x!r} are no numbers: x={x!r} cannot be drawn, but by={x!r} can")
    ax = _axes(ax)
    first = [list(result.axes).index(name) for name in (by, x) if name is not None]
    values = np.moveaxis(result.array(y), first, range(len(first)))
    lines = values if by is not None else values[None]
    for i, line in enumerate(lines):
        band(result.axes[x], line.reshape(len(line), -1).T, y if by is None else f"{by} {result.axes[by][i]}", i, ax)
    if min(result.axes[x]) > 0 and max(result.axes[x]) >= 30 * min(result.axes[x]):
        ax.set_xscale("log")
    ax.set(xlabel=x, ylabel=y)
    return legend(ax)


def numbers(fig):
    """The data that a figure shows, as plain lists: for each panel its title, axis labels and series.

    Lines, points, areas (such as bands, as their outlines), bars and images. Not finite becomes None, as JSON has no NaN.
    """
    from matplotlib.collections import PathCollection
    panels = []
    for ax in fig.axes:
        series = []
        for line in ax.lines:
            coordinates = line.get_data_3d() if ax.name == "3d" else line.get_data()
            series.append({"kind": "line", "label": line.get_label(), **dict(zip("xyz", map(_plain, coordinates)))})
        for part in ax.collections:
            if isinstance(part, PathCollection):
                series.append({"kind": "points", "label": part.get_label(), "xy": _plain(part.get_offsets())})
            else:
                series += [{"kind": "area", "label": part.get_label(), "xy": _plain(path.vertices)}
                           for path in part.get_paths()]
        bars = [bar for group in ax.containers for bar in group if hasattr(bar, "get_height")]
        series += [{"kind": "bar", "x_y_width_height": _plain(bar.get_bbox().bounds)} for bar in bars]
        series += [{"kind": "image", "values": _plain(image.get_array())} for image in ax.images]
        panels.append({"title": ax.get_title(), "x": ax.get_xlabel(), "y": ax.get_ylabel(), "series": series})
    return {"title": fig.get_suptitle(), "panels": panels}


def _plain(values):
    values = np.ma.filled(np.ma.asarray(values, float), np.nan)
    return np.where(np.isfinite(values), values.astype(object), None).tolist()


def folder():
    """Where figures are saved: $MINIDL_FIGURES (~ is the home folder), or figures/ in the working
    folder; made if need be.
    """
    path = expanded(os.environ.get("MINIDL_FIGURES") or "figures")
    path.mkdir(parents=True, exist_ok=True)
    return path


BOXES = {"parameter": {"facecolor": "#FBE3B5", "edgecolor": "#E69F00", "linewidth": 3},
         "data": {"facecolor": "white", "edgecolor": "0.4", "linewidth": 1.5, "linestyle": "--"},
         "result": {"facecolor": "#D6E9F5", "edgecolor": "#0072B2", "linewidth": 1.5}}


def graph(tensor, names=None, numbers=False, ax=None):
    """How a Tensor was made: from left to right, a box for each op and each input, with its shape or its only value.

    names: {name: Tensor}, such as {"w": w, "loss": loss} or dict(model.named_parameters()). numbers: count the results in
    the order in which backward() visits them. Raises ValueError for a graph that is freed, or too large to be read.
    """
    import matplotlib.pyplot as plt
    nodes, inputs = _nodes(tensor)
    names = {id(getattr(t, "node", None) or t): name for name, t in (names or {}).items()}
    labels = {key: _label(node, names.get(id(node))) for key, node in nodes.items()}
    walk = sorted(inputs, key=lambda key: -nodes[key].number)
    depth, row, edges = _places(walk, inputs)
    half = 0.15 + 0.06 * max(len(line) for label in labels.values() for line in label.splitlines())  # inches, at 14 points
    pitch, top, bottom = 2 * half + 0.5, min(row.values()) - 0.7, max(row.values()) + 0.5
    if ax is None:
        ax = figure(size=(pitch * (max(depth.values()) + 1), 1.1 * (bottom - top) + 0.8))[1]
    ax.set(xlim=(-pitch * (max(depth.values()) + 0.5), pitch / 2), ylim=(bottom, top))
    ax.axis("off")
    for start, end in edges:
        x, x2 = half - pitch * depth[start], -half - pitch * depth[end]
        ax.annotate("", (x2, row[end]), (x, row[start]), arrowprops={
            "arrowstyle": "-|>" if end in nodes else "-", "shrinkA": 0, "shrinkB": 0, "color": "0.3", "linewidth": 1.5})
        if end not in nodes:  # the arrow goes on through this column, where there is no box
            ax.plot([x2, x2 + 2 * half], [row[end], row[end]], color="0.3", linewidth=1.5)
    for key, node in nodes.items():
        x, y = -pitch * depth[key], row[key]
        kind = "result" if key in inputs else "parameter" if getattr(node, "requires_grad", False) else "data"
        ax.add_patch(plt.Rectangle((x - half, y - 0.32), 2 * half, 0.64, label=kind, **BOXES[kind]))
        ax.text(x, y, labels[key], ha="center", va="center", fontsize=14)
        if numbers and key in inputs:
            ax.text(x - half, y - 0.35, f"{walk.index(key) + 1}.", va="bottom", fontsize=14, fontweight="bold")
    return legend(ax)


def _nodes(tensor):
    """{key: Node, leaf Tensor, number or shape} of the whole graph, and {key: keys of the inputs} of its results.

    key: the Node or Tensor itself; a number or the shape of a plain array is known by its place among the inputs.
    """
    if tensor.node is None:
        raise ValueError("no graph to draw: this Tensor is not the recorded result of an op")
    nodes, inputs, waiting = {tensor.node: tensor.node}, {}, [tensor.node]
    while waiting:
        node = waiting.pop()
        if node.saved is None:
            raise ValueError("no graph to draw: backward() has freed it; draw it before backward()")
        inputs[node] = keys = [x if isinstance(x, (Node, Tensor)) else (node, i) for i, x in enumerate(node.inputs)]
        waiting += [x for x in node.inputs if isinstance(x, Node) and x not in nodes]
        nodes.update(zip(keys, node.inputs))
        if len(nodes) > 60:
            raise ValueError("this graph has more than 60 nodes, too many to read: draw a part of it, such as one layer's "
                             "output, or print one path with minidl.explain(loss, wrt)")
    return nodes, inputs


def _label(place, name):
    """What a box says: the name that the user gave, the op, and the only value or the shape."""
    op = getattr(place, "op", None)
    if isinstance(place, tuple):
        size = str(place)  # the shape of a plain array
    else:
        value = np.asarray(place.value if op else place.data if hasattr(place, "data") else place)
        size = f"{value.item():.4g}" if value.dtype != object and value.size == 1 else str(place.shape)
    return "\n".join(filter(None, [" = ".join(filter(None, [name, op and op.name])), size]))


def _places(walk, inputs):
    """{place: depth}, {place: row} and the edges (place, place), each from one depth to the next.

    walk: the results, the last one made first. A longer edge is cut at free places in between, so that it crosses no box.
    """
    depth, ends = {walk[0]: 0}, {}  # the longest way to the last result; where the edges from each place end
    for key in walk:
        for k in inputs[key]:
            depth[k] = max(depth.get(k, 0), depth[key] + 1)
    for key in walk:
        for k in inputs[key]:
            free = {(k, "at", d): d for d in range(depth[k] - 1, depth[key], -1)}
            depth |= free
            for start, end in zip([k, *free], [*free, key]):
                ends.setdefault(start, {})[end] = True
    row = {walk[0]: 0.0}
    for d in range(1, max(depth.values()) + 1):
        wanted = {place: np.mean([row[end] for end in ends[place]]) for place in ends if depth[place] == d}
        order, lowest = sorted(wanted, key=wanted.get), -np.inf
        for place in order:
            row[place] = lowest = max(lowest + 1, wanted[place])
        straight = [place for place in order if place in inputs] or order  # a chain of results keeps its row
        shift = np.mean([wanted[place] - row[place] for place in straight])
        row |= {place: row[place] + shift for place in order}
    return depth, row, [(start, end) for start in ends for end in ends[start]]


def show(fig, name):
    """Show a figure: in a window where there is one, else saved as figures/<name>.png, and the path printed.

    $MINIDL_FIGURES names another folder. A notebook shows the figure by itself and gets the file as well.
    """
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import FontProperties
    unstyled = FontProperties(size=plt.rcParams["axes.titlesize"]).get_size_in_points()
    for ax in fig.axes:  # a panel's title set after `figure` has matplotlib's size, too small for the last row
        if ax.title.get_fontsize() == unstyled:
            ax.title.set_fontsize(STYLE["axes.titlesize"])
    if fig.canvas.required_interactive_framework:
        fig.canvas.manager.pyplot_show()  # blocks in a script, returns at once in an interactive session
        return
    path = folder() / f"{name}.png"
    with replacing(path) as file:
        fig.savefig(file, format="png")
    print(f"figure: {path}")
    if plt.get_backend().lower() == "agg":
        plt.close(fig)  # nobody will look at it again; a notebook still has to
