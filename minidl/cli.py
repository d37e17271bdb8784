"""The command line: python -m minidl data."""

import argparse

from . import data, published


def main(arguments=None):
    """Run one command; gives the exit code. arguments: a list of words, by default those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m minidl")
    commands = parser.add_subparsers(metavar="command")
    sets = commands.add_parser("data", help="list, fetch, pack and unpack data sets")
    sets.add_argument("name", nargs="?", choices=data.NAMES, help="the set to fetch or to pack; without it, list all")
    sets.add_argument("--pack", metavar="FILE", help="write the published sets that are here into one zip file")
    sets.add_argument("--unpack", metavar="FILE", help="install the sets in such a file")
    sets.set_defaults(run=_data)
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 0
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(error)
        return 1
    return 0


def _data(options):
    if options.pack:
        _pack(options.pack, [options.name] if options.name else list(published.SETS))
    elif options.unpack:
        names = published.unpack(options.unpack, data.cache())
        print(f"unpacked {', '.join(names)} into {data.cache()}")
    elif options.name:
        data.load(options.name)
        print(_line(options.name))
    else:
        print("\n".join(_line(name) for name in data.NAMES))


def _pack(path, names):
    here = {}
    for name in names:
        found = data.find(name)[0] if name in published.SETS else None
        if found:
            published.check(name, found.arrays, found.path)
            here[name] = found.arrays
    if not here:
        raise FileNotFoundError(f"nothing to pack: of {', '.join(names)} none is here as published files; "
                                "fetch them first: python -m minidl data mnist")
    published.pack(path, here)
    print(f"packed {', '.join(here)} into {path}; on the other machine: python -m minidl data --unpack {path}")


def _line(name):
    """What `data` prints for one set: how many images and where, or how to get it."""
    try:
        found, unusable = data.find(name)
    except (OSError, ValueError) as error:
        found, unusable = None, [str(error)]
    if found:
        x_train, _, x_test, _ = found.arrays
        own = " of your own" if found.own else ""
        return f"{name:14} {len(x_train):,} training and {len(x_test):,} test images{own} in {found.path.resolve()}"
    size, licence = published.SETS[name].megabytes, published.SETS[name].licence
    lines = [f"{name:14} not here; fetch it ({size} MB, licence {licence}): python -m minidl data {name}", *unusable]
    return "\n               ".join(lines)
