"""Do the lessons' CHECKs hold for other seeds? Runs every lesson with MINIDL_SEED = 0 to 19 and prints a table.

    python tests/tools/survey_lessons.py                    all lessons, 20 seeds: about an hour on two cores
    python tests/tools/survey_lessons.py 07 10 --seeds 5    some lessons, fewer seeds

For each CHECK the table gives the bound, how many seeds pass, and the range of what was measured. The exit code is
1 if any seed fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

LESSONS = Path(__file__).resolve().parents[2] / "lessons"


def checks_of(lesson, seed):
    """The checks of one run as the lesson's JSON file has them; RuntimeError if it broke off."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MPLBACKEND": "agg", "MINIDL_SEED": str(seed), "MINIDL_FIGURES": folder}
        result = subprocess.run([sys.executable, LESSONS / f"{lesson}.py"], env=environment, capture_output=True, text=True)
        path = Path(folder, f"{lesson}.json")
        if not path.exists():
            raise RuntimeError(f"{lesson} with seed {seed} broke off: {result.stderr.splitlines()[-1:]}")
        return json.loads(path.read_text())["checks"]


def main():
    """Read the command line, run, print; gives the exit code."""
    parser = argparse.ArgumentParser(description="Run the lessons with many seeds.")
    parser.add_argument("lessons", nargs="*", help="numbers of lessons, such as 07; all if left out")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    lessons = [path.stem for path in sorted(LESSONS.glob("[0-9]*.py"))
               if not options.lessons or path.stem[:2] in options.lessons]
    jobs = [(lesson, seed) for lesson in lessons for seed in range(options.seeds)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(jobs, tqdm(pool.map(lambda job: checks_of(*job), jobs), total=len(jobs), unit="run")))
    all_passed = True
    for lesson in lessons:
        runs = [results[lesson, seed] for seed in range(options.seeds)]
        print(f"\n{lesson}: all CHECKs pass for {sum(all(c['passed'] for c in run) for run in runs)} of {len(runs)} seeds")
        for number, check in enumerate(runs[0]):  # a name may hold a measured rate; the place in the list is the check
            values = [run[number]["measured"] for run in runs]
            finite = [value for value in values if value is not None]
            failed = [seed for seed, run in enumerate(runs) if not run[number]["passed"]]
            bound = f">= {check['at_least']:g}" if check["at_most"] is None else f"<= {check['at_most']:g}"
            spread = f"{min(finite):9.4g} to {max(finite):9.4g}" if finite else "not finite"
            print(f"  {len(runs) - len(failed):2} of {len(runs)}  {bound:>9}  {spread}  {check['name']}"
                  + (f"  FAILS for seeds {failed}" if failed else ""))
            all_passed = all_passed and not failed
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
