"""The outcome of a gradient check, block by block; see `mlpkit.gradient_check`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BlockCheck", "GradientReport"]


@dataclass(frozen=True)
class BlockCheck:
    """How well the gradient of one block of parameters, such as W^(1), agrees.

    Attributes
    ----------
    name : str
        For a network ``"W^(1)"``, ``"b^(1)"``, ``"W^(2)"``, ...
    n_parameters : int
        The size of the block.
    n_checked : int
        Parameters differentiated one by one: all of them, or a sample beside random directions.
    relative_error : float
        The largest of: ||g - n|| / (||g|| + ||n||) over those parameters, g analytic and n
        numerical; the same over the slopes along random directions; the same between float32 and
        float64 for a float32 network.
    ok : bool
        Whether that is below the tolerance.
    """

    name: str
    n_parameters: int
    n_checked: int
    relative_error: float
    ok: bool


@dataclass(frozen=True)
class GradientReport:
    """The outcome of a gradient check; true in a boolean context if every block is right.

    Attributes
    ----------
    layers : tuple of BlockCheck
        One for each W and each b, from the input upwards.
    epsilon, tolerance : float
        What the check was made with.
    """

    layers: tuple[BlockCheck, ...]
    epsilon: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the relative error of every block is below the tolerance."""
        return all(block.ok for block in self.layers)

    @property
    def max_relative_error(self) -> float:
        """The largest relative error over the blocks."""
        return max(block.relative_error for block in self.layers)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [
            f"gradient check {'passed' if self.ok else 'FAILED'}: largest relative error "
            f"{self.max_relative_error:.1e} (below {self.tolerance:g} is right, "
            f"epsilon {self.epsilon:g})"
        ]
        width = max(len(block.name) for block in self.layers)
        for block in self.layers:
            lines.append(
                f"  {block.name:<{width}}  {block.relative_error:.1e}  "
                f"{'ok   ' if block.ok else 'WRONG'}  "
                f"{block.n_checked} of {block.n_parameters} parameters one by one"
            )
        return "\n".join(lines)
