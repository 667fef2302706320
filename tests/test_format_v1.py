"""Files of format version 1 are read by every later version: the same numbers, settings and predictions."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mlpkit
from mlpkit import model_file

FOLDER = Path(__file__).parent / "data" / "format_v1"
DOCUMENT = Path(__file__).parents[1] / "docs" / "model-format.md"
NAMES = sorted(path.stem for path in FOLDER.glob("*.h5"))


def test_there_are_files():
    assert len(NAMES) >= 5
    assert all((FOLDER / f"{name}.h5").stat().st_size < 16 * 1024 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_as_it_was_written(name):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    net = mlpkit.load(FOLDER / f"{name}.h5")
    assert net.theta.tolist() == [float.fromhex(number) for number in expected["theta"]]
    # A later version may know settings that this file does not have.
    assert contained(expected["config"], net.config())
    assert net.metadata == expected["metadata"]
    assert net.provenance == expected["provenance"]
    # Not to the bit: kernels may change. A few roundings for each layer.
    tolerance = 100 * np.finfo(net.dtype).eps
    np.testing.assert_allclose(net.predict(expected["X"]), expected["predictions"], rtol=tolerance, atol=tolerance)


def contained(old, new):
    if isinstance(old, dict):
        return all(key in new and contained(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        return len(old) == len(new) and all(map(contained, old, new))
    return old == new


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_written_again_as_it_is_read(name, tmp_path):
    mlpkit.load(FOLDER / f"{name}.h5").save(tmp_path / "again.h5")
    again = mlpkit.load(tmp_path / "again.h5")
    assert again.config() == mlpkit.load(FOLDER / f"{name}.h5").config()
    assert again.theta.tobytes() == mlpkit.load(FOLDER / f"{name}.h5").theta.tobytes()


def test_the_document_shows_how_to_predict_without_mlpkit(tmp_path):
    (program,) = (code for code in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S) if "h5py" in code)
    assert "mlpkit" not in program
    assert len([line for line in program.splitlines() if line]) == 6
    expected = json.loads((FOLDER / "autoencoder.json").read_text())
    shutil.copy(FOLDER / "autoencoder.h5", tmp_path / "model.h5")
    np.save(tmp_path / "X.npy", expected["X"])
    script = f"import numpy\na = numpy.load('X.npy')\n{program}\nnumpy.save('out.npy', a)\n"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected["predictions"], rtol=1e-13)


def test_the_document_has_the_objective_and_every_encoding():
    text = DOCUMENT.read_text()
    assert model_file.OBJECTIVE in " ".join(text.split())
    for encoding in ("mlpkit.model", "mlpkit.json", "mlpkit.parameters", "mlpkit.dense", "mlpkit.array"):
        assert f"`{encoding}` 1.0" in text
