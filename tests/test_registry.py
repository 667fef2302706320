"""Tables of named plugins: what their errors say."""

import pytest

import mlpkit
from mlpkit.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("get", "message"),
    [
        (mlpkit.activations.get, r"^activation must be an Activation or one of 'sigmoid', .*; found 'swoosh'$"),
        (mlpkit.losses.get, r"^loss must be a Loss or one of 'squared_error', .*; found 'swoosh'$"),
        (mlpkit.activations.register, r"^activation must be an Activation; found 'swoosh'$"),
        (mlpkit.losses.register, r"^loss must be a Loss; found 'swoosh'$"),
    ],
)
def test_what_is_no_plugin_is_told_so_in_plain_english(get, message):
    with pytest.raises(InvalidArgumentError, match=message):
        get("swoosh")
