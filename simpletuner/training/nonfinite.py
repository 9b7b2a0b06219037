"""What to do about updates that were dropped because of NaN or Inf (training.md section 14)."""

from __future__ import annotations

from typing import Literal, NoReturn

from simpletuner.errors import DivergedError

Action = Literal["rollback", "stop", "skip"]
IN_A_ROW = 3  # that many dropped updates are no accident
OVERFLOWS = 100  # an fp16 loss scale that still overflows after that many halvings will never fit


class NonFinite:
    """Counts dropped updates and says when to go back or to give up."""

    def __init__(self, action: Action):
        self.action = action
        self.total = 0
        self.in_a_row = 0
        self.overflows = 0  # in a row
        self.rolled_back = False

    def good(self) -> None:
        self.in_a_row = self.overflows = 0

    def overflowed(self) -> None:
        """The fp16 scaler dropped an update and lowered its scale: ordinary, unless it never ends."""
        self.overflows += 1
        if self.overflows >= OVERFLOWS:
            raise DivergedError(
                f"the fp16 loss scaler overflowed {OVERFLOWS} steps in a row",
                fix="use mixed_precision=bf16, or a lower learning_rate",
            )

    def bad(self, what: str) -> bool:
        """True if the run is to go back to its last checkpoint. DivergedError if it is to end."""
        self.total += 1
        self.in_a_row += 1
        if self.action == "stop":
            self.give_up(f"{what}, and nonfinite_action is stop")
        if self.in_a_row < IN_A_ROW:
            return False
        if self.action == "skip" or self.rolled_back:
            again = " again, after going back once" if self.rolled_back else ""
            self.give_up(f"{IN_A_ROW} updates in a row were not finite{again}; the last: {what}")
        return True

    def give_up(self, message: str) -> NoReturn:
        raise DivergedError(
            message,
            fix="lower learning_rate or max_grad_norm, or take the named images out; "
            "the draws are addressed, so the same step with the same rate and data fails again in the same way",
        )

    def state(self) -> dict[str, int | bool]:
        return {
            "total": self.total,
            "in_a_row": self.in_a_row,
            "overflows": self.overflows,
            "rolled_back": self.rolled_back,
        }

    def load_state(self, state: dict[str, int | bool]) -> None:
        self.total, self.in_a_row = int(state["total"]), int(state["in_a_row"])
        self.overflows, self.rolled_back = int(state["overflows"]), bool(state["rolled_back"])
