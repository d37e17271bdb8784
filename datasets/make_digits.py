"""Draw an MNIST-like set of handwritten-looking digits, with NumPy alone.

Every image starts as a few control points, is bent by random numbers in many small ways,
and is then drawn with a round pen, scaled and centred the way MNIST's images are.

    python datasets/make_digits.py                                  # datasets/digits.npz
    python datasets/make_digits.py --n 60000 --seed 1 --out big.npz
    python datasets/make_digits.py --sheet datasets/digits_sample.png

What is guaranteed: image i of a split depends on the seed, the split and i alone, so a larger
set with the same seed begins with the same training (and the same test) images. Every 500
images of a split hold 50 of each digit. What processors and NumPy versions compute
a little differently (sines, powers, matrix products) is done in float64 and then rounded to float32;
the drawing is only sums, products, quotients and square roots, which are rounded alike everywhere.
"""
import argparse
import os
import shutil
import struct
import zlib

import numpy as np
from tqdm import tqdm

# The styles of each digit: (how common, strokes). A stroke is a list of points "x,y" in per cent
# of a unit box (x to the right, y down) through which a smooth curve runs; "!" after a point
# makes it a sharp corner; "|" lifts the pen.
STYLES = {
    0: [(3, "60,3 34,4 18,50 34,95 66,95 82,50 66,5 42,3"),
        (2, "68,12 42,0 17,46 30,92 70,92 83,46 56,2 34,12"),
        (2, "60,3 28,12 18,60 46,100 80,74 78,24 60,6"),
        (1, "34,10 20,50 34,94 66,94 80,50 62,6 34,8 22,26"),
        (1, "30,8 14,46 36,92 78,82 86,38 58,8 26,14")],
    1: [(8, "50,0 50,35 50,68 50,100"),
        (1, "39,20 52,0! 52,50 52,100"),
        (0.7, "36,22 52,0! 52,50 52,100 | 24,100 52,100 80,99")],
    2: [(2, "18,25 30,6 52,0 74,10 76,30 58,58 15,97! 50,96 88,96"),
        (2, "20,22 35,4 60,2 76,18 70,42 45,72 18,96! 40,90 62,94 90,97"),
        (2, "20,18 38,2 65,4 74,24 62,52 38,82 18,93 12,83 24,75 46,84 66,96 90,90"),
        (2, "15,20 40,0 68,8 70,30 55,60 35,88 15,95 5,82 20,70 45,80 65,95 95,88"),
        (1, "18,10 48,4 76,9 62,38 15,95! 50,95 88,92"),
        (1, "26,14 44,0 60,8 58,30 42,62 16,92! 50,90 98,88"),
        (1, "14,38 22,10 50,0 76,14 74,48 56,82 28,98 14,84 30,72 56,84 88,98"),
        (1, "22,24 40,2 68,10 74,44 56,84 30,98 18,84 36,72 62,86 88,95")],
    3: [(2, "20,14 45,0 72,12 66,34 42,46! 70,54 80,76 58,98 32,98 14,86"),
        (2, "20,12 45,0 70,10 70,30 52,44 56,50 76,60 80,78 60,97 35,99 15,88"),
        (1, "18,4 46,3 76,3! 58,22 42,40! 66,46 80,66 72,90 45,100 15,90"),
        (1, "22,10 50,0 72,14 62,36 42,48 34,44 46,42 68,52 80,72 62,96 35,100 12,88"),
        (2, "16,16 42,0 74,6 70,26 40,44! 62,48 68,68 50,90 18,100"),
        (1, "24,8 52,2 68,16 54,36 36,44! 64,44 84,62 74,88 44,98 10,90"),
        (1, "20,26 30,4 60,2 72,20 52,44 40,46 62,46 82,66 66,96 34,98 18,80"),
        (1, "14,13 40,1 68,8 60,28 36,42! 64,46 78,64 62,90 24,99")],
    4: [(2, "30,0 24,25 15,52! 45,50 85,48 | 70,2 66,40 62,100"),
        (1.5, "22,0 14,35 24,53 48,54 68,46 | 78,0 68,50 62,100"),
        (1, "18,2 14,32 24,52 48,52 68,38 80,6! 70,45 62,100"),
        (1, "62,0 38,28 8,62! 50,62 94,60 | 66,0 66,50 64,100"),
        (1, "22,8 15,50! 50,50 90,45 | 66,25 60,60 55,100"),
        (1, "36,0 20,36 8,64! 50,60 100,58 | 64,20 56,60 50,100"),
        (1, "30,0 16,62! 50,64 80,58 | 72,14 66,60 62,100")],
    5: [(2, "80,2 52,3 30,4! 26,24 22,44! 50,38 74,52 76,78 52,98 18,92"),
        (2, "30,5 26,25 22,45! 50,36 76,54 74,80 50,99 16,92 | 30,4 55,4 84,0"),
        (1.5, "80,2 48,4 28,18 30,38 55,48 74,64 68,88 44,100 14,92"),
        (2, "36,10 32,28 28,44 50,46 64,62 58,86 38,100 14,94 | 36,10 62,5 96,0"),
        (1, "90,0 60,6 38,8! 30,26 26,42! 52,44 62,62 52,84 26,100 10,90 18,80"),
        (1, "86,4 60,6 40,8! 34,24 28,38! 52,40 66,56 56,80 32,98 12,94"),
        (1, "28,2 24,24 22,42! 54,36 80,52 76,82 48,100 14,88 | 30,2 52,2 70,2"),
        (1, "20,10 22,26 27,46! 52,42 70,60 66,88 42,100 24,95 | 20,10 50,9 80,3"),
        (1, "40,8 36,26 33,44! 58,46 66,68 48,92 20,98 | 38,7 64,2 90,0")],
    6: [(2, "68,0 42,14 24,44 20,74 36,98 62,96 76,76 64,58 42,58 24,76"),
        (1, "60,0 36,22 20,60 26,90 52,100 74,84 66,62 45,60 34,70"),
        (2, "55,0 30,40 18,74 34,98 64,94 74,72 54,60 28,72 20,82"),
        (1, "45,0 26,30 18,66 34,98 66,98 82,74 66,54 40,62 24,84"),
        (2, "34,0 18,34 16,70 34,96 64,98 86,76 80,52 60,50 48,68 54,94"),
        (1, "62,0 46,36 34,72 38,96 56,96 62,78 50,68 36,80"),
        (1, "34,0 16,40 22,86 54,100 86,84 80,62 58,66 46,78")],
    7: [(3, "12,8 45,6 84,5! 62,40 42,100"),
        (1, "14,26 16,6! 50,7 82,5! 60,45 42,100"),
        (2, "12,12 42,6 74,4 78,14 60,48 46,100"),
        (1.5, "15,8 45,6 82,5! 62,40 40,100 | 30,52 52,51 76,48"),
        (1, "16,24 20,9 48,9 76,6 78,20 70,58 66,100"),
        (1, "6,9 28,8 54,7 90,5! 64,40 50,100"),
        (0.5, "16,22 18,6! 48,8 78,6! 66,46 50,100 | 36,54 58,50 84,48"),
        (1, "14,34 16,8! 48,8 80,6! 74,50 70,100")],
    8: [(2, "74,14 50,0 28,14 34,36 56,52 76,74 56,98 30,92 24,72 46,50 68,32 74,12"),
        (1, "50,46 28,32 32,8 52,0 72,10 72,32 50,46 | 50,46 25,62 25,90 50,100 75,90 75,62 50,46"),
        (2, "80,10 52,0 30,16 40,40 66,58 74,82 52,100 26,88 30,64 56,44 78,18"),
        (1, "28,16 50,0 74,14 66,36 44,52 24,76 46,100 72,88 72,68 52,48 32,32 30,14"),
        (3, "82,10 52,0 24,14 36,38 58,60 62,88 44,100 32,86 44,62 66,40 84,12"),
        (2, "54,46 30,30 30,8 54,0 74,12 62,38 40,58 30,84 46,100 66,88 64,62 48,44"),
        (2, "74,12 50,0 28,14 38,38 62,62 66,86 46,100 30,86 38,64 58,38 80,8")],
    9: [(3, "74,18 52,2 26,14 22,38 44,50 68,38 76,12! 72,55 68,100"),
        (2, "74,16 50,0 26,16 24,38 46,48 66,38 76,14 76,50 66,84 48,100"),
        (1, "74,16 50,0 26,16 24,38 46,50 68,38 76,14 79,60 66,95 42,98 24,86"),
        (2, "70,8 45,2 26,24 36,44 62,40 74,12 68,55 54,100"),
        (1, "66,10 46,4 28,18 34,34 52,32 68,10! 62,50 50,100"),
        (2, "80,12 52,2 20,24 24,44 50,40 80,12! 66,50 52,100"),
        (1, "76,5 40,6 18,34 36,48 64,30 80,5! 66,50 56,100"),
        (2, "74,7 40,3 22,26 40,46 66,34 78,7! 70,50 62,100"),
        (1, "62,4 36,5 18,26 30,46 56,38 68,8! 76,52 84,100")],
}

# How much of the wobble each digit gets: a wavy 1 would look like an S, a dented 0 like a D.
CALM = np.array([0.65, 0.5, 1, 1, 1, 1, 1, 1, 1, 1])

SPANS = 40             # about how many straight pieces one digit is drawn with
BOX, SIDE = 20, 28     # MNIST: scaled into 20x20, then centred in 28x28
CHUNK = 500            # images drawn from one random generator; part of what a seed means
DRAW = 100             # images drawn at a time, so that the arrays stay in the processor's cache


def curve_weights(n_points, per_span):
    """Weights (samples, n_points) of a smooth (Catmull-Rom) curve through its control points."""
    eye = np.eye(n_points)
    slope = np.gradient(eye, axis=0, edge_order=min(2, n_points - 1))
    rows = []
    for i in range(n_points - 1):
        t = np.arange(per_span)[:, None] / per_span
        rows.append((1 + 2 * t) * (1 - t) ** 2 * eye[i] + t * (1 - t) ** 2 * slope[i]
                    + t * t * (3 - 2 * t) * eye[i + 1] + t * t * (t - 1) * slope[i + 1])
    return np.concatenate(rows + [eye[-1:]])


def parse_style(text):
    """One style's text -> points (k, 2), weights (samples, k), pen down (samples,), ends (k,)."""
    strokes = [stroke.split() for stroke in text.split("|")]
    k = sum(len(stroke) for stroke in strokes)
    per_span = max(3, SPANS // (k - len(strokes)))
    points, weights, down, ends = [], [], [], []
    for stroke in strokes:
        first = len(points)
        points += [[float(v) / 100 for v in p.strip("!").split(",")] for p in stroke]
        ends += [i in (0, len(stroke) - 1) for i in range(len(stroke))]
        corners = [0] + [i for i, p in enumerate(stroke) if "!" in p] + [len(stroke) - 1]
        for a, b in zip(corners, corners[1:]):
            piece = curve_weights(b - a + 1, per_span)
            full = np.zeros((len(piece), k))
            full[:, first + a:first + b + 1] = piece
            weights.append(full)
            down += [1.0] * (len(piece) - 1) + [0.0]   # no ink from a piece's end to the next one
    return np.array(points), np.concatenate(weights), np.array(down), np.array(ends)


def style_tables():
    """All styles as arrays padded to one size, and per digit its (style numbers, chances)."""
    parsed, choice = [], {}
    for digit, styles in STYLES.items():
        chance = np.array([w for w, _ in styles], float)
        choice[digit] = np.arange(len(parsed), len(parsed) + len(styles)), chance / chance.sum()
        parsed += [parse_style(text) for _, text in styles]
    k = max(len(p[0]) for p in parsed)
    s = max(len(p[1]) for p in parsed)
    points = np.zeros((len(parsed), k, 2))
    weights = np.zeros((len(parsed), s, k))
    down = np.zeros((len(parsed), s), np.float32)
    ends = np.zeros((len(parsed), k))
    for i, (p, w, d, e) in enumerate(parsed):
        points[i, :len(p)], ends[i, :len(p)], down[i, :len(d)] = p, e, d
        weights[i, :len(w), :len(p)] = w
        weights[i, len(w):, :len(p)] = w[-1]           # padding stays on the last point, pen up
    return points, weights, down, ends, choice


TABLES = style_tables()


def normal(rng, shape, spread):
    """Normal random numbers, cut off at 2.2 spreads so that no digit falls apart."""
    return np.clip(rng.standard_normal(shape, np.float32), -2.2, 2.2) * np.float64(spread)


def bend(rng, xy, calm):
    """Change lines (n, samples, 2) as handwriting varies: proportions, waves, slant, rotation.

    calm (n, 1) shrinks the waves.
    """
    n = len(xy)
    x, y = xy[..., 0] - 0.5, np.clip(xy[..., 1], 0, None)
    y = y ** np.exp(normal(rng, (n, 1), 0.18)) - 0.5       # upper against lower half
    x = x * (1 + normal(rng, (n, 1), 0.28) * y)            # wider at the top or at the bottom
    for wavelength, height in ((1.6, 0.045), (0.8, 0.018)):
        angle, shift = rng.uniform(0, 2 * np.pi, (2, n, 1))
        phase = 2 * np.pi / wavelength * (np.cos(angle) * x + np.sin(angle) * y) + shift
        wave = normal(rng, (2, n, 1), height) * calm
        x, y = x + wave[0] * np.sin(phase), y + wave[1] * np.cos(phase)
    x = x * np.exp(0.03 + normal(rng, (n, 1), 0.22))       # wide or narrow
    x = x - y * (0.15 + normal(rng, (n, 1), 0.22))         # most people lean to the right
    turn = normal(rng, (n, 1), 0.11)
    return np.stack([np.cos(turn) * x - np.sin(turn) * y,
                     np.sin(turn) * x + np.cos(turn) * y], axis=-1)


def make_lines(rng, labels):
    """Labels (n,) -> line points (n, samples, 2) in box pixels and pen radii (n, samples)."""
    points, weights, down, ends, choice = TABLES
    style = np.array([rng.choice(choice[d][0], p=choice[d][1]) for d in labels])
    n, samples = len(labels), weights.shape[1]
    p = points[style]
    calm = CALM[labels][:, None]
    p = p + normal(rng, p.shape, 0.032) * (calm * (1 + ends[style]))[..., None]
    xy = bend(rng, weights[style] @ p, calm)

    low, high = xy.min(axis=1), xy.max(axis=1)             # (n, 2) each
    size = high - low
    longest = size.max(axis=1, keepdims=True)
    # A thick pen would fill the holes of a narrow digit; a 1 has none.
    widest = 3.4 * size.min(axis=1, keepdims=True) / longest
    widest[labels == 1] = 2.1
    pen = np.minimum(1.13 * np.exp(normal(rng, (n, 1), 0.30)), widest)
    along = np.linspace(0, 1, samples)
    beat = rng.uniform(0, 2 * np.pi, (n, 1))
    pressure = 1 + normal(rng, (n, 1), 0.13) * np.sin(beat + 9 * along)
    radius = np.clip(pen * pressure, 0.55, 2.1)

    scale = (BOX - 2 * radius.mean(axis=1, keepdims=True)) / longest
    xy = (xy - (low + high)[:, None] / 2) * scale[:, :, None] + BOX / 2
    return xy.astype(np.float32), radius.astype(np.float32), down[style]


def draw(xy, radius, down):
    """Lines (n, samples, 2), radii and pen down (n, samples) -> signed distances (n, 20, 20)."""
    n, samples = radius.shape
    pixel = np.arange(BOX, dtype=np.float32) + 0.5
    best = np.full((n, BOX, BOX), 99, np.float32)
    for s in range(samples - 1):
        if not down[:, s].any():
            continue
        step = xy[:, s + 1] - xy[:, s]
        unit = step / np.maximum((step ** 2).sum(axis=1, keepdims=True), 1e-6)
        x, y = pixel - xy[:, s, :1], pixel - xy[:, s, 1:]          # (n, 20) each
        t = (x * unit[:, :1])[:, None, :] + (y * unit[:, 1:])[:, :, None]
        np.clip(t, 0, 1, out=t)                                    # nearest place on the piece
        dx = x[:, None, :] - t * step[:, 0, None, None]
        dy = y[:, :, None] - t * step[:, 1, None, None]
        dx *= dx
        dy *= dy
        dx += dy
        distance = np.sqrt(dx, out=dx)
        distance -= (radius[:, s] - 99 * (1 - down[:, s]))[:, None, None]
        np.minimum(best, distance, out=best)
    return best


def centre(box):
    """Images (n, 20, 20) -> (n, 28, 28) with the centre of mass in the middle."""
    out = np.zeros((len(box), SIDE, SIDE), np.float32)
    place = np.arange(BOX) + 0.5
    rows, columns = box.sum(axis=2, dtype=float), box.sum(axis=1, dtype=float)
    top = np.rint(SIDE / 2 - rows @ place / rows.sum(axis=1)).astype(int)
    left = np.rint(SIDE / 2 - columns @ place / columns.sum(axis=1)).astype(int)
    limit = SIDE - BOX
    for image, small, i, j in zip(out, box, np.clip(top, 0, limit), np.clip(left, 0, limit)):
        image[i:i + BOX, j:j + BOX] = small
    return out


def make_chunk(seed, split, chunk):
    """One chunk of a split (0 train, 1 test) -> images (500, 28, 28) uint8, labels (500,)."""
    rng = np.random.default_rng([seed, split, chunk])
    labels = rng.permutation(np.arange(CHUNK) % 10)
    xy, radius, down = make_lines(rng, labels)
    rough = normal(rng, (CHUNK, BOX, BOX), 0.10).astype(np.float32)    # paper and scanner: ragged edges
    images = []
    for i in range(0, CHUNK, DRAW):
        part = slice(i, i + DRAW)
        distance = draw(xy[part], radius[part], down[part]) + rough[part]
        ink = np.clip(0.5 - distance / 1.25, 0, 1)         # a soft edge 1.25 pixels wide
        images.append(np.rint(255 * centre(ink)).astype(np.uint8))
    return np.concatenate(images), labels


def make_split(seed, split, n, bar):
    """n images (n, 28, 28) uint8 of a split and their labels (n,) int64."""
    parts = []
    for chunk in range(-(-n // CHUNK)):
        parts.append(make_chunk(seed, split, chunk))
        bar.update(min(CHUNK, n - chunk * CHUNK))
    images, labels = zip(*parts)
    return np.concatenate(images)[:n], np.concatenate(labels)[:n].astype(np.int64)


def write_file(path, write):
    """Let write(file) fill a temporary file, then put it in place at one go; if it fails, path stays as it was."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as f:
            write(f)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def png_bytes(image):
    """A grey image (h, w) uint8 -> the bytes of a PNG file."""
    def block(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    height, width = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    return (b"\x89PNG\r\n\x1a\n" + block(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + block(b"IDAT", zlib.compress(rows, 9)) + block(b"IEND", b""))


def sample_sheet(images, labels, columns=20):
    """The first images of each digit, one digit per row, black on white: (280, 28 * columns) uint8."""
    rows = [np.concatenate(list(images[labels == d][:columns]), axis=1) for d in range(10)]
    return 255 - np.concatenate(rows)


def main():
    """Read the command line, make the set and write it."""
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description="Draw an MNIST-like set of digits.")
    parser.add_argument("--n", type=int, default=12000, help="images in all; one sixth is the test set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=os.path.join(here, "digits.npz"))
    parser.add_argument("--sheet", metavar="FILE", help="write a PNG sheet of samples instead of a set")
    args = parser.parse_args()
    if args.n < 6:
        parser.error(f"--n must be 6 or more, got {args.n}")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or more, got {args.seed}")
    path = os.path.abspath(args.sheet or args.out)
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        parser.error(f"cannot write {path}: it must be a file in a folder that exists")
    if args.sheet:
        images, labels = make_chunk(args.seed, 0, 0)
        write_file(path, lambda f: f.write(png_bytes(sample_sheet(images, labels))))
        return
    n_test = args.n // 6
    width, height = shutil.get_terminal_size()  # by itself tqdm shows nothing on a terminal that gives no size
    with tqdm(total=args.n, unit="img", ncols=width, nrows=height, disable=None) as bar:  # None: on terminals only
        x_train, y_train = make_split(args.seed, 0, args.n - n_test, bar)
        x_test, y_test = make_split(args.seed, 1, n_test, bar)
    write_file(path, lambda f: np.savez_compressed(
        f, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test))


if __name__ == "__main__":
    main()
