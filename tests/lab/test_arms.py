"""Arms and settings: what a record states, what tuning fills in, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import pytest

from companion.evidence.store import Run
from companion.lab.arms import Arm, Profile, Settings, arm, defaults_of, plan
from companion.lab.results import Result


@dataclass(frozen=True, kw_only=True)
class Walk(Settings):
    """A walk of some steps; ``data`` has no default."""

    data: str = field()
    lr: float = 0.5
    steps: int = 100
    widths: tuple[tuple[int, ...], ...] = ((1, 2), (3,))

    @property
    def data_hash(self) -> str:
        return f"hash of {self.data}"

    def shortened(self, share: float) -> Self:
        return replace(self, steps=max(1, round(self.steps * share)))


@dataclass(frozen=True, kw_only=True)
class Toy(Profile):
    """Two numbers of seeds."""

    seeds: int = 2
    more_seeds: int = 0


def walk(settings: Walk, seed: int) -> Result:
    return Result({"test/loss": settings.lr * seed})


def planned(*arms: Arm, chosen: dict[str, dict[str, float]] | None = None) -> list[Run]:
    return list(plan("99", arms, Toy(more_seeds=1), chosen or {}))


def test_a_record_states_what_is_not_at_its_default_and_what_has_none():
    (first, second) = planned(arm("a", Walk(data="x", steps=7), walk, "seeds", 1.0))
    assert first.settings == {"data": "x", "steps": 7}
    assert (first.seed, second.seed, first.data) == (1000, 1001, "hash of x")
    assert defaults_of(Walk).keys() == {"lr", "steps", "widths"}
    assert first.config == {"data": "x", "lr": 0.5, "steps": 7, "widths": ((1, 2), (3,))}


def test_a_new_setting_at_its_default_and_a_setting_at_its_default_change_no_identity():
    @dataclass(frozen=True, kw_only=True)
    class Longer(Walk):
        margin: float = 0.25

    (old, _) = planned(arm("a", Walk(data="x", lr=0.5), walk, "seeds", 1.0))
    (new, _) = planned(arm("a", Longer(data="x"), walk, "seeds", 1.0))
    (other, _) = planned(arm("a", Longer(data="x", margin=0.5), walk, "seeds", 1.0))
    assert old.key == new.key != other.key
    (version, _) = planned(arm("a", Walk(data="x"), walk, "seeds", 1.0, version=2))
    assert version.key != old.key


def test_runs_come_in_the_order_of_the_rows_with_the_seeds_that_they_name():
    runs = planned(
        arm("b", Walk(data="x"), walk, "more_seeds", 1.0, deterministic=False),
        arm("a", Walk(data="x"), walk, "seeds", 1.0),
    )
    assert [(run.arm, run.seed) for run in runs] == [("b", 1000), ("a", 1000), ("a", 1001)]
    assert [run.deterministic for run in runs] == [False, True, True]


def test_the_runs_of_a_row_say_whether_one_call_can_compute_several():
    def walks(settings: Walk, seeds: Sequence[int]) -> list[Result]:
        return [walk(settings, seed) for seed in seeds]

    rows = [arm("a", Walk(data="x"), walk, "seeds", 1.0, together=walks)]
    rows.append(arm("b", Walk(data="x"), walk, "seeds", 1.0))
    runs = planned(*rows)
    assert [run.together for run in runs] == [True, True, False, False]
    assert replace(runs[0], together=False).key == runs[0].key


def test_tuned_values_are_filled_in_and_their_absence_is_named():
    row = arm("a", Walk(data="x"), walk, "seeds", 1.0, tuned={"lr": "b"})
    (first, _) = planned(row, chosen={"b": {"lr": 0.125}})
    assert first.config["lr"] == 0.125
    with pytest.raises(ValueError, match="a: lr of b is not tuned"):
        planned(row, chosen={"a": {"lr": 0.125}, "b": {"steps": 3}})


def test_a_tuple_takes_a_tuned_value_of_each_arm_that_it_names():
    @dataclass(frozen=True, kw_only=True)
    class Several(Walk):
        lrs: tuple[float, ...] = ()

    row = arm("a", Several(data="x"), walk, "seeds", 1.0, tuned={"lrs": ("b", "c")})
    (first, _) = planned(row, chosen={"b": {"lrs": 0.5}, "c": {"lrs": 0.25}})
    assert first.config["lrs"] == (0.5, 0.25)
    with pytest.raises(ValueError, match="a: lrs of c is not tuned"):
        planned(row, chosen={"b": {"lrs": 0.5}})


def test_a_budget_shortens_the_settings_and_four_fifths_of_the_seconds():
    row = arm("a", Walk(data="x"), walk, "seeds", 10.0)
    (run, *_) = plan("99", [row], Toy(budget=0.25), {})
    assert run.config["steps"] == 25
    assert run.predicted_seconds == pytest.approx(2 + 8 * 0.25)


def test_two_rows_of_one_name_are_refused():
    row = arm("a", Walk(data="x"), walk, "seeds", 1.0)
    with pytest.raises(ValueError, match="chapter 99: two arms are called a"):
        planned(row, arm("b", Walk(data="x"), walk, "seeds", 1.0), row)


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget", 0.0), ("budget", 1.1), ("seeds", -1), ("first_seed", -1)],
)
def test_a_profile_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        Toy(**{name: value})


def test_settings_come_back_from_a_file_with_tuples_for_lists():
    settings = Walk(data="x", widths=((4,), (5, 6)))
    config = {"data": "x", "widths": [[4], [5, 6]], "lr": 0.5}
    assert Walk.from_config(config) == settings
    with pytest.raises(TypeError, match="width"):
        Walk.from_config({"data": "x", "width": 3})
