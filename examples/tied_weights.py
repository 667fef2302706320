"""An autoencoder with tied weights: the decoder's W is the encoder's transposed, so theta = [W, b, b'].

Half the parameters, and what a hidden unit looks for is what it draws. Each tied weight enters the weight decay once.
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits

import mlpkit


def main(small: bool = False) -> dict[str, tuple[int, float]]:
    """Train an autoencoder with and without ties; return each one's number of parameters and error on new digits."""
    X = load_digits().data / 16.0
    X = X[np.random.default_rng(0).permutation(len(X))]
    n_train = 300 if small else 1_400
    train, test = X[:n_train], X[1_400:]

    found = {}
    for tied in (False, True):
        net = mlpkit.sparse_autoencoder(64, 25, rho=0.1, beta=0.1, weight_decay=1e-5, tied=tied, seed=0)
        report = mlpkit.check_gradient(net, train[:20], train[:20])
        assert report.ok, str(report)
        net.fit(train, train, optimizer=mlpkit.LBFGS(max_iter=100 if small else 400))
        error = float(np.mean((net.predict(test) - test) ** 2))
        found["tied" if tied else "free"] = (net.n_parameters, error)
        print(f"{'tied' if tied else 'free'}: {net.n_parameters} parameters, mean squared error {error:.4f}")

    assert np.shares_memory(net.weights[0], net.weights[1])  # the last one is tied: one matrix, seen twice
    print(f"mean of the squares themselves: {np.mean((test - train.mean(axis=0)) ** 2):.4f} (the mean digit's error)")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less data, fewer iterations")
    main(parser.parse_args().small)
