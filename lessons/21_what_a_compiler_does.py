# %% [markdown]
# # 21. What a compiler does: where does the time of a step go?
#
# TensorFlow, JAX and PyTorch can *compile* a model: the same network, the same numbers,
# in less time. What happens in there? A compiler reads the graph of a training step and
# writes a program for it: the loop that you would have written by hand in lesson 2, had
# you derived all gradients yourself. minidl has a small one. It writes plain NumPy, so
# we can read what it wrote, after each of its passes, and see what each of them is
# worth.
#
# You need: lessons 1 and 2. Running time: 10 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import compiler, optim, plotting, training
from minidl import functional as F
from minidl.data import batches
from minidl.lessonkit import Lesson

lesson = Lesson("21_what_a_compiler_does")
data = lesson.load_data()
(x, y), (x_test, y_test) = data

# %% [markdown]
# ## The graph
#
# A forward pass leaves a graph: which op made which result from which inputs.
# `backward()` walks it. A compiler is a second reader of the same graph. It does not
# compute with it: it writes down what is to be computed.

# %%
BATCH, RATE = 32, 0.1


def network():
    layers = [Dense(64), BatchNorm(), Activation("relu"), Dense(10)]
    return Sequential(layers, seed=lesson.seed).build(x.shape[1])


model = network()
loss = F.cross_entropy(model(x[:BATCH]), y[:BATCH])
fig = plotting.graph(loss, dict(model.named_parameters())).figure
fig.suptitle("The graph of a step: the compiler reads it to the right, then back",
             fontsize=18)
lesson.show(fig, "graph")

# %% [markdown]
# Each op of minidl is declared once, by its forward and a gradient for each input.
# ReLU, for instance, is `np.maximum(x, 0)` and `g * (y > 0)`. The compiler takes these
# texts, puts in the names of the arrays at hand, and cuts them into *kernels*: lines
# that call one NumPy function each. Of two layers of this network the raw program says:


# %%
def program(passes, optimizer=None):
    """The text of one training step after some passes of the compiler."""
    optimizer = optimizer or optim.SGD(lr=RATE)
    return compiler.source(network(), "cross_entropy", optimizer, BATCH, passes)


def lines(text):
    """The lines of the step alone."""
    body = text[text.index("def step"):text.index("    return step")].splitlines()
    return [line.strip() for line in body[1:] if line.strip()]


raw = lines(program([]))
print("\n".join(raw[:raw.index("# dense_1 Dense(64 -> 10): linear")]))

# %% [markdown]
# ## Predict
#
# The whole raw program does what the engine does. Now the compiler improves it, in four
# *passes*:
#
# 1. **dead code**: leave out each line whose result nobody reads. Is there any?
# 2. **one update**: there are six arrays of weights. Put them side by side in one
#    vector, the gradients too, and update all of them at once. (And let the learning
#    rate scale the loss instead of the gradients: one number instead of 51,018.)
# 3. **constants**: numbers such as 0.9 are made into arrays once, not at each step.
# 4. **reuse memory**: a result that nobody will read any more leaves its array to the
#    next result of its shape.
#
# How many lines will each of them save, how many new arrays per step? Which one saves
# most time? How close can the program come to the time of its matrix products alone,
# which no pass can touch?
#
# ## Run: one pass after the other


# %%
def calls(text):
    """How many calls of NumPy a step makes."""
    return sum("(" in line and not line.startswith(("#", "return", "if", "loss"))
               for line in lines(text))


def new_arrays(text):
    """How many arrays a step makes anew, instead of writing into those it has."""
    return sum(" = " in line and "(" in line and "out=" not in line
               and "np.add.reduce(" not in line and "loss =" not in line
               for line in lines(text))


NAMES = ["as the engine"]
NAMES += [rewrite.__name__.replace("_", " ") for rewrite in compiler.PASSES]
texts = [program(compiler.PASSES[:n]) for n in range(len(NAMES))]
print(f"{'after the pass':16} calls of NumPy  new arrays")
for name, text in zip(NAMES, texts):
    print(f"{name:16} {calls(text):14} {new_arrays(text):11}")

# %% [markdown]
# What was dead? The lines that the first pass removed:

# %%
alive = lines(texts[1])
print("\n".join(line for line in lines(texts[0]) if line not in alive))

# %% [markdown]
# It is the gradient with respect to the images: nobody trains those. (The engine knows
# this too, and asks only for gradients that a parameter needs. Here it falls out of a
# rule that knows nothing of images or parameters.)
#
# The last pass is the one that compiler writers call *register allocation*: for each
# result find the last line that reads it, its *liveness*; from there on its place is
# free. The end of the program before and after:

# %%
print("\n".join(lines(texts[3])[-18:-8]), "\n...\n\nbecomes\n")
print("\n".join(lines(texts[4])[-18:-8]), "\n...")

# %% [markdown]
# ## Run: the time after each pass
#
# The texts are programs: Python executes them. We give each the same weights and the
# same batches, check that the losses are those of the engine, and let all of them take
# turns, so that whatever else the computer does slows down all alike. Of each we take
# the quickest step. The last bar is the matrix products alone.


# %%
def made(text):
    """A function that takes one step by a program, and the vectors that it moves."""
    namespace, start = {}, network()
    exec(text, namespace)
    vectors = [np.concatenate([p.data.reshape(-1) for p in start.parameters()])]
    vectors.append(np.repeat(np.float32([0, 1]), 64))  # running mean and variance
    step = namespace["program"](*vectors)
    return lambda xb, yb: step(xb, yb, RATE)[0], vectors


def by_engine():
    own = network()
    optimizer = optim.SGD(own.parameters(), lr=RATE)
    return lambda xb, yb: training.step(own, F.cross_entropy, optimizer, xb, yb)


def products(xb, yb):
    """The five matrix products of a step, and nothing else."""
    kernel, last, hidden, out = products.arrays
    xb.dot(kernel)
    hidden.dot(last)
    hidden.T.dot(out)
    out.dot(last.T)
    xb.T.dot(hidden)


shapes = (x.shape[1], 64), (64, 10), (BATCH, 64), (BATCH, 10)
products.arrays = [np.ones(shape, np.float32) for shape in shapes]
pairs = [(x[i:i + BATCH], y[i:i + BATCH]) for i in range(0, 20 * BATCH, BATCH)]
steps = {"engine": by_engine()}
steps |= {name: made(text)[0] for name, text in zip(NAMES, texts)}
losses = {name: np.array([float(step(*pair)) for pair in pairs])
          for name, step in steps.items()}
steps["products alone"] = products

# %%
times = {name: np.inf for name in steps}
for _ in range(40):
    for name, step in steps.items():
        for pair in pairs:
            start = perf_counter()
            step(*pair)
            times[name] = min(times[name], perf_counter() - start)
for name, seconds in times.items():
    print(f"{name:16} {1e6 * seconds:5.0f} microseconds a step")

# %%
saved = 1 - times[NAMES[-1]] / times["engine"]
fig, ax = plotting.figure(
    size=(12, 6), title=f"The program takes {saved:.0%} less time, for the same losses")
for i, (name, seconds) in enumerate(times.items()):
    kind = 1 if name == "engine" else 2 if name == "products alone" else 0
    ax.bar(i, 1e6 * seconds, color=plotting.LOOKS[kind][0], width=0.65)
    ax.text(i, 1e6 * seconds, f"{1e6 * seconds:.0f}", ha="center", va="bottom",
            fontsize=16)
ax.plot([-0.5, len(times) - 0.5], [1e6 * times["products alone"]] * 2, color="0.3",
        linestyle=":", linewidth=2)
ax.set_xticks(range(len(times)), [name.replace(" ", "\n") for name in times])
ax.set(ylabel="microseconds a step")
lesson.show(fig, "times")

# %% [markdown]
# ## The program
#
# Here is all of it. Find your way: which lines are BatchNorm's forward of lesson 4,
# which its backward of lesson 5?

# %%
print(texts[-1])

# %% [markdown]
# It imports NumPy and nothing else. Saved as a file it runs where no minidl is
# installed, on weights and data of noise:

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "program.py"
    ending = '    import sys\n    print("minidl" in sys.modules)\n'
    path.write_text(texts[-1] + ending, encoding="utf-8")
    command = [sys.executable, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
*printed, imported = done.stdout.split()
print(f"ten losses: {printed[0][:6]} ... {printed[-1][:6]}")
print(f"was minidl imported: {imported}")

# %% [markdown]
# ## In use: the loop is yours
#
# The program takes one step. It knows of no epochs, and it was written for batches of
# 32, since the lengths stand in the text; so we train on as many images as fill whole
# batches. The order is that of `fit`, which shuffles by the model's own generator.
# Predict: will three epochs end with the same loss as `fit`, to the last bit?

# %%
whole = len(x) // BATCH * BATCH
x_fit, y_fit = x[:whole], y[:whole]
step, (weights, statistics) = made(texts[-1])
trained, by_program, start = network(), [], perf_counter()
for epoch in range(3):
    for xb, yb in batches(x_fit, y_fit, BATCH, trained.shuffle_rng):
        by_program.append(step(xb, yb))
seconds = perf_counter() - start
place = 0
for p in trained.parameters():  # from the vector back into the model
    p.data[...] = weights[place:place + p.size].reshape(p.shape)
    place += p.size
trained[1].running_mean, trained[1].running_var = np.split(statistics, 2)

fitted = network().compile(
    optim.SGD(lr=RATE), loss="cross_entropy", metrics=["accuracy"])
history = fitted.fit(x_fit, y_fit, batch_size=BATCH, epochs=3, verbose=0)
by_fit = history.steps["loss"]
trained.compile(loss="cross_entropy", metrics=["accuracy"])
for name, own, found, time in (
        ("the loop", trained, by_program, seconds),
        ("fit", fitted, by_fit, history.steps["seconds"][-1])):
    print(f"{name:8} last loss {found[-1]:.7f}, "
          f"test accuracy {own.evaluate(x_test, y_test)[1]:.4f}, {time:.2f} seconds")
apart = np.abs(np.subtract(by_program, by_fit))
print(f"the first loss differs by {apart[0]:.1g}, the largest difference of "
      f"{len(apart)} is {apart.max():.1g}")

# %% [markdown]
# Not to the last bit: where the program adds up in another order, or multiplies by 1/32
# instead of dividing by 32, a rounding falls differently, and training carries it on.
# Neither run is the right one. `fit` measured the accuracy of each batch as well, and
# looked whether all goes well; so its time is not that of its steps alone.
#
# ## Explain
#
# What did the compiler save? The graph, which the engine makes anew at each step:
# objects, counters, checks. Memory: an array that is already there costs nothing, and
# is still in the cache. Calls: one update instead of six. What it cannot save is the
# arithmetic, and in the products most of the time is spent.
#
# Compilers such as XLA (in JAX and TensorFlow) or TorchInductor go one step further,
# where NumPy cannot follow: they *fuse* kernels. `np.add`, then `np.maximum` walk
# through memory twice; a fused loop of machine code adds and compares each number while
# it is in a register. On a GPU, where memory is the bottleneck, this is most of what
# they gain.
#
# What does it cost? The program stands for one network, one shape, one rule of update.
# Whatever is not in the graph is not in the program: a hook, a print, an `if` that
# looks at a number. minidl's compiler refuses what it does not know, and before it
# returns a program, it takes one step with it and one with the engine, which must be
# the same; others compile anew, or silently keep the branch that they saw. And an error
# in the 20th line of a program that nobody wrote is harder to read than one in yours.
# So: first get it right with the engine, then compile.

# %%
print()
anew = new_arrays(texts[-1]) / new_arrays(texts[0])
to_engine = times[NAMES[-1]] / times["engine"]
to_raw = times[NAMES[-1]] / times[NAMES[0]]
largest = max(np.abs(losses[name] - losses["engine"]).max() for name in NAMES)


def check(name, measured, **bound):
    lesson.check(name, measured, claim=False, **bound)


check("calls that were dead", calls(texts[0]) - calls(texts[1]), at_least=1)
check("new arrays in a step, after all passes / before", anew, at_most=0.2)
check("losses of 20 steps, programs - engine, at most", largest, at_most=1e-4)
check("time of a step, program / engine", to_engine, at_most=0.95)
check("time of a step, program after all passes / before", to_raw, at_most=1)
check("first 50 losses, the loop - fit, at most", apart[:50].max(), at_most=1e-3)
check("the saved program imports minidl", float(imported == "True"), at_most=0)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. Where does the learning rate in the printed program come from?**
#
# - A: The lines of the backward pass find it by the chain rule.
# - B: It is an argument of each step, and scales the gradient where the backward pass
#   begins.
# - C: It stands in the text as a constant, so that each rate needs another program.
# - D: It follows from BatchNorm's $\gamma$ and $\beta$.
#
# **2. After a hundred steps the loss of the compiled run differs from the engine's in
# the seventh digit. Which of the two is wrong?**
#
# - A: the compiled one, because a compiler must not change a single bit
# - B: the engine's, because it makes more calls and rounds more often
# - C: neither: sums in another order are rounded differently
# - D: both, because float32 is too coarse for training
#
# <details><summary>Answers</summary>
#
# 1 B. Look for `seed = lr`. A and D are text 003: in the backward pass, from $\gamma$
# and $\beta$ and "by the chain rule", it finds the learning rate. The lines compute
# gradients; the rate is chosen, and the chain rule only carries it along here as a
# factor. C holds for the batch size, which does stand in the text.
#
# 2 C. Both compute the same formulas, and neither result is exact. A asks for more than
# arithmetic on a computer can promise: $(a + b) + c$ is not always $a + (b + c)$. B:
# fewer calls are faster, not more exact. D: both runs learn, and equally well. An error
# of the compiler would show in the first step, which is taken twice and compared.
#
# </details>
#
# ## Try
#
# 1. Easy: compile with `optim.Adam()` instead. Which lines are new? How many arrays as
#    large as all weights does the program hold? (The engine's Adam makes how many
#    more?)
# 2. Easy: leave out one pass at a time: `program([p for p in compiler.PASSES if p is
#    not compiler.dead_code])`. Which one is worth most here? And with batches of 512?
# 3. Easy: the loop above leaves out the last images of an epoch, which do not fill a
#    batch. Write a second program for a batch of their number, which moves the same
#    vectors, and train on all images.
# 4. Medium: write a pass of your own. `program.kernels` is a list of lines with `name`,
#    `form` and `operands`. Count, for each kernel, how many numbers it reads and
#    writes, and print the ten that move most. Which of them could a fused loop do
#    without?
# 5. Medium: a bias before BatchNorm has no effect on the loss (lesson 4). Write a pass
#    that removes the line that adds it. What must happen to the running mean?
# 6. Research: `jax.jit` compiles the same step with XLA. Write it in `jax.numpy`,
#    compare its time with the bars above, with a batch of 32 and of 1,024. Where does
#    fusion begin to pay?
#
# Sources: `minidl/compiler.py` (the passes) and `minidl/kernels.py` (from expressions
# to lines). Liveness and dead code are in every book on compilers, such as A. Aho, M.
# Lam, R. Sethi and J. Ullman, Compilers, 2006, chapter 9. R. Frostig, M. Johnson and C.
# Leary, Compiling machine learning programs via high-level tracing, 2018, is where JAX
# comes from.
