"""The share of a build that is done: nested phases make one number that only grows."""

from __future__ import annotations

from nnet_edge.export.engine import Phases


def test_a_nested_phase_takes_the_share_of_one_step() -> None:
    phases = Phases()
    phases.start("build", None, 4)
    phases.step("build", 0)
    assert phases.share() == 0.25
    phases.start("inner", "build", 2)
    phases.step("inner", 0)
    assert phases.share() == 0.25 + 0.25 / 2
    phases.start("innermost", "inner", 10)
    phases.step("innermost", 4)
    assert phases.share() == 0.25 + (1 + 0.5) / 2 / 4


def test_the_share_never_goes_back_and_ends_at_one() -> None:
    phases = Phases()
    phases.start("build", None, 2)
    phases.start("a", "build", 1)
    phases.step("a", 0)
    assert phases.share() == 0.5
    phases.finish("a")
    phases.start("b", "build", 100)  # before the build's first step was told as done
    assert phases.share() == 0.5
    phases.finish("b")
    phases.finish("build")
    assert phases.share() == 1.0


def test_names_that_come_again_or_never_began_are_no_trouble() -> None:
    phases = Phases()
    phases.step("unknown", 3)
    phases.finish("unknown")
    assert phases.share() == 0.0
    phases.start("build", None, 0)
    phases.start("build", "build", 3)  # its own parent
    phases.step("build", 2)
    assert phases.share() == 1.0
