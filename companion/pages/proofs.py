"""Proofs in a notebook: each line is asserted with its reason, and a broken hypothesis shows."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Proofs"]


class Proofs:
    """What a context offers to prove a theorem line by line."""

    def check(
        self,
        line: str,
        reason: str,
        violation: float,
        tolerance: float = 1e-9,
        *,
        quiet: bool = False,
    ) -> None:
        """Assert one line of a proof and print it.

        Args:
            line: The statement.
            reason: Why it holds.
            violation: How far the numbers break it: at most zero, up to ``tolerance``.
            tolerance: Rounding allowed.
            quiet: Assert without printing, where the same lines stand above.

        Raises:
            AssertionError: If the line does not hold.
        """
        # written so that a NaN fails too
        if not violation <= tolerance:
            raise AssertionError(f"{line} fails by {violation:.2g} ({reason})")
        if not quiet:
            print(f"✔ {line}   [{reason}]")

    def breaks(self, what: str, proof: Callable[[], None]) -> None:
        """Run a proof whose hypothesis is broken and print the line that fails.

        Raises:
            AssertionError: If every line holds all the same.
        """
        try:
            proof()
        except AssertionError as error:
            print(f"✘ {what}: {str(error).split(' fails by')[0]} fails, as it must")
            return
        raise AssertionError(f"{what}: no line of the proof noticed")
