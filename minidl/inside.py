"""Looking inside a network: `record` its training, `explain` a gradient, `explain_batchnorm`.

They observe and change nothing: a recorded training ends in the same weights, bit for bit.
"""

import numpy as np

from .console import table
from .module import Parameter
from .normalization import BatchNorm
from .parts import attributes
from .tensor import Node, Tensor, starting_gradient, walk, watchers

# Where an activation is flat. In the outer 5 % of its range a sigmoid's slope is below a fifth of
# its largest; so is tanh's.
FLAT = {"relu": lambda y: y == 0,
        "sigmoid": lambda y: (y < 0.05) | (y > 0.95),
        "tanh": lambda y: np.abs(y) > 0.9}


class record:
    """Record what happens inside a model while it trains in this block:

        with record(model) as log:
            model.fit(x, y)
        log.summary()
        log["activation_1", "std"]  # an array, one number per step

    Any loop will do in place of fit. A step is a forward in training mode and its backward;
    every=10 records every tenth. `log.steps`: their numbers, from 0. Rows: `log.layers`, the parts
    without parts of their own, in order of use (of a layer used twice in a step, the last use
    counts), and `log.parameters`, such as "dense.kernel". Statistics: "mean", "std", "norm" of a
    layer's output, or of a parameter before its update, and of the gradient there: "grad_mean",
    "grad_std", "grad_norm". For layers also the percentiles "p5", "p50", "p95", "grad_p5" ..., and
    "saturation": the share of outputs where ReLU is 0, or sigmoid or tanh is in the outer 5 % of
    its range at either end. For parameters also "update_ratio": |update| / |weights| in Euclidean
    norms, often near 1e-3 when training goes well. NaN stands for a missing number: the loss on a
    softmax works on the logits, so the softmax itself gets no gradient.
    """

    def __init__(self, model, every=1):
        self.model = model
        self.every = every
        self.count = 0
        self.steps = []
        self.layers = []
        self.parameters = []
        self.values = {}  # (row, statistic): {step: number}
        self.outputs = {}
        self.before = {}
        self.names = {}
        for path, part in model.named_modules():
            name = part.name or path or type(part).__name__.lower()
            self.names[id(part)] = path if name in self.names.values() else name

    def __enter__(self):
        parts = [part for part in self.model.modules() if not any(part.children())]
        self.handles = [part.register_forward_hook(self.after_forward) for part in parts]
        self.token = watchers.set((*watchers.get(), self))
        return self

    def __exit__(self, *error):
        watchers.reset(self.token)
        self.compare_parameters()
        self.outputs = {}
        for handle in self.handles:
            handle.remove()

    def __getitem__(self, key):
        """log[row, statistic]: an array with one number per recorded step."""
        if not self.steps:
            raise KeyError("nothing was recorded: in the block no forward in training mode was "
                           "followed by a backward")
        if key not in self.values:
            raise KeyError(f"log[row, statistic] has no {key!r}; rows: "
                           f"{', '.join(self.layers + self.parameters)}; statistics: "
                           f"{', '.join(dict.fromkeys(statistic for _, statistic in self.values))}")
        return np.array([self.values[key].get(step, np.nan) for step in self.steps])

    def array(self, statistic, rows=None):
        """One statistic of several rows, or of all layers, as an array (steps, rows)."""
        return np.stack([self[row, statistic] for row in rows or self.layers], axis=1)

    def summary(self):
        """Print a table of the last recorded step."""
        columns = ["mean", "std", "p5", "p50", "p95", "saturation", "grad_norm", "update_ratio"]
        rows = [
            [
                row,
                *(
                    f"{self[row, column][-1]:.3g}" if (row, column) in self.values else ""
                    for column in columns
                ),
            ]
            for row in self.layers + self.parameters
        ]
        print("\n".join(table([[f"step {self.steps[-1] if rows else '-'}", *columns], *rows])))

    def after_forward(self, layer, inputs, y):
        """The hook of each layer: remember an output that a gradient can reach."""
        if layer.training and isinstance(y, Tensor) and y.requires_grad:
            name = self.names[id(layer)]
            # drops that of an earlier use, or of a forward without a backward: the last use counts
            self.outputs.pop(name, None)
            self.outputs[name] = y

    def after_backward(self, found):
        """Turn a step into numbers.

        found: all (Tensor, gradient) of this backward, which may be another model's.
        """
        parameters = {f"{self.names[id(part)]}.{key}": p for part in self.model.modules()
                      for key, p in attributes(part) if isinstance(p, Parameter)}
        if not self.outputs or not {id(p) for p in parameters.values()} & {id(x) for x, _ in found}:
            return
        self.compare_parameters()
        if self.count % self.every == 0:
            self.steps.append(self.count)
            self.layers += [name for name in self.outputs if name not in self.layers]
            self.parameters += [name for name in parameters if name not in self.parameters]
            for name, t in {**self.outputs, **parameters}.items():
                percentiles = () if name in parameters else (5, 50, 95)
                self.add(name, _statistics(t.data, percentiles))
                self.add(
                    name,
                    {
                        f"grad_{key}": value
                        for key, value in _statistics(t.grad, percentiles).items()
                    },
                )
                if t.op and t.op.name in FLAT:
                    self.add(name, {"saturation": float(FLAT[t.op.name](t.data).mean())})
            self.before = {name: (p, p.data.copy()) for name, p in parameters.items()}
        self.count, self.outputs = self.count + 1, {}

    def compare_parameters(self):
        """Complete the latest step, now that the optimizer has moved the parameters."""
        for name, (p, before) in self.before.items():
            norm = _statistics(before)["norm"]
            self.add(
                name,
                {"update_ratio": _statistics(p.data - before)["norm"] / norm if norm else np.nan},
            )
        self.before = {}

    def add(self, row, numbers):
        """Store {statistic: number} of the step under way."""
        for statistic, value in numbers.items():
            self.values.setdefault((row, statistic), {})[self.steps[-1]] = value


def _statistics(x, percentiles=()):
    """{statistic: number} of an array or None, in float64, where small squares are not 0."""
    x = np.asarray(np.nan if x is None else x, np.float64).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        values = {"mean": x.mean(), "std": x.std(), "norm": np.sqrt(x @ x)}
        values |= {
            f"p{p}": value
            for p, value in zip(percentiles, np.percentile(x, percentiles) if percentiles else ())
        }
    return {key: float(value) for key, value in values.items()}


def explain(loss, wrt):
    """Print the ops from the loss back to wrt, with the norm and mean |entry| of each gradient.

    wrt: a Parameter or a result. The ops stand in the order of the backward walk; `leads to` lists
    the numbers of those that come next. The graph is kept: backward() still works afterwards.
    Raises RuntimeError when it is already freed, ValueError when there is no path.
    """
    found = walk(loss, starting_gradient(loss), everything=True)
    target = wrt.node or wrt
    path = {}  # each leaf or Node between loss and wrt: its gradient
    for place, g in reversed(found):  # a result comes after its inputs, a leaf once per use
        if place is target:
            path[place] = path[place] + g if place in path else g
        elif isinstance(place, Node) and any(
            x in path for x in place.inputs if isinstance(x, (Node, Tensor))
        ):
            path[place] = g
    if loss.node not in path:
        reason = (
            "the loss was not made from it"
            if wrt.requires_grad
            else "it does not require a gradient"
        )
        leaves = {x: str(x.shape) for x, _ in found if isinstance(x, Tensor)}
        raise ValueError(f"no gradient flows from the loss to this Tensor of shape {wrt.shape}: "
                         f"{reason}. The loss depends on {len(leaves)} leaves, of shapes "
                         f"{', '.join(leaves.values())}")
    numbers, rows = {place: str(i) for i, place in enumerate(reversed(path), 1)}, []
    for place, g in reversed(path.items()):
        inputs = (
            {}
            if place is target
            else dict.fromkeys(
                numbers[x] for x in place.inputs if isinstance(x, (Node, Tensor)) and x in path
            )
        )
        name = place.op.name if isinstance(place, Node) else type(place).__name__
        rows.append(
            [
                f"{numbers[place]:>2} {name}{' (wrt)' if place is target else ''}",
                ", ".join(inputs),
                str(place.shape),
                f"{_statistics(g)['norm']:.3g}",
                f"{np.abs(g).mean():.3g}",
            ]
        )
    print("\n".join(table([["op", "leads to", "shape", "|gradient|", "mean |entry|"], *rows])))


def explain_batchnorm(model):
    """Print how far each BatchNorm's running statistics are from its latest training batch.

    The running statistics are those of evaluation. start: the weight that the initial mean 0 and
    variance 1 still have, (1 - momentum) ^ updates. mean gap: |running mean - batch mean| / batch
    standard deviation, averaged over features. std ratio: running / batch. Warns where start
    exceeds 5 %.
    """
    rows, warnings = [], []
    for path, layer in model.named_modules():
        if isinstance(layer, BatchNorm):
            name, updates = layer.name or path or "batchnorm", int(layer.updates)
            batch, average = layer.latest, layer.momentum is None
            start = (
                0.0
                if layer.estimated or average and updates
                else (1 - (layer.momentum or 0)) ** updates
            )
            gap = ratio = ""
            if batch:
                std = np.sqrt(batch.var * (batch.n / (batch.n - 1)) + layer.eps)
                gap = f"{np.mean(np.abs(layer.running_mean - batch.mean) / std):.3f}"
                ratio = f"{np.mean(np.sqrt(layer.running_var + layer.eps)) / np.mean(std):.3f}"
            rows.append([name, str(updates), "average" if average else f"{layer.momentum:g}",
                         f"{start:.0%}", gap, ratio])
            if start > 0.05:
                warnings.append(f"{name}: evaluate() after {updates} updates still mixes "
                                f"{start:.0%} starting values in: train longer, raise momentum, or "
                                "call estimate_population_statistics(model, x)")
    lines = table([["BatchNorm", "updates", "momentum", "start", "mean gap", "std ratio"], *rows])
    print("\n".join([*lines, *(f"WARNING {warning}" for warning in warnings)]))
