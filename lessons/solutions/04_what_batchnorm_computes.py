# %% [markdown]
# # Solutions to lesson 4, for teachers
#
# The numbers are those of seed 0 and the digits. The first cell repeats what the
# solutions need of the lesson.

# %%
import numpy as np

from minidl import Activation, BatchNorm, Dense, LayerNorm, Sequential, experiments
from minidl.lessonkit import Lesson, scale_and_shift

lesson = Lesson("04_solutions")
data = lesson.load_data()
rng = np.random.default_rng(lesson.seed)
STEPS = 400


def batch_norm(x, eps=1e-5):
    return BatchNorm(eps=eps, input_shape=x.shape[1]).astype(np.float64)(x).numpy()


class Identity(BatchNorm):
    """Scales and shifts, and does not normalise."""

    forward = scale_and_shift


def network(seed, frozen=(), norm=BatchNorm, activation="sigmoid", eps=1e-5):
    """frozen: the names of the parameters of the hidden layers that are not trained."""
    layers = []
    for _ in range(3):
        layers += [Dense(100), norm(eps=eps), Activation(activation)]
    model = Sequential([*layers, Dense(10)], seed=seed).build(784)
    for layer in layers:
        for name, parameter in layer.named_parameters():
            parameter.requires_grad = name not in frozen
    return model


ALONE = ("kernel", "bias", "gamma", "beta")
WITH = ("kernel", "bias")


def accuracies(networks, lr=1.0):
    """The median test accuracy of each, of two seeds."""
    result = experiments.compare(
        networks,
        data,
        lr=lr,
        steps=STEPS,
        batch_size=64,
        seeds=lesson.seeds(2),
        eval_steps=[STEPS],
    )
    return {name: np.median(result.accuracy_at(name, STEPS)) for name in networks}


# %% [markdown]
# ## 1. Easy: LayerNorm by transposing twice
#
# `batch_norm(table.T).T`, and it agrees with LayerNorm to the last digit: the two
# differ in the axis only.

# %%
table = rng.standard_normal((64, 100)) * rng.uniform(0.5, 3, 100)
layer_norm = LayerNorm(input_shape=100).astype(np.float64)(table).numpy()
difference = np.abs(batch_norm(table.T).T - layer_norm).max()
print(f"largest difference {difference:.1e}")
lesson.check("transposed BatchNorm - LayerNorm", difference, at_most=1e-12)

# %% [markdown]
# ## 2. Easy: a batch of two
#
# Always -1 and 1, whatever the two numbers are (0 and 0 if they are equal): the mean is
# the middle between them, the standard deviation is half their distance $d$, and
# $\frac{d / 2}{\sqrt{d^2 / 4 + \epsilon}}$ is almost 1. All that is left of two samples
# is which one is larger: one bit for each feature.

# %%
for pair in ([3, 5], [-100, 7], [0.1, 0.2], [4, 4]):
    print(f"{pair}: {np.round(batch_norm(np.array([pair], float).T).ravel(), 4) + 0.0}")
pairs = rng.standard_normal((1000, 2)) * 10
signs = np.array([np.abs(batch_norm(pair[:, None])) for pair in pairs])
lesson.check(
    "1,000 pairs: the median size of an output", np.median(signs), at_least=0.999
)

# %% [markdown]
# ## 3. Medium: eps = 1 in every BatchNorm
#
# Both networks with frozen kernels: from 77 % and 82 % right to 10 %, which is chance.
# The one that trains all weights only falls from 91 % to 87 %. The variance of a unit
# is far below 1 here, so with an eps of 1 the outputs of each layer vary less than its
# inputs, and after three layers the image hardly shows. Kernels that learn can grow
# until the variance is above eps. $\gamma$ could repair it too, but its gradient is as
# small as the signal.

# %%
FROZEN = {"output layer alone": ALONE, "with gamma and beta": WITH, "all weights": ()}
large_eps = {}
for eps in (1e-5, 1.0):
    large_eps[eps] = accuracies(
        {
            name: lambda seed, frozen=frozen, eps=eps: network(seed, frozen, eps=eps)
            for name, frozen in FROZEN.items()
        }
    )
    print(
        f"eps {eps:5g}: "
        + ", ".join(f"{name} {a:.3f}" for name, a in large_eps[eps].items())
    )
lost = {name: large_eps[1e-5][name] - large_eps[1.0][name] for name in FROZEN}
lesson.check(
    "lost by eps = 1: output layer alone - all weights",
    lost["output layer alone"] - lost["all weights"],
    at_least=0.02,
)

# %% [markdown]
# ## 4. Medium: freeze gamma and beta
#
# One point, 89.8 % instead of 90.8 %: the kernels behind can scale by themselves, and
# the bias of the next layer can shift. What the normalisation is worth does not hang on
# $\gamma$ and $\beta$.

# %%
fixed = accuracies(
    {
        "all": lambda seed: network(seed),
        "gamma and beta frozen": lambda seed: network(seed, ("gamma", "beta")),
    }
)
print(", ".join(f"{name}: {a:.3f}" for name, a in fixed.items()))
lesson.check(
    "accuracy lost without gamma and beta",
    abs(fixed["all"] - fixed["gamma and beta frozen"]),
    at_most=0.03,
    claim=False,
)

# %% [markdown]
# ## 5. Research: ReLU, and nothing normalised
#
# There $\gamma$ and $\beta$ gain 15 points, from 51 % to 67 %, more than with
# BatchNorm. So the last CHECK shows that 600 numbers for scale and shift are worth
# something on random features. It does not show that this has to do with
# *normalisation*. The CHECK before it, of the accuracy reached, is the one that fails
# under the identity with sigmoids.

# %%
identity = accuracies(
    {
        name: lambda seed, frozen=FROZEN[name]: network(seed, frozen, Identity, "relu")
        for name in ("output layer alone", "with gamma and beta")
    },
    lr=0.1,
)
print("ReLU, identity: " + ", ".join(f"{name} {a:.3f}" for name, a in identity.items()))
lesson.check(
    "identity, ReLU: accuracy gained by gamma and beta",
    identity["with gamma and beta"] - identity["output layer alone"],
    at_least=0.01,
    claim=False,
)
lesson.finish()
