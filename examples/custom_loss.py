"""A loss of your own: quantile regression, three networks that draw an interval around what they expect.

The pinball loss of Koenker and Bassett (1978) is least where a share tau of the targets lies below the output. With
tau = 0.1, 0.5 and 0.9 three networks give the median and an interval for 80 % of the points, wide where the data are
noisy. Needs the extra ``mlpkit[plot]``.
"""

import argparse
from pathlib import Path

import numpy as np

import mlpkit

TAUS = (0.1, 0.5, 0.9)


def pinball(tau: float) -> mlpkit.losses.Loss:
    """Return the loss whose minimum is the quantile tau; its derivative is found by dual numbers."""
    return mlpkit.loss(lambda a, y: max(tau * (y - a), (tau - 1) * (y - a)), name=f"pinball {tau}", replace=True)


def sample(m: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return m points of a wave whose noise grows from left to right."""
    x = rng.uniform(0.0, 1.0, (m, 1))
    return x, np.sin(6.0 * x) + (0.05 + 0.5 * x) * rng.normal(size=(m, 1))


def main(small: bool = False, out: Path = Path()) -> tuple[float, float]:
    """Fit the quantiles and draw them; return the share of new points in the interval, to the left and to the right."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    X, Y = sample(1_000 if small else 5_000, rng)

    nets = []
    for tau in TAUS:
        net = mlpkit.MLP(
            [mlpkit.Input(1), mlpkit.Dense(10, "tanh"), mlpkit.Dense(1, "identity")],
            loss=pinball(tau),
            weight_decay=1e-5,
            seed=0,
        )
        # On a loss with kinks one step may gain next to nothing long before the end: no tolerance stops it there.
        result = net.fit(X, Y, optimizer=mlpkit.LBFGS(max_iter=200 if small else 1_000, ftol=0, gtol=0))
        print(f"tau = {tau}: loss {result.terms['data']:.4f}, {np.mean(net.predict(X) >= Y):.1%} of the points below")
        nets.append(net)

    X_new, Y_new = sample(5_000, rng)
    low, _, high = (net.predict(X_new) for net in nets)
    inside = (low <= Y_new) & (Y_new <= high)
    left, right = (float(inside[half].mean()) for half in (X_new < 0.5, X_new >= 0.5))
    print(f"{inside.mean():.1%} of {len(X_new)} new points lie in the interval for 80 %")
    print(f"{left:.1%} of those to the left, where noise is weak, {right:.1%} to the right")
    draw(nets, X_new[:1_000], Y_new[:1_000], out / "quantiles.png")
    return left, right


def draw(nets: list[mlpkit.MLP], X: np.ndarray, Y: np.ndarray, path: Path) -> None:
    """Draw the points, the median and the interval between the outer quantiles."""
    from matplotlib.figure import Figure

    grid = np.linspace(0.0, 1.0, 300)[:, np.newaxis]
    low, middle, high = (net.predict(grid)[:, 0] for net in nets)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="x", ylabel="y")
    axes.scatter(X, Y, s=4, color="0.6", label="new points")
    axes.fill_between(grid[:, 0], low, high, alpha=0.3, label="interval for 80 %")
    axes.plot(grid, middle, label="median")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less data, fewer iterations")
    parser.add_argument("--out", type=Path, default=Path(), help="where to write (default: here)")
    options = parser.parse_args()
    main(options.small, options.out)
