"""A sparse autoencoder on patches of photographs, and a picture of what its hidden units look for.

This is the exercise of the CS294A notes: 8x8 patches, 25 hidden units, 400 iterations of L-BFGS.
Needs the extras ``mlpkit[plot,images]``.
"""

import argparse
from pathlib import Path

import mlpkit
from mlpkit import datasets, preprocessing


def main(small: bool = False, out: Path = Path()) -> mlpkit.MLP:
    """Train, save the model and the picture in the folder `out`, and return the network."""
    out.mkdir(parents=True, exist_ok=True)  # before the training, so that an error costs nothing
    images = preprocessing.whiten_images(datasets.natural_images())
    patches = preprocessing.sample_patches(images, n_patches=500 if small else 10_000, size=8)
    # Without their mean brightness, and in [0.1, 0.9], where a sigmoid can follow them.
    X = preprocessing.squash(preprocessing.remove_dc(patches))

    net = mlpkit.sparse_autoencoder(n_inputs=64, n_hidden=25, rho=0.01, beta=3.0, weight_decay=1e-4, seed=0)
    report = mlpkit.check_gradient(net, X[:10], X[:10])
    print(f"gradient against central differences: {report.max_relative_error:.1e}")

    result = net.fit(X, X, optimizer=mlpkit.LBFGS(max_iter=20 if small else 400, ftol=0, gtol=0))
    rho_hat = net.activations(X)[0].mean(axis=0)
    print(f"J = {result.cost:.4f} after {result.n_iterations} iterations: {result.terms}")
    print(f"mean activation of the hidden units: {rho_hat.mean():.4f}")

    net.save(out / "autoencoder.h5")
    mlpkit.plotting.features(net, path=out / "features.png")
    return net


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a quick run on little data")
    parser.add_argument("--out", type=Path, default=Path(), help="where to write (default: here)")
    options = parser.parse_args()
    main(options.small, options.out)
