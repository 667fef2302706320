"""Saving: the old file or the new one at any moment, whatever the system answers, and nothing left lying about."""

import builtins
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from faults import ERRORS, Faults

import mlpkit
from mlpkit import MLP, Dense, Input, durable
from mlpkit.durable import replace_file
from mlpkit.errors import InvalidArgumentError

POSIX = pytest.mark.skipif(os.name == "nt", reason="permission bits, owners and locks of POSIX")


def small_net(seed=1):
    return MLP([Input(4), Dense(3, "sigmoid"), Dense(2, "tanh", bias=False)], seed=seed)


def holds(path, seed):
    return mlpkit.load(path).theta.tobytes() == small_net(seed).theta.tobytes()


# ------------------------------------------------------------------- every system call, every answer


def calls_of_a_save(path, monkeypatch):
    with monkeypatch.context() as patch:
        faults = Faults(patch)
        small_net(2).save(path)
    return faults.calls


@POSIX
@pytest.mark.parametrize("error", [*ERRORS, KeyboardInterrupt()], ids=str)
@pytest.mark.parametrize("exists", [True, False])
def test_an_error_at_any_system_call(tmp_path, monkeypatch, error, exists):
    path = tmp_path / "model.h5"
    seen = set()
    for k in range(1000):
        path.unlink(missing_ok=True)
        if exists:
            small_net(1).save(path)
            path.chmod(0o604)  # so that the new file's bits have to be changed
        caught = None
        with monkeypatch.context() as patch:
            faults = Faults(patch, k, error)
            try:
                small_net(2).save(path)
            except (OSError, KeyboardInterrupt) as found:
                caught = found
        if faults.failed is None:
            assert caught is None
            break
        seen.add(faults.failed)
        placed = "os.replace" in faults.calls[:-1] and faults.failed != "os.replace" and path.exists()
        if caught is None or (placed and holds(path, 2)):
            assert holds(path, 2)
        elif exists:
            assert holds(path, 1)
        else:
            assert not path.exists()
        if isinstance(caught, OSError):
            assert caught.errno == error.errno
            # The system's own errors of these name the path.
            assert str(path) in str(caught) or placed or faults.failed in ("os.stat", "os.access")
        assert os.listdir(tmp_path) == (["model.h5"] if path.exists() else [])
    assert seen >= {"open", "write", "read", "os.fsync", "os.replace", "os.open", "os.access" if exists else "os.stat"}


@POSIX
def test_a_full_disk_says_so_and_that_the_old_file_is_there(tmp_path, monkeypatch):
    path = tmp_path / "model.h5"
    small_net(1).save(path)
    with monkeypatch.context() as patch:
        Faults(patch, ("write", 3), OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(
            OSError, match=r"cannot save \(No space left on device\); the file there is as it was: .*l\.h5"
        ):
            small_net(2).save(path)
    assert holds(path, 1)


@POSIX
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EINVAL])
@pytest.mark.parametrize("call", ["os.open", "os.fsync"])
def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch, number, call):
    path = tmp_path / "model.h5"
    last = calls_of_a_save(path, monkeypatch).count(call)
    with monkeypatch.context() as patch:
        faults = Faults(patch, (call, last), OSError(number, os.strerror(number)))
        small_net(3).save(path)
    assert faults.failed == call
    assert holds(path, 3)


@POSIX
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_permission_bits_is_no_failure(tmp_path, monkeypatch, number):
    path = tmp_path / "model.h5"
    small_net(1).save(path)
    path.chmod(0o666)
    with monkeypatch.context() as patch:
        faults = Faults(patch, ("os.fchmod", 1), OSError(number, os.strerror(number)))
        small_net(2).save(path)
    assert faults.failed == "os.fchmod"
    assert holds(path, 2)


@POSIX
def test_the_file_is_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = [name for name in calls_of_a_save(tmp_path / "model.h5", monkeypatch) if name in ("os.fsync", "os.replace")]
    assert calls == ["os.fsync", "os.replace", "os.fsync"]


# ------------------------------------------------------------------------ links, bits, owners, folders


def test_saving_replaces_what_a_symbolic_link_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.h5").symlink_to(Path("real", "model.h5"))
    for seed in (1, 2):  # first through a dangling link, then onto an existing file
        small_net(seed).save(tmp_path / "link.h5")
        assert (tmp_path / "link.h5").is_symlink()
        assert os.listdir(tmp_path / "real") == ["model.h5"]
        assert holds(tmp_path / "link.h5", seed)


def test_other_hard_links_keep_the_old_content(tmp_path):
    small_net(1).save(tmp_path / "model.h5")
    os.link(tmp_path / "model.h5", tmp_path / "other.h5")
    small_net(2).save(tmp_path / "model.h5")
    assert holds(tmp_path / "other.h5", 1)
    assert holds(tmp_path / "model.h5", 2)


@POSIX
def test_permission_bits(tmp_path):
    path = tmp_path / "model.h5"
    old = os.umask(0o027)
    try:
        small_net().save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for bits in (0o664, 0o600, 0o666, 0o640):
            path.chmod(bits)
            small_net().save(path)
            assert stat.S_IMODE(path.stat().st_mode) == bits
    finally:
        os.umask(old)


@POSIX
def test_a_private_file_is_private_while_it_is_written(tmp_path):
    path = tmp_path / "model.h5"
    path.write_bytes(b"")
    path.chmod(0o600)
    with durable.replacing(str(path)) as file:
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        file.write(b"secret")
    assert path.read_bytes() == b"secret"


@POSIX
def test_owner_and_group_stay_as_far_as_the_system_allows(tmp_path, monkeypatch):
    path = tmp_path / "model.h5"
    path.write_bytes(b"")
    found = path.stat()
    given = []

    def fchown(descriptor, user, group):
        given.append((user, group))
        if user != -1:
            raise PermissionError(errno.EPERM, "not yours to give")

    monkeypatch.setattr(os, "fchown", fchown)
    real = os.stat
    there = os.stat_result([*found[:4], found.st_uid + 1, found.st_gid + 1, *found[6:]])
    monkeypatch.setattr(os, "stat", lambda name, **options: there if name == str(path) else real(name, **options))
    replace_file(str(path), b"new")
    assert given == [(found.st_uid + 1, found.st_gid + 1), (-1, found.st_gid + 1)]


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "model.h5"
    small_net(1).save(path)
    path.chmod(0o444)
    # What the system answers to anybody but root, for whom the tests may run.
    monkeypatch.setattr(os, "access", lambda name, mode: not (mode & os.W_OK and Path(name).samefile(path)))
    with pytest.raises(PermissionError, match="write-protected"):
        small_net(2).save(path)
    assert os.listdir(tmp_path) == ["model.h5"]
    assert holds(path, 1)


def test_where_nothing_can_be_saved(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder to save into does not exist"):
        small_net().save(tmp_path / "none" / "model.h5")
    for path in (tmp_path, f"{tmp_path}/model.h5/", f"{tmp_path}/model.h5/.", "", f"{tmp_path}/model.h5/.."):
        with pytest.raises(InvalidArgumentError, match="path: expected the name of a file"):
            small_net().save(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InvalidArgumentError, match="path: expected the name of a file"):
            small_net().save(tmp_path / "pipe")
        (tmp_path / "pipe").unlink()
    assert os.listdir(tmp_path) == []


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_net().save("model.h5")
    assert holds("model.h5", 1)


# -------------------------------------------------------------------------- what killed processes left

KILLED = """
import os, signal
from mlpkit import durable
with durable.replacing({path!r}) as file:
    file.write(b"half")
    print("written", flush=True)
    {then}
"""


def child(path, then):
    command = [sys.executable, "-c", KILLED.format(path=str(path), then=then)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    return process


@POSIX
def test_the_next_save_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "model.h5"
    with child(path, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        process.wait()
    assert len(os.listdir(tmp_path)) == 1
    small_net().save(path)
    assert os.listdir(tmp_path) == ["model.h5"]


@POSIX
def test_a_save_of_another_process_is_left_alone(tmp_path):
    with child(tmp_path / "theirs", "input()") as process:
        small_net().save(tmp_path / "model.h5")
        assert len(os.listdir(tmp_path)) == 2
        process.communicate("go on\n")
    assert process.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["model.h5", "theirs"]
    assert (tmp_path / "theirs").read_bytes() == b"half"


@POSIX
def test_only_our_own_temporary_files_are_removed(tmp_path):
    (tmp_path / ".mlpkit-folder.tmp").mkdir()
    (tmp_path / ".mlpkit-link.tmp").symlink_to(tmp_path / "target")
    (tmp_path / "target").write_bytes(b"kept")
    (tmp_path / "mlpkit-notes.tmp").write_bytes(b"kept")
    os.mkfifo(tmp_path / ".mlpkit-pipe.tmp")
    before = set(os.listdir(tmp_path))
    small_net().save(tmp_path / "model.h5")
    assert set(os.listdir(tmp_path)) == before | {"model.h5"}


@POSIX
def test_a_temporary_file_that_is_cleared_away_at_once_is_made_again(tmp_path, monkeypatch):
    """Another process may find it between its making and its locking."""
    real, lost = builtins.open, []

    def unlucky(path, *arguments, **options):
        file = real(path, *arguments, **options)
        if len(lost) < 3:
            lost.append(path)
            os.unlink(path)
        return file

    monkeypatch.setattr(durable, "open", unlucky, raising=False)
    replace_file(str(tmp_path / "note"), b"whole")
    assert len(lost) == 3
    assert os.listdir(tmp_path) == ["note"]


@POSIX
def test_without_locks_saving_works_and_nothing_is_cleared_away(tmp_path, monkeypatch):
    (tmp_path / ".mlpkit-0000.tmp").write_bytes(b"whose?")

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable.fcntl, "flock", flock)
    replace_file(str(tmp_path / "note"), b"whole")
    assert sorted(os.listdir(tmp_path)) == [".mlpkit-0000.tmp", "note"]


@POSIX
@pytest.mark.parametrize("times", [10, pytest.param(500, marks=pytest.mark.soak)])
def test_killed_at_random_moments(times):
    """Ten times here; five hundred in `make soak`."""
    program = Path(__file__).with_name("saving.py")
    done = subprocess.run([sys.executable, str(program), str(times)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
