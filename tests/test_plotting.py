"""Figures: saved where there is no window, shown where there is one, and true to the data."""

import matplotlib
import numpy as np
import pytest

from minidl import experiments, plotting

matplotlib.use("agg")


def comparison(diverged_at=None):
    steps = np.arange(0, 101, 10)

    def run(top, seed):
        losses, accuracy, seconds = np.linspace(2, 0.5, 100), np.linspace(0.1, top, 11) + 0.01 * seed, steps / 100.0
        if diverged_at is not None:
            losses[diverged_at:] = accuracy[steps > diverged_at] = seconds[steps > diverged_at] = np.nan
        return experiments.Run(losses, steps, accuracy, seconds, diverged_at)

    return experiments.Comparison({"BN": [run(0.9, seed) for seed in range(3)], "plain": [run(0.6, seed) for seed in range(3)]},
                                  range(3))


def test_headless_saves_the_figure_and_prints_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINIDL_FIGURES", raising=False)
    fig, ax = plotting.figure(title="one message")
    plotting.compare(comparison(), ax=ax)
    plotting.show(fig, "mine-accuracy")
    assert (tmp_path / "figures" / "mine-accuracy.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert "mine-accuracy.png" in out and err == ""
    monkeypatch.setenv("MINIDL_FIGURES", str(tmp_path / "other"))
    plotting.show(fig, "mine")
    assert (tmp_path / "other" / "mine.png").exists()


def test_with_a_window_nothing_is_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fig, _ = plotting.figure()
    shown = []
    monkeypatch.setattr(type(fig.canvas), "required_interactive_framework", "tk")
    monkeypatch.setattr(fig.canvas.manager, "pyplot_show", lambda: shown.append(fig))
    plotting.show(fig, "mine")
    assert shown == [fig] and not (tmp_path / "figures").exists() and capsys.readouterr().out == ""


def test_the_first_is_solid_the_second_dashed_in_other_colours():
    ax = plotting.compare(comparison())
    first, second = ax.get_lines()[:2]
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--") and first.get_color() != second.get_color()
    assert np.allclose(first.get_ydata(), np.linspace(0.1, 0.9, 11) + 0.01)  # the median of the three seeds
    assert ax.get_xlabel() == "training step" and ax.get_ylabel() == "test accuracy"


@pytest.mark.parametrize("what, against, x, y", [("losses", "steps", "training step", "training loss"),
                                                 ("accuracy", "seconds", "seconds of training", "test accuracy")])
def test_axes_are_labelled_with_what_they_show(what, against, x, y):
    ax = plotting.compare(comparison(), what=what, against=against)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (x, y)


def test_a_wrong_name_is_refused_and_not_drawn_as_something_else():
    for options in ({"what": "loss"}, {"against": "time"}, {"what": "losses", "against": "seconds"}):
        with pytest.raises(ValueError, match="accuracy against steps"):
            plotting.compare(comparison(), **options)


def test_divergence_is_drawn_as_divergence():
    for options, end in (({}, 40), ({"against": "seconds"}, 0.4), ({"what": "losses"}, 40)):
        ax = plotting.compare(comparison(diverged_at=40), **options)
        assert sum(line.get_marker() == "x" and line.get_xdata()[0] == end for line in ax.get_lines()) == 6

    losses = {"BN": np.array([[0.5, 0.4, 0.9]]), "plain": np.array([[0.5, np.inf, np.inf]])}
    ax = plotting.lr_range(experiments.LearningRateRange(np.array([0.1, 1.0, 10.0]), losses), below=0.7)
    crosses = [line for line in ax.get_lines() if line.get_marker() == "x"]
    assert len(crosses) == 1 and crosses[0].get_xdata().tolist() == [1.0, 10.0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt
    plt.close("all")
