"""Figures: saved where there is no window, shown where there is one, and true to the data."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Parameter,
    Sequential,
    Tensor,
    experiments,
    plotting,
)
from minidl import functional as F
from minidl.tensor import walk

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
    drawn = [y for line in ax.lines if line not in crosses for y in np.ma.filled(line.get_ydata(), 0)]
    assert max(drawn) <= max(x[np.isfinite(x)].max(initial=0) for x in losses.values())  # a cross is no value
    ax.figure.canvas.draw()
    assert crosses[0].get_window_extent().y0 > ax.transData.transform((1, max(drawn)))[1]
    assert {"0.1", "1", "10"} <= {label.get_text() for label in ax.get_xticklabels()}


def test_a_legend_wider_than_the_figure_takes_two_rows():
    fig, ax = plotting.figure(size=(8, 5))
    for i in range(4):
        ax.plot([0, 1], [0, i], label=f"one of several long labels {i}")
    plotting.legend(ax)
    fig.canvas.draw()
    box = fig.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1


# --- The graph ----------------------------------------------------------------------------------------

def line():
    """((w x + b) - 4)^2 at w = 2, x = 3, b = -1: what lesson 1 draws."""
    leaves = {"w": Tensor(2.0, requires_grad=True), "x": Tensor(3.0), "b": Tensor(-1.0, requires_grad=True)}
    return ((leaves["w"] * leaves["x"] + leaves["b"]) - 4.0) ** 2, leaves


def network():
    model = Sequential([Dense(8), BatchNorm(), Activation("relu"), Dense(4)]).build((5,)).train()
    return F.cross_entropy(model(np.ones((6, 5), np.float32)), np.arange(6) % 4), dict(model.named_parameters())


def tangle():
    """Results used several times, near and far, early and late; one number used twice."""
    a, b = Parameter(np.float32(2)), Parameter(np.ones((3, 1), np.float32))
    early, h = F.exp(a), a * 3.0
    return (F.tanh(h) * F.sigmoid(h) + h * a + a + b * b * h).sum() / 3.0 + early, {"a": a}


def definition():
    x, gamma, beta = (Parameter(np.ones(shape)) for shape in ((6, 4), 4, 4))
    return F.batch_norm_composed(x, gamma, beta)[0], {"gamma": gamma, "beta": beta}


@pytest.mark.parametrize("make", [line, network, tangle, definition])
def test_in_a_graph_no_box_hides_another_no_arrow_crosses_one_and_every_text_fits(make):
    tensor, names = make()
    ax = plotting.graph(tensor, names=names, numbers=True)
    ax.figure.canvas.draw()
    boxes = [box.get_window_extent() for box in ax.patches]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = ax.figure.bbox
    for text in ax.texts:
        if text.get_text() and not text.get_text().endswith("."):
            extent = text.get_window_extent()
            assert text.get_fontsize() >= 12 and sum(box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0
                                                     and extent.y1 <= box.y1 for box in boxes) == 1, text.get_text()
        elif text.get_text():
            assert not any(text.get_window_extent().overlaps(box) for box in boxes)
        assert frame.contains(*text.get_window_extent().min) and frame.contains(*text.get_window_extent().max)
    segments = [(arrow.xyann, arrow.xy) for arrow in ax.texts if not arrow.get_text()]
    segments += [tuple(zip(*passing.get_data())) for passing in ax.get_lines()]
    for start, end in segments:
        points = ax.transData.transform(np.linspace(start, end, 201)[1:-1])
        assert not any(box.padded(-1).count_contains(points) for box in boxes)


def test_a_graph_says_what_each_box_is():
    """Ops with values or shapes, names where given, and parameters told from data and results."""
    ax = plotting.graph(*line())
    kinds = {text.get_text(): box.get_label() for text, box in zip([t for t in ax.texts if t.get_text()], ax.patches)}
    assert kinds == {"w\n2": "parameter", "x\n3": "data", "b\n-1": "parameter", "4": "data", "2": "data", "mul\n6": "result",
                     "add\n5": "result", "sub\n1": "result", "power\n1": "result"}
    arrows = [t for t in ax.texts if not t.get_text()]
    assert len(arrows) == 8 and all(arrow.arrow_patch.get_arrowstyle().__class__.__name__ == "CurveFilledB" for arrow in arrows)
    assert [t.get_text() for t in plotting.graph(tangle()[0]).texts].count("3") == 2  # a number is no shared node
    tensor, names = network()
    texts = [t.get_text() for t in plotting.graph(tensor, names=names).texts]
    assert {"batch_norm\n(6, 8)", "layers.0.kernel\n(5, 8)", f"cross_entropy\n{tensor.item():.4g}", "(6, 5)"} <= set(texts)


@pytest.mark.parametrize("make", [line, tangle, definition])
def test_the_numbers_are_the_order_of_the_backward_walk(make):
    tensor, _ = make()
    ax = plotting.graph(tensor, numbers=True)
    texts = [t for t in ax.texts if t.get_text()]
    numbered = {int(t.get_text()[:-1]): label.get_text().split("\n")[0]
                for label, t in zip(texts, texts[1:]) if t.get_text().endswith(".")}
    found = walk(tensor, np.ones(tensor.shape, tensor.dtype), everything=True)
    assert [numbered[i + 1] for i in range(len(numbered))] == [t.op.name for t, _ in found if t.op]


def test_a_graph_that_cannot_be_drawn_says_why():
    loss, _ = line()
    loss.backward()
    for tensor, reason in (loss, "before backward"), (Tensor(1.0), "not the recorded result"):
        with pytest.raises(ValueError, match=reason):
            plotting.graph(tensor)
    y = Tensor(1.0, requires_grad=True)
    for _ in range(5000):
        y = y * 1.0
    with pytest.raises(ValueError, match=r"more than 60 nodes.* minidl\.explain\(loss, wrt\)"):
        plotting.graph(y)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt
    plt.close("all")


def test_panel_titles_are_as_large_as_the_style_says_unless_the_author_chose(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDL_FIGURES", str(tmp_path))
    fig, axes = plotting.figure(1, 2)
    axes[0].set_title("large enough for the last row")
    axes[1].set_title("chosen", fontsize=9)
    plotting.show(fig, "titles")
    assert [ax.title.get_fontsize() for ax in axes] == [plotting.STYLE["axes.titlesize"], 9]


def test_a_figure_replaces_the_old_file_whole_keeps_its_mode_and_is_a_png(tmp_path, monkeypatch):
    """What `files.replacing` promises holds for figures, too."""
    monkeypatch.setenv("MINIDL_FIGURES", str(tmp_path))
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "real.png").chmod(0o600)
    (tmp_path / "a.png").symlink_to("real.png")
    fig, _ = plotting.figure()
    with monkeypatch.context() as patch:
        def half(file, **options):
            file.write(b"\x89PNG")
            raise OSError("disk full")
        patch.setattr(fig, "savefig", half)
        with pytest.raises(OSError, match="disk full"):
            plotting.show(fig, "a")
    assert (tmp_path / "real.png").read_bytes() == b"old"
    with matplotlib.rc_context({"savefig.format": "pdf"}):
        plotting.show(fig, "a")
    assert (tmp_path / "a.png").is_symlink() and (tmp_path / "real.png").read_bytes().startswith(
        b"\x89PNG\r\n"
    )
    assert (tmp_path / "real.png").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "real.png"]


# --- Seen by others -----------------------------------------------------------------------------------

def seen(rgb):
    """tests/tools/grey.py's filter for deuteranopia."""
    from importlib.util import module_from_spec, spec_from_file_location
    path = Path(__file__).parent / "tools" / "grey.py"
    spec = spec_from_file_location("grey", path)
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.grey(rgb), tool.deuteranopia(rgb)


def test_the_filters_leave_greys_alone_and_make_red_and_green_alike():
    """Known of deuteranopia: the eye keeps greys and blues; red and green of one lightness become one colour."""
    greys = np.linspace(0, 1, 5)[:, None] * np.ones(3)
    for filtered in seen(greys):
        assert np.allclose(filtered, greys, atol=0.01)
    pink, green = np.array([[0xCC, 0x79, 0xA7], [0x00, 0x9E, 0x73]]) / 255
    alike, apart = (np.linalg.norm(a - b) for a, b in (seen(np.array([pink, green]))[1], (pink, green)))
    assert alike < 0.22 and apart > 0.8


def test_no_two_lines_look_alike_without_green_sensitive_cones():
    from matplotlib.colors import to_rgb
    colours = seen(np.array([to_rgb(color) for color, _ in plotting.LOOKS]))[1]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 0.22  # pink and green have less
    assert len({str(line) for _, line in plotting.LOOKS}) == len(plotting.LOOKS)
