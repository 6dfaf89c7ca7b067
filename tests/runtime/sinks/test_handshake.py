"""The handshake with a PLC, step by step, and with signals, answers and time in any order."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings as profile
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nnet_edge.runtime.sinks.handshake import Answer, Handshake, Lamps, Stage

ACK_S, ANSWER_S = 1.0, 5.0


def asked(number: int = 7, on_lost: str = "reject") -> Handshake:
    """A handshake whose PLC asked for a part at 0 s."""
    machine = Handshake(ACK_S, ANSWER_S, on_lost)
    assert machine.signals(True, False, 0.0)
    machine.begin(number, 0.0)
    return machine


@pytest.mark.parametrize("taken", [(True, True), (False, False)])
def test_a_part_is_asked_for_answered_and_taken(taken: tuple[bool, bool]) -> None:
    machine = asked()
    assert machine.lamps == Lamps(busy=True)
    assert not machine.give(Answer(6, False), 0.1)  # another part's
    assert machine.give(Answer(7, False, score=0.2), 0.2)
    assert machine.lamps == Lamps(done=True, good=True)
    assert not machine.signals(*taken, 0.3)
    assert machine.lamps == Lamps()
    machine.signals(False, False, 0.4)
    assert machine.stage is Stage.IDLE
    assert machine.signals(True, False, 0.5)


def test_no_answer_is_a_reject_and_a_late_one_changes_nothing() -> None:
    machine = asked()
    assert machine.due_s == ANSWER_S
    assert machine.tick(ANSWER_S)
    assert machine.lamps == Lamps(done=True, reject=True, fault=True)
    assert not machine.give(Answer(7, False), ANSWER_S + 0.1)
    machine.signals(False, False, ANSWER_S + 0.2)
    assert not machine.give(Answer(7, False), ANSWER_S + 0.3)
    assert (machine.lamps, machine.unanswered) == (Lamps(), 1)


@pytest.mark.parametrize(
    ("on_lost", "lamps"), [("reject", Lamps(reject=True, fault=True)), ("hold", Lamps(done=True, good=True))]
)
def test_an_answer_that_nobody_takes_is_what_on_lost_says(on_lost: str, lamps: Lamps) -> None:
    machine = asked(on_lost=on_lost)
    machine.give(Answer(7, False), 0.2)
    assert machine.tick(0.2 + ACK_S)
    assert (machine.lamps, machine.unacknowledged, machine.due_s) == (lamps, 1, None)
    machine.signals(False, False, 60.0)  # the PLC is back, and begins anew
    assert machine.signals(True, False, 60.1)
    machine.begin(8, 60.1)
    assert machine.lamps == Lamps(busy=True)


def test_a_part_that_the_plc_gives_up_is_not_the_next_one_s_answer() -> None:
    machine = asked()
    machine.signals(False, False, 0.1)
    assert (machine.lamps, machine.abandoned) == (Lamps(), 1)
    assert not machine.give(Answer(7, False), 0.2)
    assert machine.signals(True, False, 0.3)
    machine.begin(8, 0.3)
    assert not machine.give(Answer(7, False), 0.4)
    assert machine.give(Answer(8, True), 0.5)
    assert machine.lamps == Lamps(done=True, reject=True)


def test_parts_that_others_trigger_are_shown_one_after_the_other() -> None:
    machine = Handshake(ACK_S, ANSWER_S)
    for number, is_reject in ((1, False), (2, True), (3, False)):
        assert machine.give(Answer(number, is_reject), float(number))
        assert machine.lamps == Lamps(done=True, good=not is_reject, reject=is_reject)
        assert machine.due_s is None


def test_a_refused_request_is_a_reject() -> None:
    machine = Handshake(ACK_S, ANSWER_S)
    assert machine.signals(True, False, 0.0)
    machine.refuse("refused", 0.0)
    assert machine.lamps == Lamps(done=True, reject=True, fault=True)


@profile(max_examples=60, stateful_step_count=40, deadline=None)
class AnyOrder(RuleBasedStateMachine):
    """A PLC that does what it likes, and a line that answers when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Handshake(ACK_S, ANSWER_S)
        self.now_s, self.next_number = 0.0, 1
        self.request = self.acknowledge = False
        self.verdicts: dict[int, bool] = {}  # number -> is_reject, as the line gave it
        self.open: list[int] = []
        self.begun: list[int] = []
        self.shown: list[int] = []  # answers to requests, each once

    @rule(request=st.booleans(), acknowledge=st.booleans())
    def signal(self, request: bool, acknowledge: bool) -> None:
        self.request, self.acknowledge = request, acknowledge
        if self.machine.signals(request, acknowledge, self.now_s):
            assert request
            number, self.next_number = self.next_number, self.next_number + 1
            self.machine.begin(number, self.now_s)
            self.begun.append(number)
            self.open.append(number)

    @precondition(lambda self: self.open)
    @rule(is_reject=st.booleans(), newest=st.booleans())
    def answer(self, is_reject: bool, newest: bool) -> None:
        number = self.open.pop(-1 if newest else 0)
        self.verdicts[number] = is_reject
        was_busy_with = self.machine.number if self.machine.stage is Stage.BUSY else None
        if self.machine.give(Answer(number, is_reject), self.now_s):
            assert number not in self.shown
            self.shown.append(number)
            assert self.machine.lamps.good is (not is_reject)
        else:
            assert was_busy_with != number or self.machine.answer == Answer(number, True, "no_answer")

    @rule(is_reject=st.booleans())
    def other_part(self, is_reject: bool) -> None:
        """Of a trigger that was somebody else's."""
        number, self.next_number = self.next_number, self.next_number + 1
        before = self.machine.stage
        self.verdicts[number] = is_reject
        if self.machine.give(Answer(number, is_reject), self.now_s):
            assert before is not Stage.BUSY or self.machine.stage is Stage.DONE
            assert not self.request

    @rule(s=st.floats(0.01, 3.0))
    def wait(self, s: float) -> None:
        self.now_s += s
        self.machine.tick(self.now_s)

    @invariant()
    def lamps_are_true(self) -> None:
        machine, lamps = self.machine, self.machine.lamps
        assert not (lamps.busy and (lamps.done or lamps.good or lamps.reject))
        assert not (lamps.good and lamps.reject)
        assert lamps.done == (lamps.good or lamps.reject) or machine.stage is Stage.LOST
        if lamps.good:  # the verdict of that very part
            assert machine.answer is not None
            assert self.verdicts[machine.answer.number] is False
        if lamps.busy:
            assert self.request
            assert machine.number == self.begun[-1]
        if machine.due_s is not None:
            assert machine.stage in (Stage.BUSY, Stage.DONE)
        if machine.stage is Stage.BUSY:
            assert machine.due_s is not None
            assert machine.due_s > self.now_s

    def teardown(self) -> None:
        """From anywhere a PLC that behaves is served again."""
        self.now_s += ANSWER_S + ACK_S
        self.machine.tick(self.now_s)
        for signals in ((False, False), (False, False)):
            self.machine.signals(*signals, self.now_s)
        assert self.machine.signals(True, False, self.now_s)
        self.machine.begin(10_000, self.now_s)
        assert self.machine.give(Answer(10_000, False), self.now_s)
        assert self.machine.lamps == Lamps(done=True, good=True)


test_any_order = AnyOrder.TestCase
