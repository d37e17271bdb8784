"""What wrong numbers show: how they follow from the right ones, and where the two part.

Every sentence states what was measured. None of them guesses: a factor is named, or a known mistake
recognised, only if the numbers of all cases say so and no other name fits as well.
"""

from itertools import islice

import numpy as np

SAME = 1e-9  # relative; single precision: 1e-5
TRANSFORMS = {
    "the squares of the right ones": np.square,
    "the square roots of the right ones": np.sqrt,
    "the absolute values of the right ones": np.abs,
    "1 divided by the right ones": lambda a: 1 / a,
    "the logarithms of the right ones": np.log,
    "the right ones transposed, (a, b) where (b, a) belongs": np.transpose,
    "the running sums of the right ones": lambda a: np.cumsum(a, axis=0) if a.ndim else a,
    "the right ones in reverse order": lambda a: a[::-1] if a.ndim else a,
}


def close(a, b):
    """Whether two arrays have one shape and the same numbers, NaN at the same places."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and not distance(a, b) > tolerance(a, b)


def tolerance(a, b):
    """The relative difference up to which two arrays count as the same numbers."""
    return 1e-5 if np.float32 in (a.dtype, b.dtype) else SAME


def distance(a, b):
    """The largest difference of two arrays, relative to the largest entry of b.

    inf where one is finite and the other is not, or where their shapes differ.
    """
    if a.shape != b.shape:
        return np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~both], b[~both], equal_nan=True):
        return np.inf
    size = np.abs(b[both]).max(initial=0) or 1.0
    return np.abs(a - b)[both].max(initial=0) / size


def wrong(got, right):
    """A mask of the entries that differ."""
    size = np.abs(right[np.isfinite(right)]).max(initial=0) or 1.0
    return ~(np.abs(got - right) <= tolerance(got, right) * size) & ~(np.isnan(got)
                                                                     & np.isnan(right))


def first_wrong(name, got, right):
    """A line: where the first wrong entry is, and what should be there."""
    if got.shape != right.shape:
        return f"{name} has the shape {got.shape}, expected is {right.shape}"
    mask = wrong(got, right)
    if not mask.any():
        return f"{name} differs by {np.abs(got - right).max():.1e} at most"
    place = tuple(map(int, np.argwhere(mask)[0]))
    a, b = got[place], right[place]
    at = f"[{', '.join(map(str, place))}]" if place else ""
    short = f"{a:.6g}" != f"{b:.6g}"
    numbers = (f"{a:.6g}, should be {b:.6g}" if short else
               f"{b:.6g}, off by {float(a) - float(b):.1e}")
    count = f" ({mask.sum()} of {mask.size} entries are wrong)" if mask.size > 1 else ""
    return f"first wrong entry: {name}{at} is {numbers}{count}"


def cause(name, got, right, known, terms, factors):
    """Lines that say how the numbers of all cases follow from the right ones.

    Returns [] if that is not known. got, right: an array per case. known, terms, factors: a dict
    per case, of other arrays that may stand there; of the parts that the right result is the sum
    of; of numbers that may be forgotten, or be there twice.
    """
    with np.errstate(all="ignore"):
        return (_known(name, got, right, known) or _shapes(name, got, right) or _single(got, right)
                or _others(name, got, right)
                or _ratio(name, got, right, factors, simple=True)
                or _made_of(name, got, right, terms, factors)
                or _added(name, got, right, known, terms, factors)
                or _ratio(name, got, right, factors, simple=False))


def by_feature(name, got, right, known, terms, factors):
    """As cause, with shares that differ from column to column, if each of them has a name."""
    with np.errstate(all="ignore"):
        lines = _made_of(name, got, right, terms, factors, by_feature=True)
    return [] if any(line.startswith("where the share differs") for line in lines) else lines


def leads(name, got, right, known, terms, factors):
    """As cause, but what can only be said feature by feature or place by place."""
    with np.errstate(all="ignore"):
        return (_made_of(name, got, right, terms, factors, by_feature=True)
                or _by_line(name, got, right) or _places(name, got, right, known))


def _known(name, got, right, known):
    """Is it another array that is at hand, or nothing but zeros?"""
    if all(a.shape == b.shape and not a.any() for a, b in zip(got, right)):
        return [f"all of {name} is zero"]
    found = [words for words in known[0]
             if all(close(a, names[words]) for a, names in zip(got, known))]
    return [f"{name} is exactly {found[0]}"] if len(found) == 1 else []


def _shapes(name, got, right):
    """Where shapes differ: are the numbers right?"""
    pairs = [(a, b) for a, b in zip(got, right) if a.shape != b.shape]
    if not pairs:
        return []
    ways = {
        "its numbers are right, but transposed": lambda a, b: close(a.T, b),
        "its numbers are right, only the shape is not": (
            lambda a, b: a.size == b.size and close(a.reshape(b.shape), b)),
        "its numbers are right, but stretched to a larger shape": (
            lambda a, b: _fits_into(b, a) and close(a, np.broadcast_to(b, a.shape))),
        "its numbers are right, but are there once instead of in each place": (
            lambda a, b: _fits_into(a, b) and close(np.broadcast_to(a, b.shape), b)),
    }
    for word, op in (("sum", np.sum), ("mean", np.mean)):
        for axis in (0, 1, -1, None):
            where = "all entries" if axis is None else f"axis {axis}"
            ways[f"a {word} over {where} is missing: with it, yours is the right {name}"] = (
                lambda a, b, op=op, axis=axis: _reduced(op, a, axis, b))
            ways[f"it is the {word} over {where} of the right {name}"] = (
                lambda a, b, op=op, axis=axis: np.ptp(b) > 0 and _reduced(op, b, axis, a))
    for those, prefix in (pairs, ""), (pairs[:1], "in this case "):
        for words, fits in ways.items():
            if all(fits(a, b) for a, b in those):
                return [prefix + words]
    return []


def _reduced(op, a, axis, b):
    if axis is not None and a.ndim <= max(axis, 0):
        return False
    made = op(a, axis=axis)
    return close(made.reshape(b.shape), b) if made.size == b.size == 1 else close(made, b)


def _single(got, right):
    """Right but for the rounding of float32, where float64 was given."""
    if all(a.shape == b.shape and b.dtype == np.float64 and distance(a, b) < 1e-5
           for a, b in zip(got, right)):
        most = max(distance(a, b) for a, b in zip(got, right))
        size = f"right to {-np.log10(most):.0f} digits: the relative difference is {most:.1e}"
        if most < 1e-6 and any(a.dtype == np.float32 for a in got):
            return [f"{size}, that of single precision; yours is float32, float64 went in"]
        return [f"{size}; rounding to float32 on the way does that, or a small constant, but what "
                "it is here cannot be told"]
    return []


def _others(name, got, right):
    """Is it a function of the right one, or the right one at other places?"""
    if not all(a.shape == b.shape for a, b in zip(got, right)):
        return []
    for words, function in TRANSFORMS.items():
        if all(close(a, function(b)) for a, b in zip(got, right)):
            return [f"these are {words}"]
    if all(a.size > 2 and close(np.sort(a, axis=None), np.sort(b, axis=None))
           for a, b in zip(got, right)):
        return ["these are the right numbers in another order"]
    return [f"{name} is {words}" for words, a_part, b_part in (
        ("one place late: [1] is what [0] should be, and so on", slice(1, None), slice(None, -1)),
        ("one place early: [0] is what [1] should be, and so on", slice(None, -1), slice(1, None)))
        if all(a.ndim and len(a) > 2 and close(a[a_part], b[b_part])
               for a, b in zip(got, right))]


def _ratio(name, got, right, factors, simple):
    """Is it the right one times a factor? simple: only one number, or one with a simple name."""
    exact = [i for i, b in enumerate(right) if b.dtype != np.float32] or range(len(right))
    got, right, factors = ([side[i] for i in exact] for side in (got, right, factors))
    ratios = []
    for a, b in zip(got, right):
        usable = np.abs(b) > 1e-9 * np.abs(b).max(initial=0)
        if a.shape != b.shape or not usable.any() or np.any(a[~usable] != b[~usable]):
            return []
        ratios.append(np.where(usable, a / np.where(usable, b, 1), np.nan))
    if not all(np.isfinite(r[~np.isnan(r)]).all() for r in ratios):
        return []
    called = named(ratios, factors, 3 if simple else 5)
    constant = all(np.ptp(r[~np.isnan(r)]) <= 1e-7 * np.nanmax(np.abs(r)) for r in ratios)
    if constant:
        values = ", ".join(dict.fromkeys(f"{np.nanmean(r):.6g}" for r in ratios))
        if not called and len(set(values.split(", "))) > 1:
            return []
        several = " (one factor per case)" * ("," in values)
        return [f"{name} is everywhere {values} times the right one{several}"
                + (f": the factor is {called}" if called and called != values else "")]
    if called:
        return [f"{name} is the right one times {called}"]
    return []


def _by_line(name, got, right):
    """Is each column, or each row, the right one times a factor?"""
    if not all(a.shape == b.shape and b.all() for a, b in zip(got, right)):
        return []
    ratios = [a / b for a, b in zip(got, right)]
    flat = [r for r in ratios if r.ndim == 2 and len(r) > 2]
    if len(flat) == len(ratios):
        for axis, what in ((0, "column"), (1, "row")):
            if all(np.nanmax(np.ptp(r, axis=axis)) <= 1e-7 * np.nanmax(np.abs(r)) for r in flat):
                values = np.nanmean(flat[0], axis=axis)
                return [f"{what} by {what}, {name} is the right one times a factor: "
                        + ", ".join(f"{v:.4g}" for v in values[:6])]
    return []


def _made_of(name, got, right, terms, factors, by_feature=False):
    """Lines that say in which shares the parts, whose sum is right, are in the numbers.

    by_feature: the shares may differ from column to column.
    """
    cases = [i for i, parts in enumerate(terms) if parts and got[i].shape == right[i].shape]
    if not cases:
        return []
    mine = [shares(got[i], terms[i].values(), by_feature) for i in cases]
    ideal = [shares(right[i], terms[i].values(), by_feature) for i in cases]
    if any(c is None for c in mine + ideal):
        return []
    lines, unnamed = [], False
    for k, words in enumerate(terms[cases[0]]):
        have, want = [c[k] for c in mine], [c[k] for c in ideal]
        text = named(have, [factors[i] for i in cases])
        if not text:
            text = ", ".join(f"{v:.4g}" for v in np.ravel(have[0])[:6])
            unnamed |= np.size(have[0]) > 1
        if not any(np.any(a) or np.any(b) for a, b in zip(have, want)):
            continue  # it is not there, and should not be
        right_share = all(np.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(have, want))
        should = named(want, [factors[i] for i in cases]) or f"{np.ravel(want[0])[0]:.4g}"
        note = "" if right_share else ("   <-- should not be there" if should == "0" else
                                       f"   <-- should be {_times(should)}")
        there = "is not in it" if text == "0" else f"is in it {_times(text)}"
        lines.append(f"{words:<{max(map(len, terms[cases[0]]))}} {there}{note}")
    if unnamed:
        lines.append("where the share differs from feature to feature, it is no constant factor: "
                     "a quantity with a value per feature is wrong, missing or exchanged")
    return lines


def _times(text):
    return {"1": "once", "2": "twice"}.get(text, f"{text} times")


def shares(array, parts, by_feature=False):
    """The shares of the parts whose sum is the array, (parts,) or (parts, features), or None."""
    if by_feature:
        if array.ndim != 2:
            return None
        columns = [shares(array[:, [j]], [np.broadcast_to(p, array.shape)[:, [j]] for p in parts],
                        False) for j in range(array.shape[1])]
        return None if any(c is None for c in columns) else np.stack(columns, axis=1)
    table = np.stack([np.broadcast_to(p, array.shape).ravel() for p in parts], axis=1)
    sizes = np.abs(table).max(axis=0)
    if len(table) < table.shape[1] + 2 or not np.all(sizes > 0) or not np.isfinite(array).all():
        return None
    scaled = table / sizes
    found, _, rank, _ = np.linalg.lstsq(scaled, array.ravel().astype(np.float64), rcond=1e-9)
    if rank < table.shape[1] or distance(scaled @ found, array.ravel()) > 1e-8:
        return None
    found = found / sizes
    return np.where(np.abs(found) < 1e-8, 0.0, found)


def _added(name, got, right, known, terms, factors):
    """Is it the right one plus a multiple of something?"""
    if not all(a.shape == b.shape for a, b in zip(got, right)):
        return []
    pools = [{"": 1.0} | {f" times {words}": value for words, value in (names | parts).items()}
             for names, parts in zip(known, terms)]
    for words in pools[0]:
        found = [shares(a - b, [np.asarray(pool[words])], False)
                  if np.broadcast_shapes(np.shape(pool[words]), b.shape) == b.shape else None
                  for a, b, pool in zip(got, right, pools)
                  if words in pool and _fits_into(pool[words], b)]
        if len(found) == len(got) and all(c is not None and c[0] for c in found):
            values = [c[0] for c in found]
            called = named(values, factors) or ", ".join(f"{v:.6g}" for v in values)
            return [f"{name} is the right one plus {called}{words}" if words else
                    f"{name} is the right one plus {called} everywhere"]
    return []


def _fits_into(part, whole):
    try:
        return np.broadcast_shapes(np.shape(part), whole.shape) == whole.shape
    except ValueError:
        return False


def _places(name, got, right, known):
    """Which entries of the first wrong case are wrong?"""
    a, b, names = next(((a, b, names) for a, b, names in zip(got, right, known)
                        if a.shape != b.shape or wrong(a, b).any()), (None, None, None))
    if a is None or a.shape != b.shape or not a.ndim or wrong(a, b).all():
        return []
    mask = wrong(a, b)
    for words, values in names.items():
        for sign, where in (("negative", np.less), ("positive", np.greater)):
            if mask.size > 7 and np.shape(values) == b.shape and words.startswith("the argument") \
                    and np.array_equal(mask, where(values, 0)):
                return [f"{name} is wrong exactly where {words} is {sign}"]
    for axis, what in enumerate(("row", "column") if b.ndim == 2 else ("place",) * (b.ndim == 1)):
        hit = mask.any(axis=tuple(set(range(b.ndim)) - {axis}))
        places = np.flatnonzero(hit)
        if not hit.all():
            run = len(places) > 2 and len(places) == places[-1] - places[0] + 1
            numbers = (f"{what}s {places[0]} to {places[-1]}" if run else
                       f"{what} {', '.join(map(str, places[:8]))}")
            return [f"wrong in {numbers} of 0 to {len(hit) - 1}; the others are right"]
    return []


def named(values, factors, tiers=5):
    """What a factor is called that has these values, one number or array per case, or None.

    factors: {name: number or array} per case. The simplest name is taken, and none if two are
    equally simple. tiers: how many steps to go from simple names to less simple ones.
    """
    for tier in islice(zip(*map(_tiers, factors)), tiers):
        found = [candidates[0][0] for candidates in zip(*tier)
                 if all(_equal(value, number) for value, (_, number) in zip(values, candidates))]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _equal(value, number):
    if not _fits_into(number, np.asarray(value)):
        return False
    difference = np.abs(value - np.asarray(number))
    difference = difference[~np.isnan(np.asarray(value))]
    return difference.max(initial=0) <= 1e-7 * max(np.abs(number).max(), 1e-30) + 1e-12


def _tiers(factors):
    """Lists of (words, value), from the simplest names to less simple ones."""
    yield [("0", 0.0), ("1", 1.0), ("-1", -1.0), ("2", 2.0), ("1/2", 0.5), ("-2", -2.0),
           ("-1/2", -0.5)]
    simple = {name: _powers(name, value) for name, value in factors.items()}
    singles = [form for forms in simple.values() for form in forms]
    yield singles
    yield [(f"{sign}{words}", value * factor) for words, value in singles
           for sign, factor in (("-", -1), ("2 ", 2), ("1/2 ", 0.5))]
    pairs = []
    for i, first in enumerate(simple):
        for second in list(simple)[i + 1:]:
            pairs += [(_product(a, b), x * y if _fits_pair(x, y) else np.nan)  # one list in all cases
                      for a, x in simple[first][:12] for b, y in simple[second][:12]]
    yield pairs
    yield [(f"-{words}", -value) for words, value in pairs]


def _product(a, b):
    """The name of a product: 1/a times b is b/a."""
    if a.startswith("1/"):
        return f"1/({a[2:]} · {b[2:]})" if b.startswith("1/") else f"{b}/{a[2:]}"
    return f"{a}/{b[2:]}" if b.startswith("1/") else f"{a} · {b}"


def _fits_pair(x, y):
    try:
        np.broadcast_shapes(np.shape(x), np.shape(y))
        return True
    except ValueError:
        return False


def _powers(name, q):
    """(words, value) of what a number is often multiplied by instead of 1."""
    q_float = np.asarray(q, np.float64)
    forms = [(name, q_float), (f"1/{name}", 1 / q_float)]
    if isinstance(q, int):
        forms += [(f"({name} - 1)", q_float - 1), (f"1/({name} - 1)", 1 / (q_float - 1)),
                  (f"{name}/({name} - 1)", q_float / (q_float - 1)),
                  (f"({name} - 1)/{name}", (q_float - 1) / q_float)]
        forms += [(f"the square root of {words}", np.sqrt(value)) for words, value in forms[-2:]]
    elif isinstance(q, float):
        forms += [(f"(1 - {name})", 1 - q_float), (f"1/(1 - {name})", 1 / (1 - q_float)),
                  (f"{name}/(1 - {name})", q_float / (1 - q_float)),
                  (f"(1 - {name})/{name}", (1 - q_float) / q_float)]
    forms += [(f"{name}²", q_float ** 2), (f"1/{name}²", 1 / q_float ** 2),
              (f"the square root of {name}", np.sqrt(q_float)),
              (f"1/the square root of {name}", 1 / np.sqrt(q_float))]
    return forms


def normalised_by(y, x, gamma, beta, eps, means, variances):
    """Lines that say which mean and which variance y was made with.

    y is taken to be gamma (x - mean) / sqrt(variance + eps) + beta. means, variances: {words:
    (features,)} to choose from.

    Each column of y must be a straight line in x, whose slope and zero tell the two.
    """
    if y.shape != x.shape or len(x) < 3:
        return []
    lines = [shares(y[:, [j]], [x[:, [j]], np.ones((len(x), 1))]) for j in range(x.shape[1])]
    if any(line is None or not line[0] for line in lines):
        return []
    slope, height = np.transpose(lines)
    mean, variance = x[0] - (slope * x[0] + height - beta) / slope, (gamma / slope) ** 2 - eps
    said, names = [], 0
    for what, array, known in (("mean", mean, means), ("variance", variance, variances)):
        found = next((words for words, a in known.items() if np.allclose(a, array, 1e-7, 1e-9)), "")
        names += bool(found)
        said.append(f"the {what} is " + (found or ", ".join(f"{v:.4g}" for v in array[:6])))
    return [f"if gamma, beta and eps are in their places, {said[0]},", f"and {said[1]}"] * bool(
        names)


def dependence(name, argument, got, got_halved, right, right_halved):
    """A line on an argument whose halving changes this result otherwise than the right one.

    It may change only one of the two, or both by different factors; else returns None.
    """
    if not got.shape == got_halved.shape == right.shape == right_halved.shape:
        return None
    mine, ideal = distance(got_halved, got), distance(right_halved, right)
    if ideal > 1e-7 and mine <= 1e-14:
        return f"{name} does not change when {argument} is halved; the right one does"
    if ideal <= 1e-14 and 1e-7 < mine < np.inf:
        return f"{name} changes when {argument} is halved; the right one does not"
    with np.errstate(all="ignore"):
        factors = [named([after / before], [{}])
                   or next((f"{n:g}" for n in (0.25, 4.0) if _equal(after / before, n)), None)
                   for before, after in ((got, got_halved), (right, right_halved))]
    if all(factors) and factors[0] != factors[1] and "1" not in factors and "0" not in factors:
        return (f"when {argument} is halved, {name} becomes {factors[0]} times as large; the right "
                f"one {factors[1]} times")
    return None
