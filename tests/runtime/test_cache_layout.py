"""The names of the tensors of caches and of their axes, and the cache that stands for a session."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from laconic.runtime.axes import axis_names
from laconic.runtime.cache_layout import (
    CROSS,
    SELF,
    CacheLayout,
    LayerShape,
    cache_layouts,
    cache_tensors,
    filled_cache,
)
from laconic.runtime.seq2seq_parts import Form, decoder_names
from laconic.runtime.session_cache import session_of
from laconic.runtime.sessions import CachedProgram, Session, read_in_parts
from laconic.runtime.signature import Signature
from tests.architectures import BY_NAME


class Counted(Session):
    """Gives the number of tokens so far as the logits, and remembers the rows that it goes on with."""

    rows: Tensor | None = None

    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids = feeds["input_ids"]
        assert feeds["attention_mask"].shape[1] == self.length + ids.shape[1]
        return {"logits": (torch.arange(ids.shape[1]) + self.length).expand(len(ids), -1)[..., None]}

    def reorder(self, rows: Tensor) -> None:
        self.rows = rows


class Counting(CachedProgram):
    """A model without weights."""

    version = "none"

    def start(self) -> Session:
        return Counted()


def test_every_axis_has_a_name_unless_its_size_is_fixed() -> None:
    assert axis_names("input_ids", 2, cached=True) == ("batch", "length")
    assert axis_names("attention_mask", 2) == ("batch", "length")
    assert axis_names("attention_mask", 2, cached=True) == ("batch", "total_length")
    assert axis_names("input_ids", 3) == ("batch", "choices", "length")
    assert axis_names("past_key_values.3.decoder.key", 4) == ("batch", None, "past_length", None)
    assert axis_names("past_key_values.3.encoder.key", 4) == ("batch", None, "source_length", None)
    assert axis_names("present.3.value", 4) == ("batch", None, "total_length", None)
    assert axis_names("encoder_hidden_states", 3) == ("batch", "source_length", None)


def test_a_causal_model_reads_positions_and_its_cache() -> None:
    lm = BY_NAME["llama"].lm()
    signature = Signature.of(lm, cached=True)
    assert signature.inputs[:4] == ("input_ids", "attention_mask", "position_ids", "past_key_values.0.key")
    assert signature.outputs[0] == "logits" and signature.outputs[-1] == "present.1.value"
    assert signature.predictions == ("logits",)
    feeds = signature.feeds(lm, {"input_ids": torch.ones(2, 3, dtype=torch.long)})
    assert feeds["position_ids"].tolist() == [[0, 1, 2]] * 2
    assert feeds["past_key_values.1.value"].shape == (2, 2, 0, 8)
    # BLOOM computes its positions from the mask.
    assert "position_ids" not in Signature.of(BY_NAME["bloom"].lm(), cached=True).inputs


def test_the_forms_of_a_decoder_differ_in_the_caches_that_they_read() -> None:
    own, cross = cache_layouts(BY_NAME["bart"].lm())
    assert (own.kind, cross.kind, own.layers) == (SELF, CROSS, cross.layers)
    first, following, stateful = (decoder_names((own, cross), form) for form in Form)
    assert first[0] == ("input_ids", "encoder_attention_mask", "encoder_hidden_states")
    assert following[0] == ("input_ids", "encoder_attention_mask", *own.past, *cross.past)
    assert stateful[0] == (*first[0], *own.past)
    assert first[1] == stateful[1] == ("logits", *own.present, *cross.present)
    assert following[1] == ("logits", *own.present)


def test_a_cache_of_transformers_has_the_tensors_in_order() -> None:
    layout = CacheLayout((LayerShape(2, 4, 6), LayerShape(1, 4, 6)))
    tensors = {name: torch.randn_like(tensor) for name, tensor in layout.zeros(3, 5).items()}
    cache = filled_cache(layout, tensors)
    assert cache.get_seq_length() == 5
    assert all(a is b for a, b in zip(cache_tensors(cache), tensors.values(), strict=True))


@pytest.mark.parametrize("make", [DynamicCache, lambda: EncoderDecoderCache(DynamicCache(), DynamicCache())])
def test_a_cache_stands_for_one_session(make: type[DynamicCache]) -> None:
    cache = make()
    session = session_of(cache, Counting())
    assert session_of(cache, Counting()) is session and isinstance(session, Counted)
    session.read({"input_ids": torch.ones(2, 4), "attention_mask": torch.ones(2, 4)})
    assert cache.get_seq_length() == 4
    cache.reorder_cache(torch.LongTensor([1, 0]))
    assert session.rows is not None and session.rows.tolist() == [1, 0]


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_texts_are_read_in_parts(length: int) -> None:
    feeds = {"input_ids": torch.ones(2, length), "attention_mask": torch.ones(2, length)}
    assert read_in_parts(Counted(), feeds)[0, :, 0].tolist() == list(range(length))
