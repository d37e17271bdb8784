# %% [markdown]
# # Exercise 3. The walk: in which order does the gradient pass through a graph?
#
# Lesson 1. Time: 30 minutes.
#
# A node has `node.inputs`, the nodes that it was made from, and `node.slopes`, its derivative
# with respect to each of them. Leaves have no inputs. A node may be an input of several nodes,
# and of one node twice (`x * x`). Return all nodes from which `last` was made, `last` included,
# so that each comes *after* all nodes that use it. Then walk in this order, and return d last /
# d node for each. A chain may have 10,000 nodes; Python gives up a recursion after 1,000.

# %%
def order(last):
    """The nodes of the graph as a list, each once, each after all that use it; first is last."""
    # --- solution
    uses, found = {}, [last]
    for node in found:  # grows as we go
        for part in node.inputs:
            if part not in uses:
                found.append(part)
            uses[part] = uses.get(part, 0) + 1
    ready, walked = [last], []
    while ready:
        walked.append(ready.pop())
        for part in walked[-1].inputs:
            uses[part] -= 1
            if uses[part] == 0:
                ready.append(part)
    return walked
    # --- end


def gradients(last):
    """{node: d last / d node} for all nodes that order(last) returns."""
    # --- solution
    result = {last: 1.0}
    for node in order(last):
        for part, slope in zip(node.inputs, node.slopes):
            result[part] = result.get(part, 0.0) + slope * result[node]
    return result
    # --- end


# %% The checks
import numpy as np

from minidl.course.student import Refused

HINTS = [
    "A node can be walked when all that use it have been walked. So count the users first.",
    "Go through the graph once and count for each node how often it is an input. Then start at "
    "last, and lower the counts of the inputs of each node that you walk.",
    "A node whose count has come down to 0 is ready: keep a list of those. A gradient is the sum "
    "over all users, so add to what is already there.",
]


class Node:
    def __init__(self, number):
        self.number, self.inputs, self.slopes = number, (), ()

    def __repr__(self):
        return f"node {self.number}"


def cases(rng):
    def case(edges):
        return {"edges": np.array(edges), "slopes": rng.uniform(0.5, 1.5, len(edges))}
    shared = case([(0, 1), (0, 2), (1, 3), (2, 1), (3, 4), (3, 4), (2, 5), (5, 4),
                   (4, 6)])
    ladder = [(i, j) for i in range(10) for j in (i + 1, i + 2)]
    chain = {"edges": np.stack([np.arange(10_000), np.arange(1, 10_001)], axis=1),
             "slopes": np.exp(rng.normal(0, 0.01, 10_000))}
    return [shared, case(ladder), chain]


def label(case):
    return ("a graph with shared nodes", "a ladder of shared nodes", "a chain of 10,000 nodes")[
        [9, 20, 10_000].index(len(case["slopes"]))]


HALVED = False


def play(mine, case):
    nodes = [Node(i) for i in range(case["edges"].max() + 1)]
    for (a, b), slope in zip(case["edges"].tolist(), case["slopes"].tolist()):
        nodes[a].inputs += (nodes[b],)
        nodes[a].slopes += (slope,)
    walked, found = mine.order(nodes[0]), mine.gradients(nodes[0])
    if not isinstance(walked, list) or not all(isinstance(node, Node) for node in walked):
        raise Refused("order should return a list of nodes")
    if not isinstance(found, dict):
        raise Refused("gradients should return a dict, {node: number}")
    return {"order": np.array([node.number for node in walked]),
            "gradients": np.array([float(found.get(node, np.nan)) for node in nodes])}


def judge(name, case, got, right):
    """How many nodes or edges are at fault, and the first of each kind."""
    if name == "gradients" and np.isnan(got).any():
        return np.isnan(got).sum(), [f"node {np.flatnonzero(np.isnan(got))[0]} has no gradient: it "
                                     "is no key of the dict, or its value is NaN"]
    if name != "order":
        return None
    place = {int(n): i for i, n in reversed(list(enumerate(got)))}
    twice = [n for n in place if np.count_nonzero(got == n) > 1] if len(got) < 1000 else []
    missing = [n for n in range(len(right)) if n not in place]
    early = [(a, b) for a, b in case["edges"].tolist()
             if a in place and b in place and place[b] < place[a]]
    words = [f"the order is {got.tolist()}"] if len(got) < 30 else []
    words += [f"node {n} is there {np.count_nonzero(got == n)} times" for n in twice[:1]]
    words += [f"node {n} is missing" for n in missing[:1]]
    words += [f"node {b} comes before node {a}, which uses it" for a, b in early[:1]]
    if len(early) == len(set(map(tuple, case["edges"].tolist()))) or early and not missing and all(
            place[b] < place[a] for a, b in case["edges"].tolist()):
        words.append("read backwards, it is a right order")
    if missing and set(missing) == set(range(len(right))) - set(case["edges"][:, 0].tolist()):
        words.append("the missing nodes are exactly those without inputs")
    return len(twice) + len(missing) + len(early) + (len(got) - len(set(got.tolist()))), words


def evidence(name, case, got, right):
    """Do the gradients only follow from a wrong order? Which users does a node miss?"""
    if name != "gradients" or len(got[name]) > 1000:
        return []
    for node in right["order"].tolist():
        users = [(a, slope * right[name][a]) for (a, b), slope in zip(
            case["edges"].tolist(), case["slopes"].tolist()) if b == node]
        if users and not np.isclose(got[name][node], right[name][node]):
            said = ", ".join(f"{part:.4g} of node {a}" for a, part in users)
            alone = [f": that of node {a} alone" for a, part in users
                     if len(users) > 1 and np.isclose(part, got[name][node])]
            words = [f"the first wrong one on the way is node {node}: the shares of its users are "
                     f"{said}, yours is {got[name][node]:.4g}{''.join(alone[:1])}"]
            break
    else:
        words = []
    if np.array_equal(got["order"], right["order"]):
        return words
    found = {0: 1.0}
    for node in got["order"].tolist():
        for (a, b), slope in zip(case["edges"].tolist(), case["slopes"].tolist()):
            if a == node:
                found[b] = found.get(b, 0.0) + slope * found.get(a, np.nan)
    mine = [found.get(node, np.nan) for node in range(len(got["gradients"]))]
    if np.allclose(mine, got["gradients"], equal_nan=True):
        return ["these gradients follow from your order: look at the order first"]
    return words


def _recursive(last):
    walked, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for part in node.inputs:
                visit(part)
            walked.append(node)
    visit(last)
    return walked[::-1]


def _breadth_first(last):
    walked, seen = [last], {last}
    for node in walked:
        walked += [part for part in dict.fromkeys(node.inputs) if part not in seen]
        seen.update(node.inputs)
    return walked


def _twice(last):
    walked = [last]
    for node in walked:
        walked += node.inputs
    return walked


def _gradients(add):
    def gradients(last):
        result = {last: 1.0}
        for node in order(last):
            for part, slope in add(node):
                result[part] = result.get(part, 0.0) + slope * result[node]
        return result
    return {"gradients": gradients}


def _overwritten(last):
    result = {last: 1.0}
    for node in order(last):
        for part, slope in zip(node.inputs, node.slopes):
            result[part] = slope * result[node]
    return result


MUTATIONS = {
    "the walk is recursive: Python gives up after 1,000 calls within calls": {
        "order": _recursive},
    "nodes are taken in the order of their distance from last: a long way and a short one may "
    "lead to the same node": {"order": _breadth_first},
    "a node is visited once for each of its users": {"order": _twice},
    "the order is turned round: inputs come before what uses them": {
        "order": lambda last: order(last)[::-1]},
    "a gradient is overwritten instead of added to": {"gradients": _overwritten},
    "an input that one node uses twice is counted once": _gradients(
        lambda node: dict(zip(node.inputs, node.slopes)).items()),
    "the slopes are forgotten": _gradients(lambda node: ((part, 1.0) for part in node.inputs)),
}
