"""Tokenizers of nano's two text encoders, learned from its captions."""

import io
import json
import tempfile
from collections.abc import Iterable

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer, T5Tokenizer

NUM_TEXT_TOKENS = 32
NUM_PIECES = 2048


def new_clip_tokenizer(lines: Iterable[str]) -> CLIPTokenizer:
    """CLIP's own pipeline, which lower-cases, with merges learned from `lines`."""
    backend = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=NUM_PIECES,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=NUM_TEXT_TOKENS)


def new_t5_tokenizer(lines: Iterable[str]) -> T5Tokenizer:
    """A Unigram vocabulary learned from `lines`, with lower-casing.

    T5Tokenizer builds its own pipeline on loading and keeps one normalizer only, a SentencePiece character map. So
    lower-casing must be such a map: SentencePiece compiles one from a table.
    """
    cased = [letter for letter in map(chr, range(0x250)) if letter != letter.lower() and len(letter.lower()) == 1]
    table = "".join(f"{ord(letter):X}\t{ord(letter.lower()):X}\n" for letter in cased)
    written = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(table)
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=written, model_type="unigram", vocab_size=NUM_PIECES,
            hard_vocab_limit=False, character_coverage=1.0, normalization_rule_tsv=rules.name,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
        )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    return T5Tokenizer(
        vocab=[(piece.piece, piece.score) for piece in proto.pieces],
        _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
        extra_ids=0,
        model_max_length=NUM_TEXT_TOKENS,
    )


def token_ids(tokenizer: CLIPTokenizer | T5Tokenizer, lines: list[str]) -> Tensor:
    """(num_lines, 32) int64, padded as FluxPipeline pads."""
    return tokenizer(
        lines, padding="max_length", max_length=NUM_TEXT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
