"""A choice is made once for a streamed model, and each time for one in memory."""

from itertools import count

from laconic.compress.kept_choice import CHOICE, choose_once
from laconic.model import load
from laconic.model.loading import load_streamed
from tests.loaned import MODELS


def test_a_choice_is_read_again_unless_it_is_damaged(tmp_path) -> None:
    MODELS["llama"]().save_pretrained(tmp_path / "model")
    streamed = load_streamed(str(tmp_path / "model"), tmp_path / "scratch")
    assert streamed.loans is not None
    numbers = count()
    assert [choose_once(streamed, lambda: {"blocks": [next(numbers)]}) for _ in range(2)] == [{"blocks": [0]}] * 2
    streamed.loans.begin("1")
    assert choose_once(streamed, lambda: next(numbers)) == 1
    (streamed.loans.scratch / CHOICE).write_text("")
    assert choose_once(streamed, lambda: next(numbers)) == 2
    lm = load(str(tmp_path / "model"))
    assert [choose_once(lm, lambda: next(numbers)) for _ in range(2)] == [3, 4]
