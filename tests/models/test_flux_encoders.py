"""Text encoders without memory, and the names that files have for their tensors."""

from __future__ import annotations

import pytest
from transformers import CLIPTextModel, T5EncoderModel

from simpletuner.models.flux import encoders
from simpletuner.modules import tensors, unfilled


@pytest.mark.parametrize(("part", "kind"), [("text_encoder", CLIPTextModel), ("text_encoder_2", T5EncoderModel)])
def test_an_encoder_is_built_without_memory_and_with_its_counts(part, kind, folders):
    module = encoders.unfilled(kind, folders[True] / part)
    assert set(unfilled(module)) == set(tensors(module))
    assert all(not buffer.is_meta for _, buffer in module.named_buffers())


def test_the_embedding_of_t5_has_one_name(folders):
    own = tensors(encoders.unfilled(T5EncoderModel, folders[True] / "text_encoder_2"))
    assert encoders.SHARED in own and encoders.COPY not in own


def test_names_of_older_files_are_those_of_the_module():
    assert encoders.names({"a.weight"}, {"text_model.a.weight"}) == {"text_model.a.weight": "a.weight"}
    assert encoders.names({"text_model.a.weight"}, {"a.weight"}) == {"a.weight": "text_model.a.weight"}
    both = {encoders.SHARED, encoders.COPY}
    assert encoders.names({encoders.SHARED}, both) == {encoders.COPY: None}
    assert encoders.names({encoders.SHARED}, {encoders.COPY}) == {encoders.COPY: encoders.SHARED}
    assert encoders.names({"a"}, {"a", "text_model.embeddings.position_ids"}) == {
        "text_model.embeddings.position_ids": None
    }


def test_what_is_not_known_stays_left_over():
    assert encoders.names({"a"}, {"a", "b"}) == {}
