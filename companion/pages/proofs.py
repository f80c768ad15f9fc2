"""Proofs in a notebook: each line is checked by numbers, and so is that hypotheses are needed."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Proofs"]


class Proofs:
    """Methods of a notebook's context that check a proof line by line."""

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
            violation: How far the numbers break the line; it holds up to ``tolerance``.
            tolerance: Rounding error that is allowed.
            quiet: Do not print the line, because the same line was printed before.

        Raises:
            AssertionError: If the line does not hold.
        """
        # not `violation > tolerance`, which a NaN would pass
        if not violation <= tolerance:
            raise AssertionError(f"{line} fails by {violation:.2g} ({reason})")
        if not quiet:
            print(f"✔ {line}   [{reason}]")

    def breaks(self, what: str, proof: Callable[[], None]) -> None:
        """Run a proof with a broken hypothesis, which ``what`` names; print the line that fails.

        Raises:
            AssertionError: If no line fails.
        """
        try:
            proof()
        except AssertionError as error:
            print(f"✘ {what}: {str(error).split(' fails by')[0]} fails, as it must")
            return
        raise AssertionError(f"{what}: no line of the proof noticed")
