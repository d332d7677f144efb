"""The first wrong step of a working is found, and what is wrong with it."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.arithmetic.checking import first_fault
from glmtune.arithmetic.working import DRAFT_MARK, STEP
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings

TASKS = [
    Arithmetic(ArithmeticSettings(name="arithmetic", **settings))
    for settings in (
        {},
        {"digits": 9},
        {"operand_decimals": 5, "num_operands": {2: 1, 4: 1}, "brackets": 0.5, "negatives": 0.4, "percents": 0.2},
        {"round_all": True, "working_decimals": 6, "num_operands": {3: 1}, "powers": 0.3},
    )
]


def drawn(task: int, seed: int) -> str:
    """A target with a working: not that of a division by zero."""
    rng = random.Random(seed)
    while DRAFT_MARK not in (target := TASKS[task].sample(rng, "held_out").target):
        pass
    return target


TARGETS = st.builds(drawn, st.integers(0, len(TASKS) - 1), st.integers(0, 10**6))


@pytest.mark.parametrize(
    ("right", "written", "kind", "step", "place"),
    [
        # The problem, and the rows of a sum.
        ("19+23=91+32:240;24|42", "18+23=81+32:140;14|41", "copied wrongly", 0, 2),
        ("19+23=91+32:240;24|42", "19+23=91+22:230;23|32", "copied wrongly", 1, 4),
        ("19+23=91+32:240;24|42", "19+23=91+32:230;23|32", "wrong carry", 1, 8),  # forgotten
        ("12+23=21+32:530;53|35", "12+23=21+32:540;54|45", "wrong carry", 1, 8),  # none was due
        ("19+23=91+32:240;24|42", "19+23=91+32:340;34|43", "wrong carry", 1, 7),
        ("19+23=91+32:240;24|42", "19+23=91+32:280;28|82", "wrong figure", 1, 8),
        ("19+23=91+32:240;24|42", "19+23=91+32:240;25|52", "copied wrongly", 2, 2),
        ("19+23=91+32:240;24|42", "19+23=91+32:240;24|43", "copied wrongly", 2, 5),
        ("19+23=91+32:240;24|42", "19+23=91+32:240;24|420", "copied wrongly", 2, 6),
        # A difference: 42-19 with its borrow, and the larger number.
        ("42-19=24-91>32;32|23", "42-19=24-91>33;33|33", "wrong carry", 1, 8),
        ("42-19=24-91>32;32|23", "42-19=24-91>37;37|73", "wrong figure", 1, 8),
        ("42-19=24-91>32;32|23", "42-19=24-91<32;-32|-23", "wrong figure", 1, 6),
        # 27*8 = 216: 8*7 = 56, 8*2+5 = 21.
        ("27*8=72*8:8:612;612|216", "27*8=72*8:8:662;662|266", "wrong carry", 1, 9),  # forgotten: 8*2 = 16
        ("27*8=72*8:8:612;612|216", "27*8=72*8:8:622;622|226", "wrong carry", 1, 9),
        ("27*8=72*8:8:612;612|216", "27*8=72*8:8:642;642|246", "wrong figure", 1, 9),
        ("27*8=72*8:8:612;612|216", "27*8=72*8:7:981;981|189", "copied wrongly", 1, 6),
        ("12*34=21*43:4:8400;3:0630:8040;8040|408", "12*34=21*43:4:8400;3:0630:8140;8140|418", "wrong carry", 2, 9),
        # 7/3 in long division.
        ("7/3=700/3:70:2:60>01:3:90>01:3:90>;33.2|2.33", "7/3=700/3:70:3:90<2:60>", "wrong figure", 1, 10),
        ("7/3=700/3:70:2:60>01:3:90>01:3:90>;33.2|2.33", "7/3=700/3:70:2:60>00:3:90>", "wrong carry", 1, 16),
        ("7/3=700/3:70:2:60>01:3:90>01:3:90>;33.2|2.33", "7/3=700/3:70:2:60>04:3:90>", "wrong figure", 1, 16),
        ("7/3=700/3:70:2:60>01:3:90>01:3:90>;33.2|2.33", "7/3=700/3:70:2:60>11:3:90>", "copied wrongly", 1, 15),
        ("7/3=700/3:70:2:60>01:3:90>;3.2|2.3", "7/3=700/3:70:2:60>01:3:90>;3.3", "copied wrongly", 2, 3),
        ("8/3=800/3:80:2:60>02:6:81>02:6:81>;7.2|2.7", "800/3:80:2:60>02:6:81>02:6:81>;6.2|2.6", "wrong figure", 2, 1),
        # Several operations.
        ("2+3*4=2+3*4;3*4:4:21;2+21;20+21:410;41|14", "2+3*4=2+3*4;2+3:50;5*4;", "wrong order of operations", 2, 1),
        ("9-(3+4)=9-(3+4);3+4:70;9-7;9-7>2;2|2", "9-(3+4)=9-(3+4);9-3>6;6+4;", "wrong order of operations", 2, 1),
        ("9-(3+4)=9-(3+4);3+4:70;9-7;9-7>2;2|2", "9-(3+4)=9-(3+4);5+4:90;9-9;", "copied wrongly", 2, 1),
        ("9-(3+4)=9-(3+4);3+4:70;9-7;9-7>2;2|2", "9-(3+4)=9-3+4;", "wrong order of operations", 1, 3),
        ("9-(3+4)=9-(3+4);3+4:70;9-7;9-7>2;2|2", "9-(3+4)=9-(3+4);3+4:70;9-8;", "copied wrongly", 3, 3),
        # Cut off.
        ("19+23=91+32:240;24|42", "", "cut off", 0, 1),
        ("19+23=91+32:240;24|42", "19+", "cut off", 0, 4),
        ("19+23=91+32:240;24|42", "19+23=91+3", "cut off", 1, 5),
        ("19+23=91+32:240;24|42", "19+23=91+32:240;24|", "cut off", 2, 4),
        # Without the problem.
        ("91+32:240;24|42", "91+32:230;", "wrong carry", 1, 8),
        ("19+23=91+32:240;24|42", "91+32:230;", "wrong carry", 1, 8),
    ],
)  # fmt: skip
def test_the_first_wrong_step(right: str, written: str, kind: str, step: int, place: int) -> None:
    fault = first_fault(right, written)
    assert fault is not None and (fault.kind, fault.step, fault.place) == (kind, step, place)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("19+23=91+32:240;24|42", "19+23=91+32:240;24|42"),
        ("19+23=91+32:240;24|42", " 19+23 = 91+32:240;24|42\n"),
        ("19+23=91+32:240;24|42", "91+32:240;24|42"),
        ("19+23=91+32:240;24|42", "１９＋２３＝９１＋３２：２４０；２４｜４２"),
        ("19+23=91+32:240;24|42", "19+23=91+32:240;24|42."[:-1] + " it is"),
        ("5/0=undefined", "5/0=5"),  # there is no working
        ("42", "41"),
        ("| a | b |", "| a | c |"),
        ("", ""),
    ],
)
def test_what_has_no_fault(target: str, text: str) -> None:
    assert first_fault(target, text) is None


def test_a_fault_tells_its_place() -> None:
    assert str(first_fault("19+23=91+32:240;24|42", "19+23=91+32:230;23|32")) == (
        "wrong carry in step 1, sign 8: 91+32:230; for 91+32:240;"
    )
    assert str(first_fault("19+23=91+32:240;24|42", "")) == "cut off in the problem, sign 1: nothing for 19+23"


@given(TARGETS, st.data())
def test_one_wrong_figure_names_its_step(target: str, data: st.DataObject) -> None:
    assert first_fault(target, target) is None
    place = data.draw(st.sampled_from([place for place, sign in enumerate(target) if sign.isdigit()]))
    figure = data.draw(st.sampled_from(sorted({*"0123456789"} - {target[place]})))
    fault = first_fault(target, target[:place] + figure + target[place + 1 :])
    begins = target.index("=") + 1
    start = max(begins, target.rfind(STEP, 0, place) + 1)
    assert fault is not None
    if place < begins:
        assert (fault.kind, fault.step, fault.place) == ("copied wrongly", 0, place + 1)
    else:
        assert (fault.step, fault.place) == (1 + target[begins:place].count(STEP), 1 + place - start)
        assert fault.kind in ("copied wrongly", "wrong carry", "wrong figure", "wrong order of operations")
        assert fault.right in target and fault.written not in ("", fault.right)


@given(TARGETS, st.data())
def test_a_working_that_is_cut_is_cut_off(target: str, data: st.DataObject) -> None:
    fault = first_fault(target, target[: data.draw(st.integers(0, len(target) - 1))])
    assert fault is not None and fault.kind == "cut off"


@given(TARGETS, st.text(st.sampled_from("0123456789.+-*/:;<>|=() "), max_size=60), st.data())
def test_nothing_fails(target: str, strange: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(target)))
    fault = first_fault(target, target[:place] + strange + target[place + 1 :])
    assert fault is None or str(fault)
    first_fault(strange, target), first_fault(f"{strange}|{strange}", strange)


def test_long_texts_take_no_time() -> None:
    target = drawn(1, 5)
    for text in ("1" * 10**6, target * 10**4, target[:-1] + "1;" * 10**5):
        started = time.process_time()
        first_fault(target, text)
        assert time.process_time() - started < 0.2
