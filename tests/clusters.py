"""A cluster of processes to test on: every wait for it has an end, however little of the machine it gets."""

from __future__ import annotations

import os
import signal
import time
import traceback
from contextlib import contextmanager, suppress

import dask
import distributed
import pytest

CONFIG = {
    "distributed.worker.daemon": True,
    "distributed.admin.log-format": "%(message)s",
    # Where other tests keep the cores busy, or all is put to sleep, a process is slow and not lost.
    "distributed.comm.timeouts.connect": "5 minutes",
    "distributed.comm.timeouts.tcp": "5 minutes",
    # LocalCluster gives up a worker that is not back by then, 15 s otherwise, and never starts it again.
    "distributed.deploy.lost-worker-timeout": "1 hour",
}
SECONDS = 180  # for a test; the slowest takes five where nothing else runs


@contextmanager
def time_limit(what, give_up, seconds=SECONDS):
    """Fail, having called `give_up`, where the block takes longer than some seconds."""

    def expire(_, frame):
        give_up()
        where = "".join(traceback.format_stack(frame)[-8:])
        pytest.fail(f"{what} took longer than {seconds} s, and its processes were killed; it was here:\n{where}", False)

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Cluster:
    """A `distributed.LocalCluster` of processes with one thread each, and its client."""

    def __init__(self, n_workers):
        self.broken = False
        self.found = distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        )
        self.client = distributed.Client(self.found)

    def processes(self):
        """Return the workers that are running: address -> process."""
        running = {}
        for nanny in list(self.found.workers.values()):
            pid, address = nanny.pid, nanny.worker_address
            if pid is not None and address is not None:
                running[address] = pid
        return running

    def scale(self, n_workers):
        """Have as many workers, and wait until they and no others are there."""
        self.found.scale(n_workers)
        while not len(self.client.nthreads()) == len(self.processes()) == n_workers:
            time.sleep(0.02)

    def signal(self, which, *addresses):
        """Send a signal to workers; return how many it reached."""
        running, reached = self.processes(), 0
        for address in addresses:
            with suppress(KeyError, ProcessLookupError):  # it may have died just now
                os.kill(running[address], which)
                reached += 1
        return reached

    def kill(self, *addresses):
        """Kill workers as a machine that fails would; they are started anew."""
        return self.signal(signal.SIGKILL, *addresses)

    def give_up(self):
        """Kill all workers, for good."""
        self.broken = True
        self.kill(*self.processes())

    def close(self):
        """End everything; what does not end by itself is killed."""
        with time_limit("closing a cluster", self.give_up):
            self.client.close()
            self.found.close()


@contextmanager
def cluster(n_workers):
    """Run a cluster of processes."""
    with dask.config.set(CONFIG):
        with time_limit("starting a cluster", lambda: None):
            made = Cluster(n_workers)
        try:
            yield made
        finally:
            made.close()
