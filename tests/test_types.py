import pytest

from simpletuner.types import remark


@pytest.mark.parametrize(
    ("nickname", "text", "said"),
    [
        ("in_the_set_cat", "flat emoji of a cat", "in the set"),
        ("not_in_the_set_teddy_bear", "flat emoji of a Teddy bear.", "not in the set"),
        ("in_the_set_cat", "a dog in the rain", "in the set cat"),
        ("chef", "a photo of a chef", ""),
        ("validation", "flat emoji of a fox", "validation"),
        ("unconditional", "", "unconditional"),
        ("शेर", "एक शेर", ""),
    ],
)
def test_a_remark_is_what_the_nickname_says_beyond_the_prompt(nickname, text, said):
    assert remark(nickname, text) == said
