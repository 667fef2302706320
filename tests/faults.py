"""Every system call that writing a file makes, each answered with any error: what the disk may do, done on purpose."""

import errno
import io
import os
import types

from mlpkit import durable, sealed_file

ERRORS = [OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EIO, errno.EPERM, errno.EROFS)]


class Faults:
    """Counts the system calls that saving makes, and answers one of them with an error.

    That one is told by its number among all, from 0, or by its name and its number among those of the name, from 1.
    """

    def __init__(self, monkeypatch, fail_at=None, error=None):
        self.calls, self.fail_at, self.error, self.failed = [], fail_at, error, None
        for module in (durable, sealed_file):
            monkeypatch.setattr(module, "os", self.proxy(os, "os"))
            monkeypatch.setattr(module, "open", self.open, raising=False)
        monkeypatch.setattr(durable, "fcntl", self.proxy(durable.fcntl, "fcntl"))

    def count(self, name):
        self.calls.append(name)
        if self.fail_at in (len(self.calls) - 1, (name, self.calls.count(name))):
            self.failed = name
            raise self.error

    def proxy(self, module, label):
        """Stand in for a module whose functions are system calls."""
        watched = {"stat", "fstat", "lstat", "access", "open", "close", "fsync", "replace", "unlink", "scandir", "link"}
        watched |= {"fchmod", "fchown", "flock"}
        stand_in = types.ModuleType(label)
        for name, value in vars(module).items():
            setattr(stand_in, name, self.counted(value, f"{label}.{name}") if name in watched else value)
        return stand_in

    def counted(self, function, name):
        def call(*arguments, **keywords):
            self.count(name)
            return function(*arguments, **keywords)

        return call

    def open(self, path, mode, buffering=-1, **options):
        count = self.count
        count("open")

        class Traced(io.FileIO):
            def write(self, data):
                count("write")
                return super().write(data[: max(1, len(data) // 2)])  # the system may always take less

            def readinto(self, buffer):
                count("read")
                return super().readinto(buffer)

        return Traced(path, mode.replace("b", ""), **options)
