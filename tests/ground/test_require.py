"""Settings are refused by record, field, value and rule."""

from dataclasses import dataclass

import pytest

from mmrl.ground.require import require


@dataclass(frozen=True)
class Setting:
    share: float = 0.5
    kind: str = "a"


def test_what_fits_passes():
    require(Setting(), share=(True, "in [0, 1]"), kind=(True, "'a' or 'b'"))


def test_the_first_broken_rule_is_told():
    with pytest.raises(ValueError, match=r"^Setting\.share is 2\.0; it must be in \[0, 1\]\.$"):
        require(Setting(2.0, "c"), share=(False, "in [0, 1]"), kind=(False, "'a' or 'b'"))


def test_texts_are_quoted():
    with pytest.raises(ValueError, match=r"^Setting\.kind is 'c'; it must be 'a' or 'b'\.$"):
        require(Setting(kind="c"), kind=(False, "'a' or 'b'"))
