"""How a Tensor was made, drawn: a box for each op and each input."""

import numpy as np

from ..tensor import Node, Tensor
from .style import figure, legend

BOXES = {"parameter": {"facecolor": "#FBE3B5", "edgecolor": "#E69F00", "linewidth": 3},
         "data": {"facecolor": "white", "edgecolor": "0.4", "linewidth": 1.5, "linestyle": "--"},
         "result": {"facecolor": "#D6E9F5", "edgecolor": "#0072B2", "linewidth": 1.5}}


def graph(tensor, names=None, numbers=False, ax=None):
    """How a Tensor was made: left to right, a box for each op and input, with its shape or value.

    names: {name: Tensor}, such as {"w": w, "loss": loss} or dict(model.named_parameters()).
    numbers: count the results in the order in which backward() visits them. Raises ValueError for a
    graph that is freed, or too large to be read.
    """
    import matplotlib.pyplot as plt
    nodes, inputs = _nodes(tensor)
    names = {id(getattr(t, "node", None) or t): name for name, t in (names or {}).items()}
    labels = {key: _label(node, names.get(id(node))) for key, node in nodes.items()}
    walk = sorted(inputs, key=lambda key: -nodes[key].number)
    depth, row, edges = _places(walk, inputs)
    # inches, at 14 points
    half = 0.15 + 0.06 * max(len(line) for label in labels.values() for line in label.splitlines())
    pitch, top, bottom = 2 * half + 0.5, min(row.values()) - 0.7, max(row.values()) + 0.5
    if ax is None:
        ax = figure(size=(pitch * (max(depth.values()) + 1), 1.1 * (bottom - top) + 0.8))[1]
    ax.set(xlim=(-pitch * (max(depth.values()) + 0.5), pitch / 2), ylim=(bottom, top))
    ax.axis("off")
    for start, end in edges:
        x, x2 = half - pitch * depth[start], -half - pitch * depth[end]
        ax.annotate("", (x2, row[end]), (x, row[start]), arrowprops={
            "arrowstyle": "-|>" if end in nodes else "-", "shrinkA": 0, "shrinkB": 0,
            "color": "0.3", "linewidth": 1.5})
        if end not in nodes:  # the line crosses this column, where there is no box
            ax.plot([x2, x2 + 2 * half], [row[end], row[end]], color="0.3", linewidth=1.5)
    for key, node in nodes.items():
        x, y = -pitch * depth[key], row[key]
        kind = (
            "result"
            if key in inputs
            else "parameter"
            if getattr(node, "requires_grad", False)
            else "data"
        )
        ax.add_patch(plt.Rectangle((x - half, y - 0.32), 2 * half, 0.64, label=kind, **BOXES[kind]))
        ax.text(x, y, labels[key], ha="center", va="center", fontsize=14)
        if numbers and key in inputs:
            ax.text(
                x - half,
                y - 0.35,
                f"{walk.index(key) + 1}.",
                va="bottom",
                fontsize=14,
                fontweight="bold",
            )
    return legend(ax)


def _nodes(tensor):
    """{key: Node, leaf Tensor, number or shape} of a graph, and {key: keys of its inputs}.

    key: the Node or Tensor itself; a number or the shape of a plain array is known by its place
    among the inputs. The second dict is of results only.
    """
    if tensor.node is None:
        raise ValueError("no graph to draw: this Tensor is not the recorded result of an op")
    nodes, inputs, waiting = {tensor.node: tensor.node}, {}, [tensor.node]
    while waiting:
        node = waiting.pop()
        if node.saved is None:
            raise ValueError("no graph to draw: backward() has freed it; draw it before backward()")
        inputs[node] = keys = [
            x if isinstance(x, (Node, Tensor)) else (node, i) for i, x in enumerate(node.inputs)
        ]
        waiting += [x for x in node.inputs if isinstance(x, Node) and x not in nodes]
        nodes.update(zip(keys, node.inputs))
        if len(nodes) > 60:
            raise ValueError("this graph has more than 60 nodes, too many to read: draw a part of "
                             "it, such as one layer's output, or print one path with "
                             "minidl.explain(loss, wrt)")
    return nodes, inputs


def _label(place, name):
    """What a box says: the name that the user gave, the op, and the only value or the shape."""
    op = getattr(place, "op", None)
    if isinstance(place, tuple):
        size = str(place)  # the shape of a plain array
    else:
        value = np.asarray(place.value if op else place.data if hasattr(place, "data") else place)
        size = (
            f"{value.item():.4g}" if value.dtype != object and value.size == 1 else str(place.shape)
        )
    return "\n".join(filter(None, [" = ".join(filter(None, [name, op and op.name])), size]))


def _places(walk, inputs):
    """{place: depth}, {place: row} and the edges (place, place), each from one depth to the next.

    walk: the results, the last one made first. A longer edge is cut at free places in between, so
    that it crosses no box.
    """
    # depth: the longest way to the last result; ends: where the edges from each place end
    depth, ends = {walk[0]: 0}, {}
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
        wanted = {
            place: np.mean([row[end] for end in ends[place]]) for place in ends if depth[place] == d
        }
        order, lowest = sorted(wanted, key=wanted.get), -np.inf
        for place in order:
            row[place] = lowest = max(lowest + 1, wanted[place])
        # a chain of results keeps its row
        straight = [place for place in order if place in inputs] or order
        shift = np.mean([wanted[place] - row[place] for place in straight])
        row |= {place: row[place] + shift for place in order}
    return depth, row, [(start, end) for start in ends for end in ends[start]]
