# %% [markdown]
# # Solutions to lesson 21: what a compiler does
#
# For teachers. Numbers: digits; 784-64-10 with BatchNorm.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from time import perf_counter

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, compiler, data, optim
from minidl.lessonkit import Lesson

lesson = Lesson("21_solutions")
(x, y), _ = data.load("digits")


def network():
    return Sequential(
        [Dense(64), BatchNorm(), Activation("relu"), Dense(10)], seed=0
    ).build(x.shape[1])


def program(passes=compiler.PASSES, optimizer=None, batch=32):
    """The text of one training step."""
    return compiler.source(
        network(), "cross_entropy", optimizer or optim.SGD(lr=0.1), batch, passes
    )


def start_vectors():
    """The initial weights of the network, and its running mean and variance."""
    weights = np.concatenate([p.data.reshape(-1) for p in network().parameters()])
    return weights, np.repeat(np.float32([0, 1]), 64)


def made(text, *vectors):
    """The function step of a program, which moves the vectors."""
    namespace = {}
    exec(text, namespace)
    return namespace["program"](*(vectors or start_vectors()))


def fastest(steps, batch=32):
    """Microseconds of each of several steps, which take turns: the quickest turn."""
    times = dict.fromkeys(steps, np.inf)
    for _ in range(30):
        for name, step in steps.items():
            start = perf_counter()
            for i in range(10):
                step(
                    x[i * batch : i * batch + batch],
                    y[i * batch : i * batch + batch],
                    0.1,
                )
            times[name] = min(times[name], 1e5 * (perf_counter() - start))
    return times


# %% [markdown]
# ## 1. Easy: Adam
#
# New is the end, under "update": the two moments move in place, the rate is corrected
# for their start at 0, and the vector of gradients, which nobody needs any more, holds
# the step. So four arrays are as large as all weights: the weights, the gradients, and
# the two moments. The engine makes two more for each parameter: the square of the
# gradient, and the step.

# %%
text = program(optimizer=optim.Adam())
print(text[text.index("        # update") : text.index("    return step")])
print(
    "vectors as large as all weights:",
    text[text.index("def program") :].split(")")[0],
    "and gradients",
)
lesson.check(
    "1: vectors of moments that the program moves",
    text[: text.index("Returns")].count("_sum"),
    at_least=2,
    claim=False,
)

# %% [markdown]
# ## 2. Easy: Leave one pass out
#
# The first is worth most by far: the dead line is a product as large as the layer's
# forward. With batches of 512 the products take nearly all of the time, and the update
# of the weights, whose time does not depend on the batch, hardly counts.

# %%
for batch in (32, 512):
    steps = {"all passes": made(program(batch=batch))}
    for left_out in compiler.PASSES:
        passes = [rewrite for rewrite in compiler.PASSES if rewrite is not left_out]
        steps[f"without {left_out.__name__}"] = made(program(passes, batch=batch))
    for name, time in fastest(steps, batch).items():
        print(f"batches of {batch:3}, {name:22} {time:6.0f} microseconds")

# %% [markdown]
# ## 3. Easy: The last images of an epoch
#
# Both programs are made with the same vectors, so both move the same weights. `fit`
# sees the same batches in the same order, and ends with the same loss.

# %%
vectors = start_vectors()
steps = {size: made(program(batch=size), *vectors) for size in (32, len(x) % 32)}
twin = network()
for _ in range(2):
    for xb, yb in data.batches(x, y, 32, twin.shuffle_rng):
        loss, _ = steps[len(xb)](xb, yb, 0.1)
history = network().compile(optim.SGD(lr=0.1)).fit(x, y, epochs=2, verbose=0)
expected = history.steps["loss"][-1]
print(f"last loss {loss:.6f}, of fit {expected:.6f}")
lesson.check(
    "3: last loss of two programs - of fit",
    abs(loss - expected),
    at_most=1e-2,
    claim=False,
)

# %% [markdown]
# ## 4. Medium: A pass that counts
#
# The update moves 3 times 51,018 numbers, the two products with the images read 75,000.
# What a fused loop could leave out are results that the next line reads and nobody
# else: `centred * centred` before its mean, the sums in the gradient of BatchNorm. They
# are 2,048 numbers each here, so fusion has little to gain on a network as small as
# this.


# %%
def traffic(program):
    """Change nothing; print the lines that read and write most numbers."""
    moved = [
        (
            sum(np.size(o.value) for o in kernel.operands) + np.size(kernel.value),
            str(kernel),
        )
        for kernel in program.kernels
    ]
    for numbers, line in sorted(moved, reverse=True)[:10]:
        print(f"{numbers:8,} {line}")


counted = program([*compiler.PASSES, traffic])
lesson.check(
    "4: the pass that counts changes the program",
    float(counted != program()),
    at_most=0,
    claim=False,
)

# %% [markdown]
# ## 5. Medium: A bias before BatchNorm
#
# BatchNorm subtracts the mean of the batch, and with it the bias. So the line that adds
# the bias can go, if its readers read the product instead. But the running mean is used
# in evaluation, where the bias *is* added: it has to be the mean with the bias. One
# line of 64 numbers takes the place of one of 2,048.


# %%
def cancel_bias(program):
    """Leave out a bias that BatchNorm subtracts; add it to the mean that is kept."""
    kernels = program.kernels
    add = next(
        kernel
        for kernel in kernels
        if kernel.operands[1:] and kernel.operands[1].name == "dense_bias"
    )
    kernels.remove(add)
    product, bias = add.operands
    program.rename(add.name, product.name)
    moving = next(
        i for i, kernel in enumerate(kernels) if "running statistics" in kernel.scope
    )
    kernels.insert(
        moving,
        type(add)(
            "mean_with_bias",
            add.form,
            [kernels_mean(kernels), bias],
            bias.value,
            kernels[moving].scope,
        ),
    )
    for kernel in kernels[moving + 1 :]:
        kernel.operands = [
            o._replace(name="mean_with_bias", text="mean_with_bias")
            if o.name == "mean_batchnorm"
            else o
            for o in kernel.operands
        ]


def kernels_mean(kernels):
    """The batch mean, as those read it that centre."""
    centred = next(kernel for kernel in kernels if kernel.name == "centred_batchnorm")
    return centred.operands[1]


passes = [*compiler.PASSES[:1], cancel_bias, *compiler.PASSES[1:]]
kept, other = start_vectors(), start_vectors()
with_bias, without = made(program(), *kept), made(program(passes), *other)
differences = []
for i in range(50):
    batch = x[32 * i : 32 * i + 32], y[32 * i : 32 * i + 32]
    differences.append(abs(with_bias(*batch, 0.1)[0] - without(*batch, 0.1)[0]))
moved = np.abs(kept[1] - other[1]).max()
print(f"losses of 50 steps differ by {max(differences):.1g}, statistics by {moved:.1g}")
print(fastest({"with the line": with_bias, "without": without}))
lesson.check(
    "5: losses and statistics with the bias - without",
    max(*differences, moved),
    at_most=1e-4,
    claim=False,
)

# %% [markdown]
# ## 6. Research: XLA
#
# On one thread XLA is about as fast as the program with batches of 32. With more
# samples and layers that are not products, such as BatchNorm and sigmoid, each pass
# over memory that it fuses away counts; where the products dominate, the two BLAS
# libraries are what is compared.

# %%
try:
    import jax
except ImportError:
    print("jax is not installed: pip install jax")
else:

    def loss_of(weights, images, labels):
        (kernel, bias, gamma, beta), (last, last_bias) = weights
        z = images @ kernel + bias
        z = gamma * (z - z.mean(axis=0)) / jax.numpy.sqrt(z.var(axis=0) + 1e-5) + beta
        logits = jax.nn.relu(z) @ last + last_bias
        return -jax.nn.log_softmax(logits)[jax.numpy.arange(len(labels)), labels].mean()

    @jax.jit
    def by_xla(weights, images, labels):
        loss, gradients = jax.value_and_grad(loss_of)(weights, images, labels)
        return loss, jax.tree.map(lambda p, g: p - 0.1 * g, weights, gradients)

    for batch in (32, 512):
        arrays = [jax.numpy.asarray(p.data) for p in network().parameters()]
        weights = [arrays[:4], arrays[4:]]

        def jitted(images, labels, rate):
            global weights
            loss, weights = by_xla(weights, images, labels)
            return loss.block_until_ready()

        print(
            batch,
            fastest(
                {"XLA": jitted, "minidl's compiler": made(program(batch=batch))},
                batch,
            ),
        )
lesson.finish()
