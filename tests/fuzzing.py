"""Model and checkpoint files changed at random, and read in processes that may crash, hang or eat memory without harm.

A mutation is told by its kind of file and its seed alone: `mutated(seed)` gives its bytes again, in any process. Most
are sealed with a right digest, and many have the checksums of HDF5's metadata made right too, so that they get deep
into the library.

As a program, ``python tests/fuzzing.py FIRST COUNT [checkpoint]`` tries so many and prints what was wrong.
"""

import contextlib
import io
import json
import mmap
import os
import queue
import random
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

import forging
import h5py
import hdf5_bytes
import numpy as np

DATA = Path(__file__).parent / "data"
FOLDERS = {"model": DATA / "format_v1", "checkpoint": DATA / "checkpoint_v1"}
NUMBERS = [0, 1, 2, 7, 8, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
SECONDS_FOR_ONE = 20
SPARE_BYTES = 2**29
BATCH = 250


@cache
def bases(kind="model"):
    """Right files, as mlpkit writes them and in HDF5's oldest format, whose metadata have no checksums."""
    found = []
    for path in sorted(FOLDERS[kind].glob("*.h5")):
        buffer = io.BytesIO()
        with h5py.File(path) as ours, h5py.File(buffer, "w", userblock_size=512, libver="earliest") as old:
            for name in ours:
                ours.copy(name, old)
            for name, value in ours.attrs.items():
                old.attrs[name] = value
        magic = forging.CHECKPOINT_MAGIC if kind == "checkpoint" else forging.MAGIC
        found += [path.read_bytes(), forging.seal(buffer.getvalue(), magic=magic)]
    return found


def mutated(seed, kind="model"):
    """The bytes of one mutation."""
    rng = random.Random(seed)
    image = rng.choice(bases(kind))
    way = rng.random()
    if way < 0.1:
        return scrambled(rng, image, 0)
    if way < 0.35:
        image = scrambled(rng, image, 512)
    elif way < 0.7:
        image = with_strange_messages(rng, image)
    else:
        image = restructured(rng, image)
    if rng.random() < 0.8:
        with contextlib.suppress(IndexError, struct.error):  # where nothing is left of a header
            image = hdf5_bytes.with_checksums(image)
    version = rng.choices(["1.0", "1.1", "2.0"], [90, 9, 1])[0]
    return forging.seal(image, version) if len(image) >= 512 else image


def scrambled(rng, image, start):
    """Change, insert, remove or repeat a few bytes from `start` on."""
    image = bytearray(image)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if len(image) <= start:
            break
        position = rng.randrange(start, len(image))
        length = rng.choice([1, 1, 2, 4, 8, 64, 1000])
        action = rng.randrange(7)
        if action == 0:
            image[position] ^= 1 << rng.randrange(8)
        elif action == 1:
            image[position] = rng.choice([0, 1, 127, 128, 255])
        elif action == 2:
            number = rng.choice([*NUMBERS, len(image)]) % 2**64
            image[position : position + 8] = struct.pack("<Q", number)
        elif action == 3:
            del image[position : position + length]
        elif action == 4:
            image[position:position] = rng.randbytes(length)
        elif action == 5:
            other = rng.randrange(start, len(image))
            image[position : position + length] = image[other : other + length]
        else:
            del image[position:]
    return bytes(image)


def with_strange_messages(rng, image):
    """Change messages of HDF5's object headers: types, sizes, addresses, names, shapes."""
    found = [(block, *message) for block in hdf5_bytes.blocks(image) for message in hdf5_bytes.messages(image, block)]
    if not found:  # the oldest format has no such headers
        return scrambled(rng, image, 512)
    image = bytearray(image)
    for _ in range(rng.choice([1, 1, 2, 3])):
        block, _, start, stop = rng.choice(found)
        head = start - 4 - 2 * bool(block.flags & 4)
        action = rng.randrange(5)
        if action == 0:
            image[head] = rng.choice([*range(24), 255])  # its type
        elif action == 1:
            struct.pack_into("<H", image, head + 1, rng.choice([0, 1, 8, 16, 1000, 65535]))
        elif action == 2:
            image[head + 3] = rng.randrange(256)  # its flags
        elif stop - start >= 8 and action == 3:
            others = [other.start - 512 for other, *_ in found]
            number = rng.choice([*NUMBERS, len(image), rng.choice(others), rng.choice(others)])
            struct.pack_into("<Q", image, rng.randrange(start, stop - 7), number % 2**64)
        elif stop > start:
            image[rng.randrange(start, stop)] = rng.choice([0, 1, 2, 3, 4, 8, 127, 128, 255, rng.randrange(256)])
    return bytes(image)


def restructured(rng, image):
    """Change elements through HDF5: other shapes, types, storage, links, attributes, documents."""
    buffer = io.BytesIO(image)
    try:
        with h5py.File(buffer, "r+") as file:
            for _ in range(rng.choice([1, 1, 2, 3])):
                paths = []
                file.visit(paths.append)
                if not paths:
                    break
                with contextlib.suppress(Exception):  # some of it HDF5 refuses to write
                    rng.choice(EDITS)(rng, file, rng.choice(paths))
    except Exception:
        return scrambled(rng, image, 512)
    return buffer.getvalue()


def _other_dataset(rng, file, path):
    kind = rng.choice(["<f8", "<f4", ">f8", "<i8", "u1", "c16", "S3", h5py.string_dtype(), h5py.ref_dtype, "f8,i4"])
    shape = rng.choice([(), (0,), (1,), (3,), (2, 3), (5, 5, 5), (2**20, 2**20), tuple([1] * 32)])
    options = rng.choice([{}, {}, {"chunks": True}, {"compression": "gzip"}, {"maxshape": (None,) * len(shape)}])
    attributes = dict(file[path].attrs)
    del file[path]
    if rng.random() < 0.2:
        options = {"external": [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]}
    file.create_dataset(path, shape, kind, **options).attrs.update(attributes)


def _is_plain(dataset):
    """Whether it can be read: HDF5 crashes on a virtual dataset of a file in memory, an earlier edit's work."""
    return not (dataset.is_virtual or dataset.external)


def _same_dataset(rng, file, path):
    assert _is_plain(file[path])
    data, attributes = file[path][()], dict(file[path].attrs)
    if data.dtype == np.uint8:
        text = bytearray(data.tobytes())
        text[rng.randrange(len(text))] = rng.choice(b'{}[]",:0123456789.eE-+ntf\\u\xff\0')
        data = np.frombuffer(bytes(text), np.uint8)
    elif rng.random() < 0.5:
        data.reshape(-1)[rng.randrange(data.size)] = rng.choice([np.nan, np.inf, -0.0, 1e300, 5e-324])
    del file[path]
    file.create_dataset(path, data=data, **rng.choice([{}, {}, {"chunks": data.shape}])).attrs.update(attributes)


def _virtual(rng, file, path):
    layout = h5py.VirtualLayout(file[path].shape, file[path].dtype)
    layout[:] = h5py.VirtualSource(rng.choice([".", "other.h5"]), path, file[path].shape)
    attributes = dict(file[path].attrs)
    del file[path]
    file.create_virtual_dataset(path, layout).attrs.update(attributes)


def _link(rng, file, path):
    others = []
    file.visit(others.append)
    other = rng.choice(others)
    target = rng.choice(
        [file[other], file["/"], h5py.SoftLink(other), h5py.SoftLink(path), h5py.ExternalLink("x", "/")]
    )
    del file[path]
    file[path] = target


def _configuration(rng, file, path):
    assert _is_plain(file["config"])
    text = json.dumps(forging.config_of(file))
    old, new = rng.choice(
        [
            *[("3", "4"), ("1", "1099511627776"), ("null", "[]"), ("true", "1"), ("Dense", "Input"), ('"', "")],
            *[("sigmoid", "relu"), ("float64", "float32"), ("0.", "-0."), ("units", "tied_to"), ("{", "{" * 900)],
        ]
    )
    forging.put_json(file, "config", text.replace(old, new, rng.choice([1, -1])).encode())


EDITS = [
    _other_dataset,
    _other_dataset,
    _same_dataset,
    _same_dataset,
    _virtual,
    _link,
    _link,
    _configuration,
    _configuration,
    lambda rng, file, path: file.__delitem__(path),
    lambda rng, file, path: file.move(path, path + rng.choice(["x", "/y", "1"])),
    lambda rng, file, path: file.create_group(path + rng.choice(["x", "1", "\xff"])),
    lambda rng, file, path: file[path].attrs.create(rng.choice(["a", "encoding-type"]), rng.choice([1, "x", [b"a"]])),
    lambda rng, file, path: file[path].attrs.__delitem__(rng.choice(list(file[path].attrs))),
    lambda rng, file, path: file.attrs.__setitem__(
        rng.choice(list(file.attrs)), np.bytes_("a" * rng.choice([1, 2000]))
    ),
]


# ----------------------------------------------------------------------------------------- one attempt


def attempt(path, kind="model"):
    """Read a file; return what is wrong with the outcome, which is what is in it or a `ModelFormatError`."""
    import mlpkit
    from mlpkit.checkpoint import read_checkpoint

    try:
        with warnings.catch_warnings(action="ignore"):
            found = read_checkpoint(path) if kind == "checkpoint" else mlpkit.load(path)
    except mlpkit.ModelFormatError as error:
        str(error).encode()
        return None if len(str(error)) < 2000 else f"a message of {len(str(error))} characters"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    with h5py.File(path) as file:
        return unlike_checkpoint(file, found) if kind == "checkpoint" else unlike_model(file, found)


def unlike_checkpoint(file, found):
    """Say what is not as it is in the file, if anything."""
    if json.loads(file["config"][()].tobytes()) != found.config:
        return "another configuration than that in the file"
    pairs = [(file["theta"], found.theta)]
    for state in ("optimizer", "loop"):
        values, there = json.loads(file[f"{state}/values"][()].tobytes()), getattr(found, state)
        if list(values) != list(there):
            return "other names than those in the file"
        for name, value in there.items():
            if not isinstance(value, np.ndarray):
                if value != values[name] or type(value) not in (int, str):
                    return f"another {name} than that in the file"
            else:
                pairs.append((file[f"{state}/arrays/{name}"], value))
    for dataset, array in pairs:
        if (dataset.shape, dataset.dtype) != (array.shape, array.dtype) or dataset[()].tobytes() != array.tobytes():
            return f"other numbers than those of {dataset.name}"
    return None if np.isfinite(found.theta).all() else "a theta that is not finite"


def unlike_model(file, net):
    """Say what is not as it is in the file, if anything."""
    numbers = [
        file[f"parameters/{number}/{name}"][()].reshape(-1)
        for number in range(1, len(net.layers))
        for name in "Wb"
        if f"parameters/{number}/{name}" in file
    ]
    theta = np.concatenate(numbers)
    if theta.dtype != net.dtype or theta.tobytes() != net.theta.tobytes():
        return "other numbers than those in the file"
    config = json.loads(file["config"][()].tobytes())
    if any(config[key] != value for key, value in net.config().items() if key != "layers"):
        return "another configuration than that in the file"
    return None


def work():
    """Try the seeds that come in, a first and a last a line; say after each line what was wrong."""
    import mlpkit  # noqa: F401 - before memory is limited

    with (
        mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 8) as progress,
        tempfile.TemporaryDirectory(dir=_memory()) as folder,
    ):
        kind = sys.argv[3]
        bases(kind)
        limit_memory()
        path = os.path.join(folder, f"{kind}.h5")
        for line in sys.stdin:
            wrong = []
            for seed in range(*map(int, line.split())):
                progress[:] = struct.pack("<Q", seed)
                Path(path).write_bytes(mutated(seed, kind))
                if (problem := attempt(path, kind)) is not None:
                    wrong.append((seed, problem))
            print(json.dumps(wrong), flush=True)


def _memory():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def limit_memory():
    """Leave the process a little more than it has."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# ------------------------------------------------------------------------------------------- processes


class Worker:
    """A process that tries mutations, replaced when it dies or hangs."""

    def __init__(self, folder, kind):
        self.kind = kind
        self.progress = Path(folder) / f"progress{id(self)}"
        self.progress.write_bytes(bytes(8))
        self.waiting = threading.Thread()
        self.waiting.start()
        self.start()

    def start(self):
        command = [sys.executable, __file__, "--work", str(self.progress), self.kind]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def at(self):
        return struct.unpack("<Q", self.progress.read_bytes())[0]

    def try_all(self, first, last):
        """Try the seeds from `first` up to `last`; yield those that end otherwise than they should, and how."""
        while first < last:
            self.process.stdin.write(f"{first} {last}\n")
            self.process.stdin.flush()
            answer = self.wait()
            if answer:
                yield from map(tuple, json.loads(answer))
                return
            code = self.stop()
            yield self.at(), "hangs" if answer is None else f"kills the process ({code})"
            first = self.at() + 1
            self.start()

    def wait(self):
        """Return the answer, an empty one if the process has died, or None if one attempt takes too long."""
        answers = queue.Queue()
        self.waiting = threading.Thread(target=lambda: answers.put(self.process.stdout.readline()), daemon=True)
        self.waiting.start()
        while True:
            before = self.at()
            try:
                return answers.get(timeout=SECONDS_FOR_ONE)
            except queue.Empty:
                if self.at() == before:
                    return None

    def stop(self):
        self.process.kill()
        code = self.process.wait()
        self.waiting.join()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        return code


def fuzz(first, count, n_workers=2, kind="model"):
    """Try `count` mutations from the seed `first` on; return those that end otherwise than they should, and how."""
    batches = queue.Queue()
    for start in range(first, first + count, BATCH):
        batches.put((start, min(start + BATCH, first + count)))
    wrong = []

    def run(worker):
        with contextlib.suppress(queue.Empty):
            while True:
                wrong.extend(worker.try_all(*batches.get_nowait()))

    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(folder, kind) for _ in range(n_workers)]
        threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.stop()
    assert batches.empty(), "a thread died"
    return sorted(wrong)


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work()
    else:
        for seed, problem in fuzz(int(sys.argv[1]), int(sys.argv[2]), kind=(*sys.argv[3:], "model")[0]):
            print(seed, problem)
