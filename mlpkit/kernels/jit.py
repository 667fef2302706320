"""The one home of Numba's options, the disk cache, the number of threads, and the guards around a launch.

Nothing is compiled when mlpkit is imported. A kernel is compiled at its first call for each dtype and kept on disk
under a *fingerprint* of every source file that machine code can contain, because Numba itself looks at one file
only and would serve stale code after an edit to another.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import re
import secrets
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numba
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, _Cache
from numba.core.ccallback import CFunc
from numba.core.serialize import dumps
from threadpoolctl import ThreadpoolController

from mlpkit.checks import check_integer
from mlpkit.errors import MlpkitError

__all__ = [
    "ELEMENTWISE",
    "MOST_THREADS",
    "REDUCTION",
    "Exclusive",
    "blas_limited",
    "cache_folder",
    "get_num_threads",
    "hold_blas_while_alive",
    "inline",
    "kernel",
    "launch",
    "set_num_threads",
    "tile_function",
]

# "contract" lets a*b + c become one fused operation and "nsz" ignores the sign of zero. "reassoc" would cancel the
# rounding tricks in vmath's polynomials, so it is kept to plain sums. Full fast-math, which makes isfinite(x)
# always true, is used nowhere.
ELEMENTWISE = frozenset({"contract", "nsz"})
REDUCTION = frozenset({"contract", "nsz", "reassoc"})

_PACKAGE = Path(__file__).resolve().parent.parent


# Compiling -----------------------------------------------------------------------------------------------------


def inline(function: Callable[..., Any], *, boundscheck: bool | None = None) -> Any:
    """Compile a scalar function that is always inlined at the LLVM level and so keeps its own flags."""
    return numba.njit(error_model="numpy", fastmath=set(ELEMENTWISE), forceinline=True, boundscheck=boundscheck)(
        function
    )


def kernel(
    function: Callable[..., Any] | None = None,
    *,
    parallel: bool = False,
    fastmath: frozenset[str] = frozenset(),
    cached: bool = False,
    inlined: bool = False,
    allocates: bool = False,
) -> Any:
    """Compile a kernel with mlpkit's options; entry points from Python ask for ``cached=True``.

    Tuples of arrays travel as some hundred words on the stack. Where work is done in microseconds, that takes a good
    part of it, and functions with one or two callers are `inlined`. Counting references to arrays takes as much: that
    do only entry points, which hold all arrays meanwhile, and what `allocates` some.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if cached:  # one function is compiled with and without threads: each needs symbols of its own
            name = f"{function.__qualname__}_{'parallel' if parallel else 'serial'}"
            function = FunctionType(function.__code__, function.__globals__, name)
            function.__qualname__ = name
        options: dict[str, Any] = {"parallel": parallel, "fastmath": set(fastmath) or False, "forceinline": inlined}
        options["_nrt"] = cached or allocates
        dispatcher: Any = numba.njit(error_model="numpy", nogil=True, **options)(function)
        if cached:
            dispatcher._cache = _FingerprintedCache(function, function.__qualname__, notice=True)
        return dispatcher

    return decorate if function is None else decorate(function)


def tile_function(
    function: Callable[..., Any], signature: Any, name: str, *, fastmath: frozenset[str], cached: bool
) -> CFunc:
    """Compile `function` to a C function with an address that the engine can call.

    `name` must be unique: it becomes the symbol, and two libraries of one process that define the same symbol,
    one compiled now and one loaded from disk, would be confused silently.
    """
    function.__name__ = function.__qualname__ = name
    options = {"error_model": "numpy", "fastmath": set(fastmath)}
    compiled: Any = CFunc(function, (signature.args, signature.return_type), locals={}, options=options)
    if cached:
        compiled._cache = _FingerprintedCache(function, name)
    compiled.compile()
    return compiled


def _digest_of_sources() -> str | None:
    """Return a digest of every source file whose code can end up in a kernel; None where there are no sources."""
    digest = hashlib.sha256()
    try:
        folders = ("kernels", "activations", "losses")
        for source in sorted(source for folder in folders for source in (_PACKAGE / folder).glob("*.py")):
            digest.update(f"{source.parent.name}/{source.name}".encode())
            digest.update(source.read_bytes())
    except OSError:
        return None
    return digest.hexdigest()


# Taken as this module is imported, which `mlpkit` does before it imports anything that compiles: a source that is
# edited later in the life of this process must not lend its digest to the code that is running.
_FINGERPRINT = _digest_of_sources()


def fingerprint() -> str | None:
    """Return the digest of mlpkit's sources as they were when it was imported."""
    return _FINGERPRINT


class _FingerprintedCacheImpl(CompileResultCacheImpl):
    """Numba's cache on disk, stamped with our fingerprint in place of one file's date and size."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self._locator.get_source_stamp = fingerprint


class _DataFiles:
    """A kernel's compiled code on disk, each in a file named after what it was compiled from and for.

    Numba numbers the files and lists them in an index, so two processes that compile at once can take one number, and
    each later runs the other's code. Here they can only write the same file twice.
    """

    def __init__(self, folder: str, base: str) -> None:
        self._folder = Path(folder)
        self._base = f"{base}-{(_FINGERPRINT or '')[:12]}"
        self._all = re.sub(r"-\d+(\.py\d+)", r"-*\1", base) + "-*.nbc"  # wherever in its file the kernel stands

    def _path(self, key: Any) -> Path:
        digest = hashlib.sha256(repr((key, numba.__version__, llvmlite.__version__)).encode()).hexdigest()
        return self._folder / f"{self._base}-{digest[:24]}.nbc"

    def load(self, key: Any) -> Any:
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        return pickle.loads(content)

    def save(self, key: Any, data: Any) -> None:
        path = self._path(key)
        temporary = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_bytes(dumps(data))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        for other in self._folder.glob(self._all):
            if not other.name.startswith(self._base):  # of other sources: an earlier release, or before an edit
                other.unlink(missing_ok=True)

    def flush(self) -> None:
        for path in self._folder.glob(f"{self._base}-*.nbc"):
            path.unlink(missing_ok=True)


class _FunctionCache(FunctionCache):
    _impl_class = _FingerprintedCacheImpl

    def __init__(self, py_func: Callable[..., Any], key: str) -> None:
        super().__init__(py_func)
        self._key = key
        self._cache_file: Any = _DataFiles(self._cache_path, self._impl.filename_base)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        # The default key hashes a closure's cells, which for compiled functions differ in each process.
        return (sig, codegen.magic_tuple(), self._key, fingerprint())


class _FingerprintedCache(_Cache):
    """A kernel's disk cache, looked for at the first compile; where no folder is writable, no cache."""

    def __init__(self, py_func: Callable[..., Any], key: str, *, notice: bool = False) -> None:
        self._py_func = py_func
        self._key = key
        self._notice = notice
        self._opened: _Cache | None = None

    def _open(self) -> _Cache:
        if self._opened is None:
            try:
                self._opened = NullCache() if _FINGERPRINT is None else _FunctionCache(self._py_func, self._key)
            except (RuntimeError, OSError):  # Numba: "no locator available"
                self._opened = NullCache()
        return self._opened

    def _discard(self) -> None:
        """Start over with an empty cache, so that the next run finds one in order; or with none."""
        try:
            self._open().flush()
        except Exception:
            self._opened = NullCache()

    @property
    def cache_path(self) -> str | None:
        return self._open().cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = self._open().load_overload(sig, target_context)
        except Exception as error:  # a damaged cache costs a compile, never the run
            warnings.warn(f"mlpkit: the kernel cache is unreadable ({error!r}); compiling anew", stacklevel=2)
            self._discard()
            found = None
        if found is None and self._notice:
            _say_that_kernels_are_compiled(self._open().cache_path)
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            self._open().save_overload(sig, data)
        except Exception:  # folder read-only or full, index damaged: the kernel is compiled and usable all the same
            self._discard()

    def enable(self) -> None:
        self._open().enable()

    def disable(self) -> None:
        self._open().disable()

    def flush(self) -> None:
        self._open().flush()


@cache
def _say_that_kernels_are_compiled(folder: str | None) -> None:
    """Say once why nothing happens for some seconds; `logging` prints it where nobody has set it up otherwise."""
    kept = f"once: they are kept in {folder}" if folder else "again in each process: no cache folder can be written"
    logging.getLogger("mlpkit").warning("mlpkit: compiling kernels, which takes up to half a minute, %s", kept)


def cache_folder() -> str | None:
    """Return the folder that holds compiled kernels, or None where none can be written."""
    return _FingerprintedCache(cache_folder, "cache_folder").cache_path


# Threads -------------------------------------------------------------------------------------------------------

MOST_THREADS: int = config.NUMBA_NUM_THREADS
_num_threads: int = MOST_THREADS
_lock = threading.RLock()  # a signal handler or finalizer may launch between two steps of a launch, on its thread
_forked = False


def set_num_threads(n: int) -> None:
    """Set how many threads mlpkit computes with; results are the same to the bit for every number.

    Parameters
    ----------
    n : int
        From 1 to the number of threads that Numba started with: the number of cores, or the environment variable
        ``NUMBA_NUM_THREADS`` as it was when Numba was imported.

    Examples
    --------
    >>> import mlpkit
    >>> before = mlpkit.get_num_threads()
    >>> mlpkit.set_num_threads(1)
    >>> mlpkit.get_num_threads()
    1
    >>> mlpkit.set_num_threads(before)
    """
    global _num_threads
    _num_threads = check_integer(n, "n", low=1, high=MOST_THREADS)


def get_num_threads() -> int:
    """Return how many threads mlpkit computes with.

    Examples
    --------
    >>> import mlpkit
    >>> mlpkit.get_num_threads() >= 1
    True
    """
    return _num_threads


def launch(sweep: tuple[Any, Any], *arguments: Any, workers: int, serial: bool = False) -> Any:
    """Run a sweep, given as (compiled with threads, compiled without); its last argument is the number of workers.

    One launch on threads runs at a time, since Numba's work-queue layer aborts on a second. In a forked child the
    parent's threads do not exist and GNU OpenMP would end the process, so there, and where the caller asks for it,
    the same function compiled without threads runs instead: slower, and equal to the bit.
    """
    parallel, alone = sweep
    if serial or _forked:
        return alone(*arguments, 1)
    with _lock:
        mask = numba.get_num_threads()
        numba.set_num_threads(workers)
        try:
            return parallel(*arguments, workers)
        finally:
            numba.set_num_threads(mask)


class Exclusive:
    """A lock for one object: other threads wait, the thread that holds it gets an error, a forked child a new one.

    Parameters
    ----------
    message : str
        What the error says.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._renew()

    def _renew(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __enter__(self) -> None:
        if self._process != os.getpid():  # whoever held it at the fork does not exist here
            self._renew()
        if self._owner == threading.get_ident():
            raise MlpkitError(self._message)
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *error: object) -> None:
        self._owner = None
        self._lock.release()


def _after_fork_in_child() -> None:
    global _forked, _lock, _blas
    _forked = True
    _lock = threading.RLock()
    _blas = _BlasHold()


# BLAS ----------------------------------------------------------------------------------------------------------


class _BlasHold:
    """A counted hold of BLAS at one thread: the first to enter sets it, the last to leave restores it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may run inside enter or leave, on the same thread
        self._holders = 0
        self._limiter: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._holders == 0:
                # SciPy brings a BLAS of its own, and a limit reaches only libraries that are loaded.
                import scipy.linalg  # noqa: F401

                self._limiter = ThreadpoolController().limit(limits=1, user_api="blas")
            self._holders += 1

    def leave(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._limiter.restore_original_limits()
                self._limiter = None


_blas = _BlasHold()


def hold_blas_while_alive(owner: object) -> None:
    """Hold BLAS to one thread until `owner` is garbage collected."""
    _blas.enter()
    weakref.finalize(owner, _blas.leave)


@contextlib.contextmanager
def blas_limited() -> Iterator[None]:
    """Hold BLAS to one thread inside the ``with`` block, and restore it afterwards.

    Between two evaluations SciPy's optimisers call BLAS, whose idle threads then spin on the cores that the next
    evaluation needs.

    Examples
    --------
    >>> with blas_limited():
    ...     pass
    """
    hold = _blas
    hold.enter()
    try:
        yield
    finally:
        hold.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
