"""After a number of failed attempts, moves the call to the next best target; where none is left, gives
the last known good answer."""

import json
from pathlib import Path

from wit_world import exports
from wit_world.imports import call, last_known_good, log, targets
from wit_world.imports.log import Level
from wit_world.imports.targets import Standing
from wit_world.imports.types import (
    Action_Answer,
    Action_Decline,
    Action_SwitchTarget,
    Answer,
    AnswerSource,
    Decision,
    Failure,
    Metadata,
    SwitchTarget,
)

# What the operator may write. The host refuses anything else before it gets here. Read while the
# component is built: a strategy has no files.
SCHEMA = Path(__file__).with_name("schema.json").read_text()


# What the operator wrote, or the default. It is not kept in the class: every call has a new object.
after = 2


class Policy(exports.Policy):
    def metadata(self) -> Metadata:
        return Metadata(
            name="next-best",
            version="0.1.0",
            description="Moves a call that keeps failing to the next best target, or to the last known good answer.",
            level="service",
            default_priority=90,
            kinds=["ConnectionError", "TimeoutError", "ServiceUnavailable"],
            operations=[],
            capabilities=[],
            config_schema=SCHEMA,
            extra=[],
        )

    def configure(self, config: str) -> None:
        # To refuse a configuration, raise `componentize_py_types.Err` with a string that says why.
        global after
        after = json.loads(config).get("after", 2)

    def condition(self, failure: Failure) -> bool:
        return failure.attempts >= after

    def action(self, failure: Failure) -> Decision:
        attempts = failure.attempts
        # The list is sorted: best priority first.
        for target in targets.snapshot():
            if target.standing == Standing.HEALTHY | Standing.ADMITTED:
                log.write(Level.INFO, f"{call.target()} is left after {attempts} attempts")
                return Decision(
                    Action_SwitchTarget(SwitchTarget(target=target.name, target_kind=None)),
                    f"{target.name} is the next best after {attempts} attempts",
                )
        known = last_known_good.find()
        if known is not None:
            return Decision(
                Action_Answer(Answer(AnswerSource.LAST_KNOWN_GOOD, None)),
                f"no target is left, an answer of {known.age // 1000} s ago is",
            )
        return Decision(Action_Decline(), "")
