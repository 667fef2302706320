"""From and to scikit-learn: predictions, objectives and gradients agree; what cannot be expressed is refused."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline

import mlpkit
from mlpkit.interop import from_sklearn, to_sklearn

N_ROWS = 24
ALPHA = 0.3


@pytest.fixture
def X(rng):
    return rng.normal(size=(N_ROWS, 4))


def _targets(head, rng):
    """Return targets as scikit-learn's fit takes them."""
    return {
        "binary": np.array(["no", "yes"])[rng.permutation(N_ROWS) % 2],
        "multiclass": np.array([3, 5, 9])[rng.permutation(N_ROWS) % 3],
        "multilabel": np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0]])[rng.permutation(N_ROWS) % 3],
        "one output": rng.normal(size=N_ROWS),
        "three outputs": rng.normal(size=(N_ROWS, 3)),
        "counts": rng.poisson(2.0, size=(N_ROWS, 2)).astype(float),
    }[head]


CLASSIFIERS = ("binary", "multiclass", "multilabel")
HEADS = (*CLASSIFIERS, "one output", "three outputs", "counts")


def fit(head, X, y, **options):
    make = MLPClassifier if head in CLASSIFIERS else MLPRegressor
    options = {"hidden_layer_sizes": (3, 2), "activation": "tanh", "alpha": ALPHA, "random_state": 0, **options}
    if head == "counts":
        options["loss"] = "poisson"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make(solver=options.pop("solver", "lbfgs"), max_iter=3, **options).fit(X, y)


def probabilities(estimator, X):
    """What mlpkit's predict should give."""
    found = estimator.predict(X) if isinstance(estimator, MLPRegressor) else estimator.predict_proba(X)
    if found.ndim == 1:
        return found[:, np.newaxis]
    return found[:, 1:] if estimator.out_activation_ == "logistic" and estimator.n_outputs_ == 1 else found


def theirs(estimator, X, Y, sample_weight=None):
    """Return scikit-learn's loss and its gradient in the order of mlpkit's theta; Y is two-dimensional."""
    n = len(estimator.coefs_)
    empty = [np.empty_like(W) for W in estimator.coefs_], [np.empty_like(b) for b in estimator.intercepts_]
    loss, dW, db = estimator._backprop(X, Y, sample_weight, [X] + [None] * n, [None] * n, *empty)
    return loss, np.concatenate([part.ravel() for W, b in zip(dW, db, strict=True) for part in (W.T, b)])


def encoded(head, y):
    if head == "binary":
        return (y == "yes").astype(float)[:, np.newaxis]
    if head == "multiclass":
        return (y[:, np.newaxis] == [3, 5, 9]).astype(float)
    return y.reshape(N_ROWS, -1).astype(float)


@pytest.mark.parametrize("head", HEADS)
def test_objectives_and_gradients_agree(head, X, rng):
    y = _targets(head, rng)
    estimator = fit(head, X, y)
    net, _ = from_sklearn(estimator, n_samples=N_ROWS)
    assert_allclose(net.predict(X), probabilities(estimator, X), rtol=1e-12, atol=1e-14)
    assert net.weight_decay == ALPHA / N_ROWS
    Y = encoded(head, y)
    objective = mlpkit.Objective(net, X, Y)
    J, gradient = objective.value_and_gradient(net.theta)
    loss, expected = theirs(estimator, X, Y)
    assert_allclose(gradient, expected, rtol=1e-10, atol=1e-13)
    constant = np.sum(Y * np.log(np.where(Y > 0, Y, 1)) - Y) / N_ROWS if head == "counts" else 0.0
    missing = 2 / 3 * objective.terms(net.theta)["data"] if head == "three outputs" else 0.0
    assert_allclose(loss + missing, J + constant, rtol=1e-10)


def test_scikit_learns_squared_loss_is_not_what_its_gradient_belongs_to(X, rng):
    """Issue 8349, as of 1.9: were it mended, the conversion of three outputs would have to change."""
    Y = rng.normal(size=(N_ROWS, 3))
    estimator = fit("three outputs", X, Y, alpha=0.0)
    _, gradient = theirs(estimator, X, Y)
    values, bias = [], estimator.intercepts_[-1]
    for step in (1e-5, -1e-5):
        estimator.intercepts_[-1] = bias + np.array([0, 0, step])
        values.append(theirs(estimator, X, Y)[0])
    assert_allclose(gradient[-1], 3 * (values[0] - values[1]) / 2e-5, rtol=1e-6)


def test_sample_weights_divide_alpha_by_their_sum(X, rng):
    y, w = rng.normal(size=N_ROWS), rng.uniform(0.5, 2.0, N_ROWS)
    estimator = fit("one output", X, y)
    net, _ = from_sklearn(estimator, n_samples=w.sum())
    J, gradient = mlpkit.Objective(net, X, y, sample_weight=w).value_and_gradient(net.theta)
    loss, expected = theirs(estimator, X, y[:, np.newaxis], w)
    assert_allclose(loss, J, rtol=1e-10)
    assert_allclose(gradient, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "divisor"),
    [
        ({"solver": "sgd"}, N_ROWS),
        ({"solver": "adam", "batch_size": 10}, 10),
        ({"solver": "adam", "batch_size": 10, "early_stopping": True, "validation_fraction": 0.75}, 6),
    ],
)
@pytest.mark.filterwarnings("ignore:Got `batch_size` less than 1")
def test_a_stochastic_estimator_knows_what_alpha_is_divided_by(options, divisor, X, rng):
    estimator = fit("one output", X, _targets("one output", rng), **options)
    assert from_sklearn(estimator).result.weight_decay == ALPHA / divisor


def test_a_batch_of_auto_size_is_at_most_200(rng):
    X = rng.normal(size=(300, 2))
    estimator = fit("one output", X, X[:, 0], solver="adam")
    assert from_sklearn(estimator).result.weight_decay == ALPHA / 200


def test_what_alpha_is_divided_by_is_asked_for(X, rng):
    estimator = fit("one output", X, _targets("one output", rng))
    with pytest.raises(mlpkit.InvalidArgumentError, match="n_samples must be given: MLPRegressor with solver 'lbfgs'"):
        from_sklearn(estimator)
    assert from_sklearn(estimator.set_params(alpha=0)).result.weight_decay == 0
    several = MLPRegressor(solver="sgd")
    for rows in (slice(0, 10), slice(10, 24)):
        several.partial_fit(X[rows], X[rows, 0])
    with pytest.raises(mlpkit.InvalidArgumentError, match="n_samples must be given"):
        from_sklearn(several)


@pytest.mark.parametrize("head", HEADS)
def test_there_and_back(head, X, rng):
    estimator = fit(head, X, _targets(head, rng), tol=1e-3)
    back, _ = to_sklearn(from_sklearn(estimator, n_samples=N_ROWS).result)
    assert type(back) is type(estimator)
    alpha = back.get_params() | {"alpha": pytest.approx(ALPHA, rel=1e-15), "hidden_layer_sizes": (3, 2)}
    assert alpha == estimator.get_params()
    for found, expected in zip(back.coefs_ + back.intercepts_, estimator.coefs_ + estimator.intercepts_, strict=True):
        assert_array_equal(found, expected)
    assert_array_equal(back.predict(X), estimator.predict(X))
    if head in CLASSIFIERS:
        assert back.classes_.dtype == estimator.classes_.dtype
        assert_array_equal(back.classes_, estimator.classes_)
        assert_array_equal(back.predict_proba(X), estimator.predict_proba(X))
    for name in ("n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(back, name) == getattr(estimator, name)


@pytest.mark.parametrize("activation", ["identity", "logistic", "relu"])
@pytest.mark.parametrize("hidden", [(), (3,)])
def test_activations_and_depths(activation, hidden, X, rng):
    y = _targets("multiclass", rng)
    estimator = fit("multiclass", X, y, activation=activation, hidden_layer_sizes=hidden)
    net, _ = from_sklearn(estimator, n_samples=N_ROWS)
    assert_allclose(net.predict(X), estimator.predict_proba(X), rtol=1e-12)
    assert_array_equal(np.array(net.metadata["classes"])[net.predict_labels(X)], estimator.predict(X))
    assert_array_equal(to_sklearn(net).result.predict(X), estimator.predict(X))


def test_float32_stays_float32(X, rng):
    y = _targets("one output", rng)
    estimator = fit("one output", X.astype(np.float32), y, solver="adam")
    net, _ = from_sklearn(estimator)
    assert net.dtype == np.float32
    back = to_sklearn(net).result
    assert back.coefs_[0].dtype == np.float32
    assert_array_equal(back.predict(X.astype(np.float32)), estimator.predict(X.astype(np.float32)))


def test_an_estimator_made_here_trains_further_from_where_it_is(X, rng):
    y = _targets("three outputs", rng)
    layers = [mlpkit.Input(4), mlpkit.Dense(3, "tanh"), mlpkit.Dense(3, "identity")]
    net = mlpkit.MLP(layers, weight_decay=0.01, seed=0)
    for solver in ("lbfgs", "adam"):
        estimator, _ = to_sklearn(net, solver=solver, n_samples=N_ROWS)
        estimator.set_params(warm_start=True, max_iter=1, learning_rate_init=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(X, y)
        first = mlpkit.Objective(net, X, y).terms(net.theta)
        at_most = first["data"] / 3 + first["weight_decay"]
        assert estimator.loss_ == pytest.approx(at_most) if solver == "adam" else estimator.loss_ < at_most
    assert estimator.n_iter_ == len(estimator.loss_curve_) == 1


def test_every_thing_mapped_has_a_line(X, rng):
    mapped = from_sklearn(fit("multiclass", X, _targets("multiclass", rng)), n_samples=N_ROWS).mapped
    for line in (
        "coefs_[0].T (3, 4) float64 -> W^(1)",
        "intercepts_[2] (3,) float64 -> b^(3)",
        "activation 'tanh' -> 'tanh'",
        "out_activation_ 'softmax' -> 'softmax'",
        "loss 'log_loss' -> 'cross_entropy'",
        "alpha 0.3 -> weight_decay 0.0125, alpha / 24",
        "classes_ [3, 5, 9] -> metadata['classes']",
    ):
        assert line in mapped


def test_names_of_columns_and_a_generator_of_random_numbers(X, rng, tmp_path):
    estimator = fit("one output", X, X[:, 0], random_state=np.random.RandomState(0))
    estimator.feature_names_in_ = np.array(list("abcd"), dtype=object)
    net, mapped = from_sklearn(estimator, n_samples=np.int64(N_ROWS))
    assert any(line.startswith("random_state RandomState") for line in mapped)
    net.save(tmp_path / "model.h5")  # which takes nothing that JSON does not hold
    back = to_sklearn(mlpkit.load(tmp_path / "model.h5")).result
    assert back.feature_names_in_.tolist() == list("abcd")
    assert back.random_state is None


def test_what_an_estimator_has_no_place_for_has_a_line():
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(2, "identity", init="he_normal")], seed=7)
    net.metadata = {"title": "seven", "classes": [0, 1]}
    net.provenance = {"optimizer": "LBFGS()"}
    assert to_sklearn(net).mapped == (
        "W^(1) (2, 2), b^(1) -> coefs_[0] (2, 2), intercepts_[0]",
        "'identity', 'squared_error' -> MLPRegressor, loss 'squared_error'",
        "weight_decay 0 -> alpha 0",
        "seed 7 -> not part of an estimator",
        "layer 2: init 'he_normal' -> not part of an estimator",
        "provenance -> not part of an estimator",
        "metadata['title'] -> not part of an estimator",
        "metadata['classes'] -> not part of an estimator",
    )


@pytest.mark.parametrize(
    ("layers", "options", "reason"),
    [
        ([mlpkit.Dense(3, "tanh"), mlpkit.Dense(3, "relu")], {}, "hidden activations that differ: relu, tanh"),
        ([mlpkit.Dense(3, "gelu")], {}, "hidden activation 'gelu'"),
        ([mlpkit.Dense(3, "tanh", bias=False)], {}, "layer 2 without biases"),
        ([mlpkit.Dense(3, "tanh", weight_decay=0.5)], {}, "weight decay that differs: 0.5, 0"),
        ([mlpkit.Dense(3, "tanh", sparsity=mlpkit.KLSparsity())], {}, "KLSparsity on layer 2"),
        ([], {"noise": mlpkit.GaussianNoise(0.1)}, "noise on the inputs"),
        ([], {"loss": "huber"}, "loss 'huber' on 'identity' outputs"),
    ],
)
def test_what_no_estimator_expresses_is_refused(layers, options, reason):
    inputs = mlpkit.Input(2, noise=options.pop("noise", None))
    net = mlpkit.MLP([inputs, *layers, mlpkit.Dense(2, "identity")], **options, seed=0)
    with pytest.raises(mlpkit.InvalidArgumentError, match=f"net must be one .* found {reason}"):
        to_sklearn(net)


def test_two_classes_on_a_softmax_and_tied_weights_are_refused():
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(2, "softmax")], loss="cross_entropy")
    with pytest.raises(mlpkit.InvalidArgumentError, match="softmax of 2 units"):
        to_sklearn(net)
    layers = [mlpkit.Input(2), mlpkit.Dense(3, "tanh"), mlpkit.Dense(2, "identity", tied_to=1)]
    with pytest.raises(mlpkit.InvalidArgumentError, match=r"found layer 3 tied to W\^\(1\)$"):
        to_sklearn(mlpkit.MLP(layers, weight_decay=0.1), n_samples=10)


def test_labels_must_be_sorted_and_one_for_each_output():
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(3, "softmax")], loss="cross_entropy")
    assert to_sklearn(net).result.classes_.tolist() == [0, 1, 2]
    assert to_sklearn(net, classes=["a", "b", "c"]).result.classes_.tolist() == ["a", "b", "c"]
    for classes in (["b", "a", "c"], ["a", "b"], ["a", "a", "b"]):
        with pytest.raises(mlpkit.InvalidArgumentError, match="classes must be 3 different labels in sorted order"):
            to_sklearn(net, classes=classes)


def test_parameters_that_scikit_learn_refuses():
    net = mlpkit.MLP([mlpkit.Input(2), mlpkit.Dense(1, "identity")])
    with pytest.raises(mlpkit.InvalidArgumentError, match=r"scikit-learn refuses the estimator: .*solver"):
        to_sklearn(net, solver="newton")
    net.metadata["scikit_learn"] = {"parameters": {"speed": 3}}
    with pytest.raises(mlpkit.InvalidArgumentError, match="scikit-learn refuses the estimator: Invalid parameter"):
        to_sklearn(net)


def test_other_estimators_are_refused(X):
    class Mine(MLPRegressor):
        pass

    for estimator in (make_pipeline(MLPRegressor()), Mine(), 3):
        with pytest.raises(mlpkit.InvalidArgumentError, match="estimator must be an MLPClassifier or MLPRegressor"):
            from_sklearn(estimator)
    with pytest.raises(mlpkit.InvalidArgumentError, match="estimator must be fitted; found MLPRegressor"):
        from_sklearn(MLPRegressor())
    estimator = fit("one output", X, X[:, 0])
    estimator.activation = "swish"
    with pytest.raises(mlpkit.InvalidArgumentError, match="found activation 'swish'"):
        from_sklearn(estimator, n_samples=N_ROWS)
    estimator = fit("one output", X, X[:, 0])
    estimator.coefs_[1][2, 1] = np.nan
    with pytest.raises(mlpkit.InvalidArgumentError, match=r"estimator: coefs_\[1\].T\[1, 2\]: expected finite numbers"):
        from_sklearn(estimator, n_samples=N_ROWS)
