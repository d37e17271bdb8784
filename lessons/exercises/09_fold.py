# %% [markdown]
# # Exercise 9. Fold BatchNorm into Dense: can a trained layer vanish?
#
# Lesson 11. Time: 15 minutes.
#
# In evaluation mode, $z = x W + b$ and then $\gamma (z - \mu) / \sqrt{\sigma^2 + \epsilon} +
# \beta$ with constant statistics is one map from x to the output, and it is again of the form
# $x W' + b'$. Find the kernel and the bias of the one Dense layer that does the work of both.

# %%
import numpy as np


def fold(kernel, bias, gamma, beta, running_mean, running_var, eps):
    """The new kernel (inputs, units) and bias (units,); gamma ... running_var are (units,)."""
    # --- solution
    scale = gamma / np.sqrt(running_var + eps)
    return kernel * scale, (bias - running_mean) * scale + beta
    # --- end


# %% The checks
HINTS = [
    "Write down the output of one unit as a function of x, and sort it: what multiplies x, and "
    "what is left if x is 0?",
    "gamma divided by the root is one number per unit. It multiplies all that Dense returns, its "
    "bias too.",
    "The kernel has one column per unit: scale the columns. The bias: subtract the mean, scale, "
    "add beta.",
]


def cases(rng):
    def case(inputs, units):
        vectors = {name: rng.uniform(0.5, 2, units) for name in
                   ("bias", "gamma", "beta", "running_mean", "running_var")}
        return {"kernel": rng.standard_normal((inputs, units)), **vectors,
                "eps": float(rng.uniform(0.1, 0.3))}
    return [case(3, 7), case(8, 8), _trained(int(rng.integers(1000)))]


def _trained(seed):
    """The two layers of a small network after some training."""
    from minidl import BatchNorm, Dense, Sequential, optim, training
    from minidl import functional as F
    rng = np.random.default_rng(seed)
    model = Sequential([Dense(9), BatchNorm(eps=0.1)], seed=seed)
    optimizer = optim.Adam(model.build(4).parameters(), lr=0.1)
    for _ in range(20):
        x = rng.normal(1, 2, (16, 4)).astype(np.float32)
        training.step(model, F.cross_entropy, optimizer, x, (x.argmax(axis=1)))
    dense, norm = model.layers
    arrays = [dense.kernel.data, dense.bias.data, norm.gamma.data, norm.beta.data,
              norm.running_mean, norm.running_var]
    names = ("kernel", "bias", "gamma", "beta", "running_mean", "running_var")
    return {name: a.astype(np.float64) for name, a in zip(names, arrays)} | {"eps": 0.1}


def play(mine, case):
    return {"kernel, bias": mine.fold(*case.values())}


def label(case):
    return "inputs {}, units {}".format(*case["kernel"].shape)


def terms(case):
    scale = case["gamma"] / np.sqrt(case["running_var"] + case["eps"])
    return {"bias": {"the old bias gamma/sqrt(running_var + eps)": scale * case["bias"],
                     "running_mean gamma/sqrt(running_var + eps)": scale * case["running_mean"],
                     "running_var gamma/sqrt(running_var + eps)": scale * case["running_var"],
                     "beta": case["beta"]}}


def factors(case):
    s = np.sqrt(case["running_var"] + case["eps"])
    return {"(gamma/sqrt(running_var + eps))": case["gamma"] / s, "sqrt(running_var + eps)": s}


def _wrong(kernel=lambda w, scale: w * scale, bias=lambda b, mean, scale, beta: (
        b - mean) * scale + beta, root=lambda var, eps: np.sqrt(var + eps)):
    def fold(w, b, gamma, beta, mean, var, eps):
        scale = gamma / root(var, eps)
        return kernel(w, scale), bias(b, mean, scale, beta)
    return {"fold": fold}


MUTATIONS = {
    "the scale is on the wrong axis, that of the inputs (which only a square kernel allows)":
        _wrong(lambda w, scale: w * scale[:, None]),
    "the old bias is not scaled": _wrong(bias=lambda b, mean, k, beta: b - mean * k + beta),
    "the mean is not scaled": _wrong(bias=lambda b, mean, k, beta: b * k - mean + beta),
    "beta is scaled too": _wrong(bias=lambda b, mean, k, beta: (b - mean + beta) * k),
    "the old bias is forgotten": _wrong(bias=lambda b, mean, k, beta: beta - mean * k),
    "the mean is forgotten": _wrong(bias=lambda b, mean, k, beta: b * k + beta),
    "eps is forgotten": _wrong(root=lambda var, eps: np.sqrt(var)),
    "eps is outside the root": _wrong(root=lambda var, eps: np.sqrt(var) + eps),
    "the root is forgotten": _wrong(root=lambda var, eps: var + eps),
}
