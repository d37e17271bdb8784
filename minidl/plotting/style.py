"""The style of all figures, and how they are shown: in a window, a notebook or a file."""

import os

from ..files import expanded, replacing

# The first of a comparison, BatchNorm in the lessons, is solid; the second, the plain network,
# dashed. Okabe and Ito's pink is left out: without green-sensitive cones it is their green.
LOOKS = [
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#56B4E9", ":"),
    ("#E69F00", (0, (5, 1, 1, 1))),
]
STYLE = {"font.size": 15, "axes.titlesize": 16, "axes.labelsize": 15, "legend.fontsize": 14,
         "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
         "figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True}


def figure(rows=1, columns=1, title=None, size=None, **options):
    """A new figure and its Axes in minidl's style. title: the figure's message, in one sentence."""
    import matplotlib.pyplot as plt
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(
            rows, columns, figsize=size or (2 + 5.5 * columns, 1 + 4.5 * rows), **options
        )
        if title:
            fig.suptitle(title, fontsize=18, fontweight="bold")
        interactive = plt.isinteractive()
    # a notebook's backend turns this on with the first figure; rc_context must not undo it
    plt.interactive(interactive)
    return fig, axes


def legend(ax):
    """One legend for the whole figure, below it, where it hides no curve; in two rows if wide."""
    fig = ax.figure
    entries = {
        label: handle
        for panel in fig.axes
        for handle, label in zip(*panel.get_legend_handles_labels())
    }
    for old in list(fig.legends):
        old.remove()
    wide = sum(len(label) + 7 for label in entries) * 0.11 > fig.get_figwidth()  # inches
    fig.legend(entries.values(), entries.keys(), loc="outside lower center",
               ncols=-(-len(entries) // 2) if wide else len(entries),
               frameon=False, fontsize=STYLE["legend.fontsize"])
    return ax


def plain_ticks(axis):
    """On a logarithmic axis, 0.3, 1 and 300 in place of 3 × 10⁻¹, 10⁰ and 3 × 10².

    Beyond 0.001 and 10,000 powers of ten stay. axis: ax.xaxis or ax.yaxis.
    """
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, x, pos=None):
            text = super().__call__(x, pos)  # empty where there is no room for a number
            return f"{x:g}" if text and 1e-3 <= x <= 1e4 else text

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(labelOnlyBase=False))


def folder():
    """The folder of figures, made if missing: $MINIDL_FIGURES (~ is home) or figures/."""
    path = expanded(os.environ.get("MINIDL_FIGURES") or "figures")
    path.mkdir(parents=True, exist_ok=True)
    return path


def show(fig, name):
    """Show a figure in a window where there is one, else save it as figures/<name>.png.

    The path of the file is printed. $MINIDL_FIGURES names another folder. A notebook shows the
    figure by itself and gets the file as well.
    """
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import FontProperties
    unstyled = FontProperties(size=plt.rcParams["axes.titlesize"]).get_size_in_points()
    # a panel's title set after `figure` has matplotlib's size, too small for the last row
    for ax in fig.axes:
        if ax.title.get_fontsize() == unstyled:
            ax.title.set_fontsize(STYLE["axes.titlesize"])
    if fig.canvas.required_interactive_framework:
        # blocks in a script, returns at once in an interactive session
        fig.canvas.manager.pyplot_show()
        return
    path = folder() / f"{name}.png"
    with replacing(path) as file:
        fig.savefig(file, format="png")
    print(f"figure: {path}")
    if plt.get_backend().lower() == "agg":
        plt.close(fig)  # it has been saved; a notebook must still show it
