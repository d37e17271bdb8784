"""Exercises: solutions pass, copies are blank, mistakes are refused and named, nothing false is said, hostile files end."""

import configparser
import csv
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minidl import Activation, BatchNorm, Dense, Sequential, Tensor, optim, training
from minidl import functional as F
from minidl.course import check_exercise, cli, evidence, exercises, judging
from minidl.course.student import Mine, plays, results
from minidl.course.variants import variants
from minidl.experiments import lr_range

FILES = exercises.exercises()
BY_STEM = {"ids": lambda path: path.stem}
SOLVED = """    m = len(dy)
    dg = (dy * x_hat).sum(axis=0)
    db = dy.sum(axis=0)
    return gamma / (m * s) * (m * dy - db - x_hat * dg), dg, db"""


def report(path, changes=None, seed=0):
    """What is said of an exercise's solution with some functions replaced, in this process."""
    exercise = exercises.loaded(path)
    mine = Mine(vars(exercise), changes)
    return judging.judge(exercise, seed, {name: results(exercise, mine, case)
                                            for name, case in plays(exercise, seed).items()})


def written(folder, body, number=6):
    """A copy of an exercise in which this is written; its file."""
    path = exercises.find_exercise(str(number))
    file = folder / path.name
    file.write_text(exercises.blank(path).replace("    raise NotImplementedError  # write it here", body))
    return file


def blank_functions(path):
    namespace = {}
    exec(exercises.blank(path), namespace)
    return Mine(namespace)


def check_all_of(path, seed):
    exercise = exercises.loaded(path)
    solved = report(path, seed=seed)
    assert solved.state == "solved", solved
    blank = {name: results(exercise, blank_functions(path), case) for name, case in plays(exercise, seed).items()}
    assert judging.judge(exercise, seed, blank).state == "not started yet"
    for words, changes in exercise.MUTATIONS.items():
        said = report(path, changes, seed)
        assert said.state == "not solved" and words in str(said), f"{words}:\n{said}"


# --- The set --------------------------------------------------------------------------------------


def test_there_are_fifteen_and_each_names_its_lesson():
    about = [exercises.about_exercise(path) for path in FILES]
    assert [number for number, *_ in about] == list(range(1, 16))
    lessons = {int(path.stem[:2]): path.read_text(encoding="utf-8") for path in exercises.lessons()}
    for number, _, _, lesson, _ in about:
        link, = re.findall(r"Now write it yourself: exercises? ([\d, and\n#]+)\(", lessons[lesson])
        assert str(number) in re.findall(r"\d+", link), f"lesson {lesson} does not send anyone to exercise {number}"


@pytest.mark.parametrize("path", FILES, **BY_STEM)
def test_solution_blank_copy_and_mistakes(path):
    check_all_of(path, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("path", FILES, **BY_STEM)
def test_solution_blank_copy_and_mistakes_on_twenty_seeds(path):
    for seed in range(20):
        check_all_of(path, seed)


@pytest.mark.parametrize("path", FILES, **BY_STEM)
def test_a_copy_holds_neither_solution_nor_checks_and_hints_give_no_code_away(path):
    text, copy = path.read_text(encoding="utf-8"), exercises.blank(path)
    solutions = [match[2] for match in exercises.SOLUTION.finditer(text)]
    assert solutions and len(exercises.loaded(path).HINTS) == 3
    assert not re.search(r"HINTS|MUTATIONS|--- |def cases", copy)
    right = [line.split("=", 1)[-1].removeprefix("    return ").strip() for part in solutions for line in part.splitlines()]
    for line in filter(lambda line: len(line) > 12, right):
        assert "instead" in text or line not in copy, line
        for hint in exercises.loaded(path).HINTS:
            assert line.replace(" ", "") not in hint.replace(" ", "")


def test_the_solutions_are_what_minidl_does():
    """Those whose right result stands in the library."""
    rng = np.random.default_rng(0)
    solved = {int(path.stem[:2]): exercises.loaded(path) for path in FILES}
    for number, optimizer in (10, optim.SGD), (11, optim.Adam):
        p, state, lr = Tensor(rng.normal(size=5), requires_grad=True), [np.zeros(5)] * (number - 9), 0.1
        minidl = optimizer([p], lr=lr, **{"momentum": 0.9} if number == 10 else {})
        mine = p.data.copy()
        for done in range(5):
            g = p.grad = rng.choice([1e-8, 1.0, -1.0], 5)
            minidl.step()
            rest = (lr, 0.9) if number == 10 else (done, lr, 0.9, 0.999, 1e-8)
            mine, *state = solved[number].step(mine, g, *state, *rest)
            np.testing.assert_allclose(mine, p.data, rtol=1e-12)
    x = rng.normal(size=(13, 3))
    gamma, beta = rng.normal(size=(2, 3))
    layer = BatchNorm(ghost_batch_size=4, input_shape=3)
    layer.create_parameters()
    layer.gamma.data, layer.beta.data = gamma, beta
    layer.running_mean, layer.running_var = layer.running_mean.astype(float), layer.running_var.astype(float)
    np.testing.assert_allclose(solved[14].ghost(x, gamma, beta, 4, 1e-5), layer(x).data, rtol=1e-10)
    dense = Dense(3, input_shape=2)
    dense.create_parameters()
    folded = layer.fold(dense)
    kernel, bias = solved[9].fold(dense.kernel.data, dense.bias.data, gamma, beta, layer.running_mean, layer.running_var, 1e-5)
    np.testing.assert_allclose(kernel, folded.kernel.data, rtol=1e-6)
    np.testing.assert_allclose(bias, folded.bias.data, rtol=1e-6)


def test_the_training_loop_is_fit_bit_for_bit():
    exercise = exercises.loaded(exercises.find_exercise("12"))
    case = exercise.cases(np.random.default_rng(0))[0]
    model, loss, optimizer, _ = exercise.setting(case)
    rng = np.random.default_rng(case["seed"])
    losses = exercise.train(model, loss, optimizer, case["x"], case["y"], case["batch_size"], case["epochs"], rng)
    model = exercise.setting(case)[0]
    history = training.fit(model, case["x"], case["y"], loss=F.cross_entropy, optimizer=optim.SGD(model.parameters(), lr=0.3),
                           epochs=case["epochs"], batch_size=case["batch_size"], rng=np.random.default_rng(case["seed"]), verbose=0)
    assert losses.tolist() == history.steps["loss"]


def check_the_finder_against_lr_range(seed, normalised):
    """Both ask at which rate the loss leaves: where it is no longer below 2 log(classes), whether each rate starts from
    new weights (lr_range, 30 steps) or the rate grows within one run (the finder, 10 steps per rate). The steepest drop is
    no such measure: one step per rate falls a hundred times below the best rate of a run.
    """
    exercise = exercises.loaded(exercises.find_exercise("13"))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1024, 4)).astype(np.float32)
    y = np.abs(x).argmax(axis=1)
    rates, bound = exercise.rates(0.01, 10_000.0, 19), 2 * np.log(4)

    def network(seed):
        return Sequential([Dense(8), *[BatchNorm()] * normalised, Activation("relu"), Dense(4)], seed=seed)
    trained = lr_range({"net": network}, ((x, y), (x[:8], y[:8])), list(rates), steps=30, last=10, seeds=(seed,))
    model = network(seed).build(4)
    rows = [rng.integers(0, len(x), 32) for _ in range(190)]
    losses = exercise.sweep(model, F.cross_entropy, optim.SGD(model.parameters(), lr=1.0), [(x[i], y[i]) for i in rows],
                            np.repeat(rates, 10)).reshape(19, 10).mean(axis=1)
    last = rates[np.argmin(losses < bound) - 1]
    assert 1 / 3 < last / trained.largest("net", bound)[0] < 3


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")
@pytest.mark.parametrize("normalised", [False, True])
def test_the_finder_and_lr_range_leave_at_the_same_rate(normalised):
    check_the_finder_against_lr_range(0, normalised)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")
@pytest.mark.parametrize("normalised", [False, True])
def test_the_finder_and_lr_range_leave_at_the_same_rate_on_twenty_seeds(normalised):
    for seed in range(20):
        check_the_finder_against_lr_range(seed, normalised)


# --- Mistakes that are in no list ----------------------------------------------------------------


def way(dx):
    return {"backward": lambda dy, x_hat, s, gamma: (dx(dy, x_hat, s, gamma), (dy * x_hat).sum(axis=0), dy.sum(axis=0))}


UNLISTED = [
    (6, way(lambda dy, x, s, g: g / s * (dy + dy.mean(0) - x * (dy * x).mean(0))), r"through the mean     is in it -1 times   <-- should be once"),
    (6, way(lambda dy, x, s, g: g / s * (dy - dy.mean(0) - x * (dy * x).sum(0) / (len(dy) - 1))), r"m/\(m - 1\) times"),
    (6, way(lambda dy, x, s, g: 1 / s * (dy - dy.mean(0) - x * (dy * x).mean(0))), "the right one times 1/gamma"),
    (6, way(lambda dy, x, s, g: g / s * (dy - x * dy.mean(0) - (dy * x).mean(0))), "when `dbeta` and `dgamma` are exchanged"),
    (6, way(lambda dy, x, s, g: g / s * (dy - dy.mean(0) - x ** 2 * (dy * x).mean(0))), "when the square of `x_hat` stands where `x_hat` itself"),
    (5, {"forward": lambda x, gamma, beta, eps: (gamma * (x + x.mean(0)) / np.sqrt(x.var(0) + eps) + beta, x.mean(0), x.var(0))},
     "when `mean` has the wrong sign"),
    (8, {"evaluate": lambda layer, x: layer.gamma * (x - x.mean(0)) / np.sqrt(x.var(0, ddof=1) + layer.eps) + layer.beta},
     "the variance is the unbiased one of the batch"),
    (9, {"fold": lambda w, b, gamma, beta, mean, var, eps: (w * gamma / np.sqrt(var + eps), (b - mean) / np.sqrt(var + eps) + beta)},
     "when `gamma` is left out"),
    (11, {"step": lambda p, g, m, v, done, *rest: (exercises.loaded(FILES[10]).step(p, g, m, v, done, *rest)[0] - p, *exercises.loaded(
        FILES[10]).step(p, g, m, v, done, *rest)[1:])}, "when `p` is left out"),
    (15, {"accuracy_of": lambda model, x, y: (model.eval()(x).numpy().argmax(axis=1) == y).sum()}, "the number of right ones"),
    (6, {"backward": lambda dy, x_hat, s, gamma: way(lambda *a: 0 * dy)["backward"](dy, x_hat, s, gamma)}, "all of dx is zero"),
    (1, {"silu_vjp": lambda g, x: g * (F.sigmoid(x) + x * F.sigmoid(x) * (1 + F.sigmoid(x)))}, "g x s² +is in it once   <-- should be -1 times"),
    (1, {"silu": lambda x: x.astype(float) / (1 + np.exp(-x.astype(float)))}, "y is float64, expected is float32"),
    (2, {"unbroadcast": lambda g, shape: g}, "it is g itself"),
    (2, {"unbroadcast": lambda g, shape: np.full(shape, g.sum())}, r"the sum over the axes \(0, 1\) of g"),
    (3, {"order": lambda last: exercises.loaded(FILES[2]).order(last)[1:]}, "node 0 is missing"),
    (4, {"backward": lambda g, x, kernel: (x.T @ g, g @ kernel.T, g.sum(axis=0))}, "dx is exactly the right dkernel"),
    (5, {"forward": lambda x, gamma, beta, eps: (gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + beta, x.mean(0), x.var(0))},
     r"it divides by the root of var \+ 1e-05"),
    (7, {"update": lambda mean, var, x, a: ((mean + x.mean(0)) / 2, (1 - a) * var + a * x.var(0, ddof=1))}, "the mean of the batch is in it 1/2 times"),
    (8, {"evaluate_backward": lambda layer, dy, x: dy * layer.gamma}, r"the right one times sqrt\(running_var \+ eps\)"),
    (9, {"fold": lambda kernel, bias, gamma, beta, mean, var, eps: (kernel * gamma / np.sqrt(var + eps), bias)}, "bias is exactly the argument bias"),
    (10, {"step": lambda p, g, v, lr, momentum: (p - momentum * v - g, momentum * v + g)}, "-lr g          is in it 1/lr times"),
    (11, {"step": lambda p, g, m, v, done, lr, b1, b2, eps: (
        p - lr * g / (np.sqrt((b2 * v + (1 - b2) * g * g) / (1 - b2 ** (done + 1))) + eps), b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g)},
     "in the numerator of steps 2 to 5 m_hat is there 0 times"),
    (13, {"rates": lambda low, high, n: np.geomspace(high, low, n)}, "grow by the factor 0.4"),
    (14, {"ghost": lambda x, gamma, beta, size, eps: exercises.loaded(FILES[13]).ghost(x, gamma, beta, size + 1, eps)}, "0 to 4, 5 to 9"),
    (15, {"faults": lambda: ["no fault"] * 5}, "loss_of: there is a fault in it"),
]


@pytest.mark.filterwarnings("ignore:Degrees of freedom", "ignore:invalid value")  # of one sample alone
@pytest.mark.parametrize("number, changes, words", UNLISTED)
def test_a_mistake_in_no_list_is_told_by_its_numbers(number, changes, words):
    said = str(report(FILES[number - 1], changes))
    assert re.search(words, said), said
    assert not any(f"when {words}" in said for words in exercises.loaded(FILES[number - 1]).MUTATIONS), said


def test_what_is_kept_between_calls_is_found():
    kept = []
    said = str(report(FILES[9], {"step": lambda p, g, v, lr, momentum: (kept.append(g), (p - lr * len(kept), v))[1]}))
    assert "your code keeps something between calls" in said and "halved" not in said


def test_another_order_in_each_run_is_as_good():
    """A graph has many right orders; a student's set may have another order each time."""
    rng, exercise = np.random.default_rng(0), exercises.loaded(FILES[2])

    def order(last):
        uses = {}
        for node in exercise.order(last):
            for part in node.inputs:
                uses[part] = uses.get(part, 0) + 1
        ready, walked = [last], []
        while ready:
            walked.append(ready.pop(rng.integers(len(ready))))
            for part in walked[-1].inputs:
                uses[part] -= 1
                ready += [part] * (uses[part] == 0)
        return walked
    assert report(FILES[2], {"order": order}).state == "solved"


def test_a_mistake_of_several_results_is_not_said_of_one():
    """All three gradients divided by n is another mistake than one of them."""
    said = str(report(FILES[3], {"backward": lambda g, x, kernel: (g @ kernel.T / len(x), x.T @ g, g.sum(axis=0))}))
    assert "the factor is 1/n" in said and "all is divided" not in said


def test_variants_are_single_slips_and_the_solution_is_none_of_them():
    """A variant that returned the right numbers would be named for a right answer's neighbour."""
    exercise = exercises.loaded(FILES[5])
    made = dict(variants(exercise))
    assert {"`gamma` is left out", "`dbeta` has the wrong sign", "`dbeta` and `dgamma` are exchanged"} <= set(made)
    assert not variants(exercises.loaded(FILES[11]))  # takes too long


@pytest.mark.parametrize("number, changes", [
    (4, {"backward": lambda g, x, kernel: (g @ kernel.T, (x - x.mean(0)).T @ g, g.sum(axis=0))}),
    (1, {"silu": lambda x: x * np.tanh(x)})])
def test_what_numbers_do_not_tell_is_not_guessed(number, changes):
    assert "the numbers do not show what causes this" in str(report(FILES[number - 1], changes))


def test_a_mistake_is_named_only_if_no_other_has_its_numbers(monkeypatch):
    exercise = exercises.loaded(FILES[5])
    words, changes = next(iter(exercise.MUTATIONS.items()))
    monkeypatch.setattr(exercise, "MUTATIONS", {words: changes, "another name for it": changes})
    judging.mistakes.cache_clear()
    said = str(report(FILES[5], changes))
    judging.mistakes.cache_clear()
    assert words not in said and "another name" not in said and "is not in it" in said


def test_single_precision_prints_the_difference_and_not_two_equal_numbers():
    exact = exercises.loaded(FILES[5]).backward
    said = str(report(FILES[5], {"backward": lambda *a, **k: tuple(r.astype(np.float32) for r in exact(*a, **k))}))
    assert "dx is float32, expected is float64" in said and "single precision" in said and re.search(r"dx differs by \d\.\de-\d\d", said)


def test_factors_get_the_simplest_name_and_none_where_two_fit():
    assert evidence.named([7, 9], [{"m": 7}, {"m": 9}]) == "m"
    assert evidence.named([6 / 7, 8 / 9], [{"m": 7}, {"m": 9}]) == "(m - 1)/m"
    assert evidence.named([7.0], [{"a": 7.0, "b": 7.0}]) is None
    assert evidence.named([0.123456], [{"m": 7}]) is None


# --- Files in a process of their own --------------------------------------------------------------

HOSTILE = {
    "exit": ("    import os; os._exit(0)", "ended, with exit code 0, before it had returned anything"),
    "a printed PASS": ("    print('CHECK dx: measured 0, required <= 1, PASS'); return dy, s, s", "first wrong entry"),
    "output": ("    for i in range(10 ** 7): print('x' * 100)", "it had printed 5,000,000 bytes"),
    "a child": ("    import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n" + SOLVED,
                "starts no other program"),
    "writing": ("    open('TARGET', 'w').write('x')\n" + SOLVED, "writes no files"),
    "objects": ("    return np.array([None]), s, s", "one of objects"),
    "NaN": ("    return dy * np.nan, s, s", r"dx\[0, 0\] is nan"),
    "in place": ("    dy -= 1\n" + SOLVED, "dy was changed in place"),
    "no return": ("    dy * 1", "is there a `return`"),
    "two results": ("    return dy, s", "here it is 2 results"),
    "a list": ("    return dy.tolist(), s, s", "dx should be an array, and is a list"),
    "syntax": ("    return (", r"SyntaxError: .+, line \d+"),
    "recursion": ("    return backward(dy, x_hat, s, gamma)", "RecursionError"),
    "input": ("    input()", "input.. has nobody to ask"),
    "an endless loop": ("    while True: pass", "stopped after 2 seconds"),
}
if sys.platform == "linux":
    HOSTILE["memory"] = ("    np.ones(8 * 2 ** 30)", "MemoryError")
FEW = ["exit", "a printed PASS", "a child", "writing", "an endless loop"]


def check_hostile(name, folder, monkeypatch):
    monkeypatch.setattr(exercises, "LIMIT", 2 if name == "an endless loop" else 60)
    body, words = HOSTILE[name]
    target = folder / "written.txt"
    file = written(folder, body.replace("TARGET", target.as_posix()))
    before = sorted(folder.iterdir())
    said = exercises.check_file(file)
    assert said.state == "not solved" and re.search(words, str(said)), said
    assert sorted(folder.iterdir()) == before and not target.exists()


@pytest.mark.parametrize("name", FEW)
def test_hostile_files_are_refused_in_words(name, tmp_path, monkeypatch):
    check_hostile(name, tmp_path, monkeypatch)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in FEW])
def test_more_hostile_files(name, tmp_path, monkeypatch):
    check_hostile(name, tmp_path, monkeypatch)


@pytest.mark.thorough
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_where_there_are_no_process_groups(name, tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(os, "killpg", raising=False)
    check_hostile(name, tmp_path, monkeypatch)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_a_child_that_stays_is_ended(tmp_path):
    """multiprocessing starts processes behind the back of the audit hook."""
    mark = f"77.{os.getpid()}"
    body = f"    import multiprocessing, time\n    multiprocessing.get_context('spawn').Process(target=time.sleep, args=({mark},)).start()\n"
    assert exercises.check_file(written(tmp_path, body + SOLVED)).state == "solved"
    time.sleep(0.2)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    assert not [command for command in commands if b"spawn_main" in command and str(tmp_path).encode() in command]


# --- What the student meets -----------------------------------------------------------------------


def test_from_the_copy_to_the_solution(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["exercise", "6", "--copy", "mine"]) == 0
    file = Path("mine", FILES[5].name)
    assert cli.main(["exercise", str(file)]) == 1 and "not started yet" in capsys.readouterr().out
    assert cli.main(["exercise", "6", "--copy", "mine"]) == 1 and "already has" in capsys.readouterr().err
    for number in (1, 2, 3, 1):
        cli.main(["exercise", str(file), "--hint"])
        assert f"hint {number} of 3: " in capsys.readouterr().out
    written(Path("mine"), SOLVED)
    assert cli.main(["exercise", str(file)]) == 0 and "7 checks passed, 0 failed: solved" in capsys.readouterr().out
    monkeypatch.chdir("mine")
    cli.main(["exercises"])
    assert re.search(r" 6  BatchNorm's backward .+\[solved\]\n", capsys.readouterr().out)
    file = Path(file.name)
    file.write_text(file.read_text() + "\n")
    cli.main(["exercises"])
    assert "[changed since it was solved]" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["exercise"], "name an exercise"), (["exercise", "99", "--copy", "x"], "no exercise matches"),
    (["exercise", "6"], "begin it"), (["exercise", "nothing.py"], "there is no file"),
    (["exercises", "--grade", "x"], "--grade needs --csv"), (["exercises", "--grade", "x", "--csv", "y"], "is no folder"),
    (["exercise", "--copy", ""], "name a folder")])
def test_errors_say_what_to_do(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_notebook_checks_its_own_functions(capsys):
    def backward(dy, x_hat, s, gamma):
        return gamma / s * dy, (dy * x_hat).sum(axis=0), dy.sum(axis=0)
    assert not check_exercise(6, backward)
    assert "the mean and the variance are taken for constants" in capsys.readouterr().out
    assert check_exercise(6, exercises.loaded(FILES[5]).backward)


def test_a_class_is_graded_and_no_cell_is_a_formula(tmp_path):
    for student, body in ("=cmd|'calc'!A0", SOLVED), ("bob", "    return dy, s, s"), ("@eve", "    raise NotImplementedError"):
        (tmp_path / "class" / student).mkdir(parents=True)
        written(tmp_path / "class" / student, body)
    (tmp_path / "class" / "bob" / "notes.py").write_text("x = 1")
    written(tmp_path / "class" / "bob", "    return x.size", number=14)
    exercises.grade(tmp_path / "class", tmp_path / "marks.csv")
    with open(tmp_path / "marks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == exercises.COLUMNS and len(rows) == 6
    assert all(cell[:1] not in tuple("=+-@") for row in rows for cell in row.values() if cell)
    by_name = {(row["student"].lstrip("'"), row["exercise"]): row for row in rows}
    assert by_name["=cmd|'calc'!A0", "6"]["solved"] == "yes" and by_name["bob", "6"]["solved"] == "no"
    assert "first wrong entry" in by_name["bob", "6"]["first thing wrong"]
    assert by_name["@eve", "6"]["first thing wrong"] == "not started yet"
    assert by_name["@eve", "14"]["first thing wrong"] == "not handed in"
    assert re.fullmatch(r"[0-9a-f]{64}", by_name["bob", "6"]["sha256"])


@pytest.mark.thorough
def test_thirty_students_and_eight_exercises(tmp_path):
    for i in range(30):
        (tmp_path / f"student {i}").mkdir()
        for path in FILES[3:11]:
            text = path.read_text(encoding="utf-8") if i % 2 else exercises.blank(path)
            (tmp_path / f"student {i}" / path.name).write_text(text, encoding="utf-8")
    rows = exercises.grade(tmp_path, tmp_path / "marks.csv")
    assert len(rows) == 240 and sum(row[3] == "yes" for row in rows) == 120


def test_the_wheel_carries_the_exercises():
    config = configparser.ConfigParser()
    config.read(Path(__file__).parent.parent / "setup.cfg")
    assert config["options.package_data"]["minidl.lessons"] == "exercises/*.py"
