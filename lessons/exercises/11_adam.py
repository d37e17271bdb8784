# %% [markdown]
# # Exercise 11. Adam: how large is the first step?
#
# Lesson 8. Time: 20 minutes.
#
# Adam (Kingma and Ba 2015, algorithm 1) keeps running averages of the gradient, m, and of its
# square, v: $m \leftarrow \beta_1 m + (1 - \beta_1) g$ and $v \leftarrow \beta_2 v + (1 -
# \beta_2) g^2$. Both start at 0 and are therefore too small at first, which is undone by
# dividing them by $1 - \beta_1^t$ and $1 - \beta_2^t$ in the $t$-th step. Then $p \leftarrow p
# - \eta \hat m / (\sqrt{\hat v} + \epsilon)$.

# %%
import numpy as np


def step(p, g, m, v, done, lr, beta1, beta2, eps):
    """The new p, m and v, arrays of one shape. done: how many steps were made before this one."""
    # --- solution
    t = done + 1
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g ** 2
    m_hat, v_hat = m / (1 - beta1 ** t), v / (1 - beta2 ** t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
    # --- end


# %% The checks
from minidl.course.evidence import named, shares
from minidl.course.student import take

HINTS = [
    "In the very first step m_hat is g itself. Is yours? The paper counts steps from 1.",
    "The corrected averages are for this step only; what is kept, and returned, is without "
    "correction.",
    "Update m and v, divide each by 1 minus its beta to the power of (done + 1), take the root of "
    "the corrected v, and add eps after the root.",
]


def cases(rng):
    def case(shape):
        return {"p": rng.uniform(1, 2, shape), "g": rng.standard_normal((5, *shape)),
                "m": rng.standard_normal(shape), "v": rng.uniform(0.5, 2, shape),
                "lr": float(rng.uniform(0.05, 0.2)), "beta1": float(rng.uniform(0.8, 0.9)),
                "beta2": float(rng.uniform(0.95, 0.99)), "eps": float(rng.uniform(0.01, 0.1))}
    tiny = case((6,)) | {"g": 1e-8 * rng.choice([-1, 1, 2], (5, 6)), "eps": 1e-8}
    return [case((8,)), case((4, 3)), tiny]


def play(mine, case):
    p, g, m, v, lr, *betas, eps = case.values()
    made = {"m after a step, v after a step": take(
        "p, m, v", mine.step(p, g[0], m, v, 3, lr, *betas, eps))[1:]}
    m, v, places = np.zeros_like(p), np.zeros_like(p), []
    for done, gradient in enumerate(g):
        new, m, v = take("p, m, v", mine.step(p, gradient, m, v, done, lr, *betas, eps))
        places.append(new - p)
        p = new
    return made | {"steps 1 to 5": np.stack(places)}


def label(case):
    return f"p {case['p'].shape}" + ", gradients of 1e-8" * bool(case["eps"] == 1e-8)


def terms(case):
    _, g, m, v, _, b1, b2, _ = case.values()
    g = g[0]
    return {} if case["eps"] == 1e-8 else {
        "m after a step": {"beta1 m": b1 * m, "(1 - beta1) g": (1 - b1) * g,
                           "(1 - beta1) g²": (1 - b1) * g ** 2},
        "v after a step": {"beta2 v": b2 * v, "(1 - beta2) g²": (1 - b2) * g ** 2,
                           "(1 - beta2) g": (1 - b2) * g, "(1 - beta2) |g|": (1 - b2) * np.abs(g)}}


FOLLOWS = {"steps 1 to 5": ("m after a step", "v after a step")}


def unclear(name, case, got, right):
    """If the numerator is right, what is the denominator made of? And the other way round?"""
    if name != "steps 1 to 5" or got[name].ndim != 2 or np.ptp(got[name] / right[name]) < 1e-9:
        return []
    (_, g, _, _, lr, b1, b2, eps), t = case.values(), np.arange(1, 6)[:, None]
    m, v = (np.stack([sum((1 - b) * b ** (i - j) * a[j] for j in range(i + 1)) for i in range(5)])
            for a, b in ((g, b1), (g ** 2, b2)))
    top, root, step = m / (1 - b1 ** t), np.sqrt(v / (1 - b2 ** t)), -got[name] / lr
    ratio = got[name] / right[name]
    if np.ptp(ratio, axis=1).max() < 1e-9 * np.abs(ratio).max():
        return ["in each step all entries are the right ones times one number, in steps 1 to 5 "
                + ", ".join(f"{x:.4g}" for x in ratio[:, 0])]
    t = t[1:, 0]
    factors = {"(1 - beta1^t)": 1 - b1 ** t, "(1 - beta2^t)": 1 - b2 ** t}
    for side, other, array, parts, words in (
            ("denominator", "numerator", top / step, (root, eps + 0 * root),
             ("the root of v_hat", "eps")),
            ("numerator", "denominator", step * (root + eps), (top, g), ("m_hat", "g"))):
        found = shares(array[1:].T, [part[1:].T for part in parts], True)
        said = [] if found is None else [
            named([share], [factors]) or ", ".join(f"{x:.4g}" for x in share) for share in found]
        if "1" in said:  # else both parts of the fraction may be wrong
            return [f"if the {other} is right, then in the {side} of steps 2 to 5 {one} is there "
                    f"{share} times" for one, share in zip(words, said)]
    return []


def _wrong(average=lambda a, b, g: b * a + (1 - b) * g, correct=lambda a, b, t: a / (1 - b ** t),
           correct_v=None, move=lambda m, v, eps: m / (np.sqrt(v) + eps), first=1, swap=False,
           keep=False):
    def step(p, g, m, v, done, lr, beta1, beta2, eps):
        b1, b2 = (beta2, beta1) if swap else (beta1, beta2)
        m, v = average(m, b1, g), average(v, b2, g ** 2)
        hats = (correct(m, b1, done + first), (correct_v or correct)(v, b2, done + first))
        return p - lr * move(*hats, eps), *(hats if keep else (m, v))
    return {"step": step}


MUTATIONS = {
    "the bias correction is missing": _wrong(correct=lambda a, b, t: a),
    "the corrections multiply where they should divide": _wrong(
        correct=lambda a, b, t: a * (1 - b ** t)),
    "only m is corrected, not v": _wrong(correct_v=lambda a, b, t: a),
    "only v is corrected, not m": _wrong(correct=lambda a, b, t: a,
                                         correct_v=lambda a, b, t: a / (1 - b ** t)),
    "eps is inside the root": _wrong(move=lambda m, v, eps: m / np.sqrt(v + eps)),
    "eps is forgotten": _wrong(move=lambda m, v, eps: m / np.sqrt(v)),
    "t counts from 0 in the correction, a division by 0 in the first step": _wrong(first=0),
    "t is one too large": _wrong(first=2),
    "the root is forgotten": _wrong(move=lambda m, v, eps: m / (v + eps)),
    "beta1 and beta2 are exchanged": _wrong(swap=True),
    "the factors (1 - beta) are missing": _wrong(lambda a, b, g: b * a + g),
    "the corrected averages are kept": _wrong(keep=True),
    "the step is made with the old m and v": {"step": lambda p, g, m, v, done, lr, b1, b2, eps: (
        p - lr * m / (1 - b1 ** (done + 1)) / (np.sqrt(v / (1 - b2 ** (done + 1))) + eps),
        *step(p, g, m, v, done, lr, b1, b2, eps)[1:])},
    "the correction is 1 - beta in every step": _wrong(correct=lambda a, b, t: a / (1 - b)),
    "the correction is 1 - beta t instead of 1 - beta to the power of t": _wrong(
        correct=lambda a, b, t: a / (1 - b * t)),
}
