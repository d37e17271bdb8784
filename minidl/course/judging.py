"""Is it right, and if not, why? The numbers of a student's functions against those of the solution.

A usual mistake of an exercise is named only if the student's numbers are its numbers in all cases,
and those of no other mistake. Else `evidence.py` says what the numbers show.
"""

import re
import warnings
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import evidence
from .student import Mine, plays, results
from .variants import variants


class Check(NamedTuple):
    """One CHECK line, and the lines of evidence below it."""

    line: str
    passed: bool
    words: list


class Report(NamedTuple):
    """The outcome of a file.

    state: "solved", "not started yet" or "not solved". checks: a list of Check. printed: what it
    wrote on the terminal.
    """

    state: str
    checks: list
    printed: str = ""

    @property
    def first(self):
        """The first thing that is wrong, in one line, "" if nothing is."""
        failed = next((check for check in self.checks if not check.passed), None)
        return "" if failed is None else ": ".join([failed.line.split(", required")[0],
                                                    *failed.words])

    def __str__(self):
        lines = []
        for check in self.checks:
            lines += [check.line, *(f"      {words}" for words in check.words)]
        printed = self.printed.strip().splitlines()
        lines += [f"  | {line[:200]}" for line in printed[:10]]
        lines += [f"  | ... {len(printed) - 10} more lines were printed"] if printed[10:] else []
        passed = sum(check.passed for check in self.checks)
        return "\n".join([*lines, self.state if self.state == "not started yet" else
                          f"{passed} checks passed, {len(self.checks) - passed} failed: "
                          f"{self.state}"])


def refused(text):
    """The Report of a file that did not run, or did not end."""
    return Report("not solved", [Check("CHECK the file runs: measured 0, required >= 1, FAIL",
                                       False, [text])])


def judge(exercise, seed, said, printed=""):
    """A Report of what a student's functions returned.

    said: {play: {name: array} or the text of an error}, or one text where nothing was played.
    """
    if isinstance(said, str):
        return refused(said)._replace(printed=printed)
    return _Judge(exercise, seed, said).report(printed)


@lru_cache(maxsize=32)
def expected(exercise, seed):
    """What the solution returns in each play: {play: {name: array}}."""
    mine = Mine(vars(exercise))
    return {name: results(exercise, mine, case) for name, case in plays(exercise, seed).items()}


@lru_cache(maxsize=32)
def mistakes(exercise, seed):
    """{words: {play: {name: array} or the text of an error}}: what the usual mistakes return."""
    cases = {name: case for name, case in plays(exercise, seed).items() if name.isdecimal()}
    return {words: {name: results(exercise, Mine(vars(exercise), changes), case)
                    for name, case in cases.items()}
            for words, changes in exercise.MUTATIONS.items()}


@lru_cache(maxsize=100_000)
def _varied(exercise, seed, index, play):
    """What a variant of the solution returns in one play."""
    return results(exercise, Mine(vars(exercise), variants(exercise)[index][1]),
                   _cases(exercise, seed)[play])


@lru_cache(maxsize=32)
def _cases(exercise, seed):
    return plays(exercise, seed)


class _Judge:
    """Compares what a student's functions returned with what the solution returns."""

    def __init__(self, exercise, seed, said):
        self.exercise = exercise
        self.arguments, self.seed = plays(exercise, seed), seed
        self.right = expected(exercise, seed)
        self.said = {name: said.get(name, "this case was not played") for name in self.arguments}
        self.cases = [name for name in self.arguments if name.isdecimal()]
        self.forgets = self._same(self.said["0"], self.said["again"])
        self.failed = []

    def report(self, printed):
        if "not started yet" in self.said.values():
            return Report("not started yet", [], printed)
        with np.errstate(all="ignore"):
            checks = [self._errors(), self._changed(), self._repeated(), self._dtypes()]
            if any(isinstance(self.said[name], dict) for name in self.cases):
                checks += [self._output(name) for name in self.right[self.cases[0]]
                           if name != "changed"]
        solved = all(check.passed for check in checks)
        return Report("solved" if solved else "not solved", checks, printed)

    def _errors(self):
        texts = {name: self.said[name] for name in self.cases if isinstance(self.said[name], str)}
        words = []
        for text in dict.fromkeys(texts.values()):
            first = next(name for name, said in texts.items() if said == text)
            words.append(f"{text} (case {int(first) + 1} of {len(self.cases)}: "
                         f"{self._shapes(first)})")
        if texts and (mistake := self._mistake(None)):
            words.append(f"this happens in this way when {mistake}")
        return _check("cases that end in an error", len(texts), words[:4])

    def _changed(self):
        names = list(self.arguments["0"])
        found = {names[i] for said in self.said.values() if isinstance(said, dict)
                 for i in np.flatnonzero(said.get("changed", ())[:len(names)])}
        words = [f"{name} was changed in place: whoever called still needs it; compute a new array"
                 for name in sorted(found)]
        return _check("arguments that were changed", len(found), words)

    def _repeated(self):
        words = ["the first case was played again after the others, and now something else came "
                 "of it: your code keeps something between calls, in a global variable or a "
                 "default argument, or it draws random numbers"]
        return _check("results that differ when a case is repeated", int(not self.forgets),
                      words[self.forgets:])

    def _same(self, first, second):
        """Whether two runs of the first case agree, in all that has one right value only."""
        if isinstance(first, str) or isinstance(second, str):
            return isinstance(first, str) and isinstance(second, str)
        return first.keys() == second.keys() and all(
            evidence.close(first[key], second[key]) for key in first if key in self.right["0"]
            and key != "changed" and self._special(key, "0", first[key], self.right["0"][key])
            is None)

    def _dtypes(self):
        found = {}
        for name in self.cases:
            for output, right in self.right[name].items():
                got = self.said[name].get(output) if isinstance(self.said[name], dict) else None
                if got is not None and right.dtype.kind == "f" and got.dtype != right.dtype:
                    found.setdefault(output, f"{output} is {got.dtype}, expected is {right.dtype} "
                                             f"({self._shapes(name)})")
        return _check("results of another dtype", len(found), list(found.values()))

    def _output(self, output):
        """The CHECK of one output over all cases that did not end in an error."""
        cases = [name for name in self.cases if isinstance(self.said[name], dict)
                 and output in self.said[name]]
        got = [self.said[name][output] for name in cases]
        right = [self.right[name][output] for name in cases]
        special = [self._special(output, *three) for three in zip(cases, got, right)]
        allowed = [0 if output in getattr(self.exercise, "EXACT", ()) else
                   evidence.tolerance(b, b) for b in right]
        errors = [evidence.distance(a, b) if own is None else own[0]
                  for a, b, own in zip(got, right, special)]
        failed = [i for i, (error, most) in enumerate(zip(errors, allowed)) if not error <= most]
        worst = failed[0] if failed else int(np.argmax(errors)) if errors else None
        if worst is None:
            return _check(f"{output}", 1, ["it was not returned"])
        words = []
        if failed:
            words = list(special[worst][1]) if special[worst] is not None else [
                f"{evidence.first_wrong(output, got[worst], right[worst])}"
                f"{self._which(cases, failed, worst)}"]
            words += self._words(output, cases, got, right, worst, special[worst] is not None)
            self.failed.append(output)
        measured = f"{errors[worst]:.1e}" if errors[worst] else "0"
        line = (f"CHECK {output}: relative error: measured {measured}, required <= "
                f"{allowed[worst]:.0e}, {'FAIL' if failed else 'PASS'}")
        if special[worst] is not None:
            line = (f"CHECK {output}: places that are wrong: measured {errors[worst]:g}, "
                    f"required <= 0, {'FAIL' if failed else 'PASS'}")
        return Check(line, not failed, words)

    def _words(self, output, cases, got, right, worst, special):
        """What is known of the cause, as lines."""
        depends = getattr(self.exercise, "FOLLOWS", {}).get(output, ())
        before = [name for name in self.failed if name in depends]
        if mistake := self._mistake(output, alone=not before):
            return [f"these are exactly the numbers you get when {mistake}"]
        if any(isinstance(run, dict) and np.any(run.get("changed", 0))
               for run in self.said.values()):
            return ["an argument was changed in place: look at that first"]
        if not self.forgets:
            return ["a case that is repeated gives another result: look at that first"]
        if before:
            return [f"this depends on what is wrong above ({', '.join(before)}): look there first"]
        if special:
            return []
        arguments = [self.arguments[name] for name in cases]
        mine, ideal, case = self.said[cases[worst]], self.right[cases[worst]], arguments[worst]
        if got[worst].shape == right[worst].shape and not np.isfinite(got[worst]).all():
            return self._infinite(output, got[worst], case)
        words = []
        if (output in getattr(self.exercise, "GRADIENTS", ())
                and got[worst].shape == right[worst].shape):
            way = np.random.default_rng(0).standard_normal(right[worst].shape)
            words.append(f"along a random direction the loss changes by "
                         f"{(right[worst] * way).sum():.6g} per unit; your {output} predicts "
                         f"{(got[worst] * way).sum():.6g}")
        finite = [i for i in range(len(cases)) if np.isfinite(got[i]).all()]
        terms = getattr(self.exercise, "terms", lambda case: {})
        numbers = (output, [got[i] for i in finite], [right[i] for i in finite],
                   [self._known(cases[i], output) for i in finite],
                   [terms(arguments[i]).get(output, {}) for i in finite],
                   [self._factors(arguments[i]) for i in finite])
        for look in (
                lambda: self._own("evidence", output, case, mine, ideal),
                lambda: evidence.cause(*numbers),
                lambda: self._variant(output),
                lambda: evidence.by_feature(*numbers),
                lambda: self._own("unclear", output, case, mine, ideal),
                lambda: evidence.leads(*numbers),
                lambda: self._dependence(output)[:2]):
            try:
                if known := look():
                    return words + known
            except (ArithmeticError, LookupError, TypeError, ValueError):
                pass  # of shapes that nobody thought of: no evidence, but a verdict
        return words + ["the numbers do not show what causes this"]

    def _own(self, hook, *rest):
        return getattr(self.exercise, hook, lambda *_: [])(*rest)

    def _variant(self, output):
        """The line of the first variant of the solution with the student's numbers, else []."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for index, (words, _) in enumerate(variants(self.exercise)):
                if self._agree(lambda play: _varied(self.exercise, self.seed, index, play),
                               output):
                    return [f"these are exactly the numbers you get when {words}"]
        return []

    def _special(self, output, name, got, right):
        own = getattr(self.exercise, "judge", None)
        return own and own(output, self.arguments[name], got, right)

    def _which(self, cases, failed, worst):
        if len(cases) == 1:
            return ""
        fine = [self._shapes(name) for i, name in enumerate(cases) if i not in failed]
        only = f"; right in {len(fine)}: {'; '.join(fine[:3])}" if fine else ""
        return (f"; case {int(cases[worst]) + 1} of {len(self.cases)}, "
                f"{self._shapes(cases[worst])}{only}")

    def _shapes(self, name):
        own = getattr(self.exercise, "label", None)
        arguments = self.arguments[name]
        return own(arguments) if own else ", ".join(
            f"{key} {value.shape}" for key, value in arguments.items()
            if isinstance(value, np.ndarray))

    def _infinite(self, output, got, arguments):
        place = tuple(map(int, np.argwhere(~np.isfinite(got))[0]))
        there = [f"{key} is {value[place]:.4g}" for key, value in arguments.items()
                 if np.shape(value) == got.shape and got.ndim]
        return [f"{output}{list(place) if place else ''} is {got[place]}"
                + f", where {', '.join(there)}" * bool(there)
                + ": a division by 0, or a number too large for its dtype"]

    def _known(self, name, output):
        known = {f"the argument {key}": value for key, value in self.arguments[name].items()
                 if isinstance(value, np.ndarray) and value.dtype.kind in "fi"}
        return known | {f"the right {key}": value for key, value in self.right[name].items()
                        if key not in (output, "changed")}

    def _factors(self, arguments):
        known = {key: value for key, value in arguments.items()
                 if isinstance(value, (int, float, np.ndarray)) and not isinstance(value, bool)
                 and np.asarray(value).dtype.kind == "f"}
        return known | getattr(self.exercise, "factors", lambda case: {})(arguments)

    def _dependence(self, output):
        words = []
        for play in self.arguments:
            runs = [side[name] for side in (self.said, self.right) for name in ("0", play)]
            if play.startswith("half ") and all(isinstance(run, dict) and output in run
                                                      for run in runs):
                words.append(evidence.dependence(output, play.removeprefix("half "),
                                                 *(run[output] for run in runs)))
        return list(filter(None, words))

    def _mistake(self, output, alone=True):
        """The words of the only known mistake with the student's numbers, or None.

        output: the name of one result, None for all of them.
        """
        mutated = mistakes(self.exercise, self.seed)
        floats = output and all(run[output].dtype.kind == "f" for run in self.right.values())
        for keys in (None, output) if alone and floats else (None,):  # all results, else one
            found = [words for words, made in mutated.items() if self._agree(made.get, keys)
                     and (output is None or not self._agree(made.get, output, self.right))
                     and (keys is None or self._all_wrong(made))]
            if len(found) == 1:
                return found[0]
        return None

    def _all_wrong(self, made):
        """Whether the student has wrong all that a mistake makes wrong; its words claim it."""
        touched = [key for key in self.right[self.cases[0]] if key != "changed"
                   and not self._agree(made.get, key, self.right)]
        return not any(self._agree(self.right.get, key) for key in touched)

    def _agree(self, made, output, said=None):
        """Whether results are those of a mistake in all cases, with numbers in at least one.

        output: in one output, or in all (None). made: a function of the case. said: by default
        what the student's functions returned.
        """
        numbers = False
        for name in self.cases:
            mine, theirs = (said or self.said)[name], made(name)
            if isinstance(mine, str) or isinstance(theirs, str):
                kinds = [re.match(r"\w*", text)[0] for text in (mine, theirs)
                         if isinstance(text, str)]
                if len(kinds) < 2 or kinds[0] != kinds[1]:
                    return False
                continue
            for key in [output] if output else theirs:
                if key not in mine or key not in theirs or not evidence.close(mine[key], theirs[key]):
                    return False
                numbers = True
        return numbers


def _check(name, measured, words):
    verdict = "FAIL" if measured else "PASS"
    return Check(f"CHECK {name}: measured {measured}, required <= 0, {verdict}", not measured,
                 words)
