"""Training by Adam: mlpkit beside scikit-learn, PyTorch and JAX.

    python benchmarks/training.py [--data FOLDER] [--rounds 15] [--seeds 5] [--epochs 10] [--peers NAME ...]

Three courses in float32: a classifier of 784-100-10 units, ReLU and softmax, batch 200, on MNIST's 60 000 images (its
IDX files in FOLDER, gzipped or not; without, on random numbers of the same shape, of which as many are 0); the same on
pixels less their means over their standard deviations, so that next to none is 0, for mlpkit skips those; and an
autoencoder of 64-25-64 sigmoid units, batch 32, on 16 000 whitened 8x8 patches. All draw initial parameters from the
same distribution, shuffle for each epoch, and report each epoch's mean loss. Learning rate 1e-3, no weight decay.

Every contender trains in a process of its own, at default environment variables and at what `training_peers.VARIANTS`
lists. The first epoch, in which libraries are imported and code is compiled, is reported apart; its losses must agree.
Then contenders take turns, about 0.2 s of whole epochs each a round: a few rounds for all variants, the rest for the
best of each contender. The table shows medians over the rounds, and in brackets how many times mlpkit's that is.

With MNIST, each contender's best is trained anew from several seeds, for the accuracy on the 10 000 test images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import default_environment, describe
from training_peers import CONTENDERS, COURSES, VARIANTS

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "training.json"
N_PATCHES = 16_000
SHARE_OF_ZEROS = 0.81  # among MNIST's pixels
SAMPLE_SECONDS = 0.2
SCREENING = 3  # rounds in which all variants take part
TOLERANCE = 0.05  # of the first epoch's loss; shuffles and initial parameters move it by 1 or 2 %


class Trainer:
    """A contender's process."""

    def __init__(
        self, contender: str, variant: str, setting: dict[str, str], course: str, data: Path, seed: int, epochs: int = 0
    ) -> None:
        self.contender, self.variant, self.setting = contender, variant, setting
        self.samples: list[float] = []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        arguments = [contender, variant, course, str(data), str(seed), str(epochs), str(SAMPLE_SECONDS)]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "training_peers.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=default_environment() | setting,
        )
        self.answer = self._read()
        self.absent: str | None = self.answer.get("absent")
        self.first_loss = self.loss = self.answer.get("loss", np.nan)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            return {"absent": f"failed: {''.join(self.errors.read().strip().splitlines()[-1:])}"}
        return json.loads(line)

    def sample(self) -> float:
        """Train for a while, after a pause in which the last contender's threads go to sleep; return s an epoch."""
        assert self.process.stdin is not None
        time.sleep(0.05)
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self._read()
        if "absent" in answer:
            raise SystemExit(f"{self.label} {answer['absent']}")
        self.loss = answer["loss"]
        return answer["seconds"]

    @property
    def label(self) -> str:
        """Who, and how."""
        settings = " ".join(f"{name}={value}" for name, value in self.setting.items())
        return ", ".join(part for part in (self.contender, self.variant, settings) if part)

    @property
    def median(self) -> float:
        """Seconds an epoch."""
        return statistics.median(self.samples)

    def row(self) -> dict[str, Any]:
        """Return what there is to tell."""
        return {
            "contender": self.contender,
            "variant": self.variant,
            "setting": self.setting,
            "first_epoch_seconds": self.answer["first"],
            "seconds": self.median,
            "samples": self.samples,
            "first_loss": self.first_loss,
            "loss": self.loss,
        }

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.errors.close()


def check_losses(course: str, trainers: list[Trainer]) -> None:
    """Refuse trainers whose first epoch differs from ours, or that learn nothing."""
    ours = trainers[0].first_loss
    for trainer in trainers:
        other_job = trainer.contender == "scikit-learn" and not COURSES[course].classifies  # its outputs are linear
        if not (other_job or abs(trainer.first_loss / ours - 1) < TOLERANCE):
            raise SystemExit(
                f"{trainer.label}: the first epoch's loss is {trainer.first_loss:.4g}, mlpkit's {ours:.4g}"
            )
        if not trainer.loss < trainer.first_loss:
            raise SystemExit(f"{trainer.label}: the loss went from {trainer.first_loss:.4g} to {trainer.loss:.4g}")


def measure(course: str, data: Path, contenders: list[str], rounds: int) -> dict[str, Any]:
    """Let contenders train in turns; return a row for each variant, the best of each contender, and who is absent."""
    trainers: list[Trainer] = []
    absent: dict[str, str] = {}
    for contender in contenders:
        for variant, setting in VARIANTS[contender]:
            trainer = Trainer(contender, variant, setting, course, data, seed=0)
            if trainer.absent is not None:
                absent[contender] = trainer.absent
                trainer.close()
                break
            trainers.append(trainer)
            trainer.sample()  # finds how many epochs a sample takes
    rows, best = [], trainers
    for number in range(rounds):
        for trainer in best:
            trainer.samples.append(trainer.sample())
        if number + 1 == min(SCREENING, rounds):
            chosen = {contender: [t for t in trainers if t.contender == contender] for contender in contenders}
            best = [min(some, key=lambda trainer: trainer.median) for some in chosen.values() if some]
    check_losses(course, trainers)
    for trainer in trainers:
        rows.append(trainer.row())
        trainer.close()
    chosen_rows = {t.contender: t.row() for t in best}
    ours = chosen_rows["mlpkit"]["seconds"]
    peers = {name: row["seconds"] for name, row in chosen_rows.items() if name != "mlpkit"}
    fastest = min(peers, key=peers.__getitem__, default=None)
    return {
        "course": course,
        "rows": rows,
        "best": chosen_rows,
        "absent": absent,
        "fastest_peer": fastest,
        "ratio": fastest and peers[fastest] / ours,
    }


def accuracies(course: str, data: Path, best: dict[str, tuple[str, dict[str, str]]], seeds: int, epochs: int) -> Any:
    """Train each contender anew from several seeds; return accuracies on the test data."""
    found: dict[str, list[float]] = {}
    for contender, (variant, setting) in best.items():
        for seed in range(seeds):
            trainer = Trainer(contender, variant, setting, course, data, seed, epochs)
            if trainer.absent is not None:
                trainer.close()
                break
            found.setdefault(contender, []).append(trainer.answer["accuracy"])
            trainer.close()
    return found


def make_data(course: str, folder: Path, mnist: Path | None) -> tuple[Path, int]:
    """Write the data of a course to a file; return it and the number of steps an epoch."""
    rng = np.random.default_rng(0)
    X_test, Y_test = np.empty((0, COURSES[course].sizes[0]), np.float32), np.empty(0, np.int64)
    if not COURSES[course].classifies:
        from mlpkit import datasets, preprocessing

        images = preprocessing.whiten_images(datasets.natural_images())
        patches = preprocessing.sample_patches(images, N_PATCHES, size=8, seed=0)
        X = preprocessing.squash(preprocessing.remove_dc(patches)).astype(np.float32)
        Y = np.empty(0, np.int64)
    elif mnist is not None:
        from mlpkit import datasets

        X, Y, X_test, Y_test = datasets.load_mnist(mnist, dtype="float32")
    else:
        X = rng.random((60_000, 784), np.float32)
        Y = ((X - 0.5) @ rng.standard_normal((784, 10), np.float32)).argmax(1)  # centred, for classes of like size
        X[rng.random(X.shape, np.float32) < SHARE_OF_ZEROS] = 0
    if course.startswith("standardized"):
        mean, deviation = X.mean(0), X.std(0) + np.float32(1e-3)
        X, X_test = (X - mean) / deviation, (X_test - mean) / deviation
    path = folder / f"{course.split()[0]}.npz"
    np.savez(path, X=X, Y=Y, X_test=X_test, Y_test=Y_test)
    return path, len(X) // COURSES[course].batch


def times_table(results: list[dict[str, Any]], contenders: list[str]) -> str:
    """Lay medians out as Markdown, in microseconds a step, beside how many times mlpkit's that is."""
    lines = [
        f"| course | {' | '.join(contenders)} | fastest peer / mlpkit |",
        "|---|" + "---:|" * (len(contenders) + 1),
    ]
    for r in results:
        best, cells = r["best"], []
        for name in contenders:
            if name not in best:
                cells.append("")
                continue
            ratio = best[name]["seconds"] / best["mlpkit"]["seconds"]
            cells.append(f"{best[name]['seconds']:.3g} s, {1e6 * best[name]['seconds'] / r['steps']:.3g} µs")
            cells[-1] += "" if name == "mlpkit" else f" ({ratio:.2f})"
        ratio_cell = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(f"| {r['course']} | {' | '.join(cells)} | {ratio_cell} |")
    return "\n".join(lines)


def variants_table(result: dict[str, Any]) -> str:
    """Lay out what each variant took, the first epoch apart."""
    lines = ["| how | first epoch, s | epoch, s | µs a step | first loss |", "|---|---:|---:|---:|---:|"]
    for row in result["rows"]:
        settings = " ".join(f"{name}={value}" for name, value in row["setting"].items())
        how = ", ".join(part for part in (row["contender"], row["variant"], settings) if part)
        step = 1e6 * row["seconds"] / result["steps"]
        times = f"{row['first_epoch_seconds']:.2f} | {row['seconds']:.4g} | {step:.4g} | {row['first_loss']:.4f}"
        lines.append(f"| {how} | {times} |")
    lines += [f"| {name} | {reason} | | | |" for name, reason in result["absent"].items()]
    return "\n".join(lines)


def accuracy_table(result: dict[str, Any]) -> str:
    """Lay out means and standard deviations over seeds."""
    lines = ["| | mean | standard deviation | of each seed |", "|---|---:|---:|---|"]
    for name, values in result["accuracies"].items():
        deviation = statistics.stdev(values) if len(values) > 1 else np.nan
        each = " ".join(f"{100 * value:.2f}" for value in values)
        lines.append(f"| {name} | {100 * statistics.mean(values):.2f} % | {100 * deviation:.2f} % | {each} |")
    return "\n".join(lines)


def main() -> None:
    """Run the comparison, print it and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where MNIST's IDX files are")
    parser.add_argument("--rounds", type=int, default=15, help="default 15; 0 leaves timings out")
    parser.add_argument("--seeds", type=int, default=5, help="for accuracies, default 5; 0 leaves them out")
    parser.add_argument("--epochs", type=int, default=10, help="for accuracies, default 10")
    parser.add_argument("--courses", nargs="*", default=[""], metavar="WORD", help="only those with such a word")
    parser.add_argument("--peers", nargs="*", default=[name for name in CONTENDERS if name != "mlpkit"])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    machine = describe()
    print(f"{machine['cpu']}, {machine['cores']} cores", flush=True)
    contenders = ["mlpkit", *options.peers]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for course in COURSES:
            if not any(word in course for word in options.courses):
                continue
            data, steps = make_data(course, Path(folder), options.data)
            result: dict[str, Any] = {"course": course, "steps": steps, "mnist": options.data is not None}
            best = {name: VARIANTS[name][0] for name in contenders}
            if options.rounds:
                result |= measure(course, data, contenders, options.rounds)
                best = {name: (row["variant"], row["setting"]) for name, row in result["best"].items()}
                print(f"\n{course}\n\n{variants_table(result)}", flush=True)
            if options.data is not None and options.seeds and COURSES[course].classifies:
                result["accuracies"] = accuracies(course, data, best, options.seeds, options.epochs)
                print(f"\naccuracy after {options.epochs} epochs\n\n{accuracy_table(result)}", flush=True)
            results.append(result)
    timed = [result for result in results if "best" in result]
    if timed:
        print(f"\nan epoch, a step (times mlpkit's)\n\n{times_table(timed, contenders)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": machine, "epochs": options.epochs, "results": results}, indent=1))


if __name__ == "__main__":
    main()
