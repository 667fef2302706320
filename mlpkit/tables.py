"""Tables of numbers in files, one example a row: read from and written to .npy, .h5 and .csv."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpkit.durable import replace_file
from mlpkit.errors import InvalidArgumentError

__all__ = ["check_table_name", "read_table", "write_table"]

_ENDINGS = (".npy", ".h5", ".hdf5", ".csv")


def check_table_name(path: Path) -> str:
    """Return the ending that says what kind of file it is.

    Raises
    ------
    InvalidArgumentError
        If there is no such kind.

    Examples
    --------
    >>> check_table_name(Path("data.CSV"))
    '.csv'
    """
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise InvalidArgumentError(f"{str(path)!r} must end in {', '.join(_ENDINGS)}")
    return ending


def read_table(path: Path, dataset: str | None = None) -> NDArray[Any]:
    """Read a table of numbers.

    Parameters
    ----------
    path : Path
        A .npy file; an HDF5 file; or a .csv file with commas between the columns, where a first line that is no numbers
        is taken for their titles.
    dataset : str, optional
        Which dataset of an HDF5 file that has several.

    Returns
    -------
    ndarray
        As it is in the file. Links out of an HDF5 file are not followed, and nothing in a file is executed.

    Raises
    ------
    InvalidArgumentError
        If the file is not what its name says, or has several datasets and none is named.
    OSError
        If it cannot be read.
    """
    ending = check_table_name(path)
    if dataset is not None and ending not in (".h5", ".hdf5"):
        raise InvalidArgumentError(f"a dataset can be named in HDF5 files only; found {str(path)!r}")
    with open(path, "rb"):  # what the system has against the file is its own error
        pass
    try:
        if ending == ".npy":
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("an archive of several arrays (.npz)")
            return array
        return _read_csv(path) if ending == ".csv" else _read_hdf5(path, dataset)
    except InvalidArgumentError:
        raise
    except (ValueError, OSError, EOFError, RuntimeError, KeyError) as error:
        raise InvalidArgumentError(f"{str(path)!r} cannot be read as {ending}: {error}") from error


def _read_csv(path: Path) -> NDArray[np.float64]:
    text = path.read_text(encoding="utf-8-sig")
    first, _, rest = text.partition("\n")
    try:
        [float(field) for field in first.split(",")]
    except ValueError:
        text = rest
    if not text.strip():
        raise ValueError("no rows of numbers")
    return np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2, comments=None)


def _read_hdf5(path: Path, dataset: str | None) -> NDArray[Any]:
    with h5py.File(path, "r") as file:
        found: dict[str, h5py.Dataset] = {}

        def collect(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item

        file.visititems(collect)  # follows no links, so no other file is reached
        if dataset is None and len(found) == 1:
            (dataset,) = found
        name = (dataset or "").strip("/")
        if name not in found:
            known = ", ".join(f"{name!r} {item.shape}" for name, item in found.items()) or "none"
            raise InvalidArgumentError(f"--dataset must name one of those in {str(path)!r}: {known:.400}")
        if found[name].is_virtual or found[name].external:
            raise ValueError(f"the values of {name!r} are kept in other files")
        return np.asarray(found[name][()])


def write_table(path: Path, table: NDArray[Any]) -> None:
    """Write a table, whole or not at all; numbers come back exactly.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_table(Path(folder, "out.csv"), np.array([[0.1, 2.0]]))
    ...     read_table(Path(folder, "out.csv"))
    array([[0.1, 2. ]])
    """
    ending = check_table_name(path)
    buffer = io.BytesIO()
    if ending == ".npy":
        np.save(buffer, table, allow_pickle=False)
    elif ending == ".csv":
        lines = (",".join(map(repr, row)) for row in np.atleast_2d(table.T).T.tolist())
        buffer.write("".join(f"{line}\n" for line in lines).encode())
    else:
        with h5py.File(buffer, "w") as file:
            file["predictions"] = table
    replace_file(str(path), buffer.getbuffer())
