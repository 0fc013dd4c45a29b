"""BERT as the text encoder of a bundle: a folder of transformers to token ids → text states."""

from __future__ import annotations

from pathlib import Path

from fewstep.export import presets
from fewstep.export.checkpoint import read_json
from fewstep.export.filekind import shown
from fewstep.export.models.bert_text import BertText, constructor_arguments
from fewstep.export.text_encoder import Encoder, checkpoints_of
from fewstep.export.tokenizer_file import EXAMPLES, TokenizerFile
from fewstep.runtime.condition import TextEncoder
from fewstep.runtime.errors import BundleError, CheckpointError
from fewstep.runtime.prompts import read_tokenizer


def read_bert(folder: Path, tokenizer: Path, tokens: int) -> Encoder:
    """Read a BERT, in the layout of transformers: the states after its last layer.

    Args:
        folder: with ``config.json`` and weights of ``BertModel``.
        tokenizer: folder of ``tokenizer.json``.
        tokens: ids of a text, which the transformer was trained with.

    Raises:
        CheckpointError: files are missing or damaged, of another kind of network, or the tokenizer
            is not the encoder's.
        MissingDependencyError: ``tokenizers`` is not installed.
    """
    try:
        arguments = constructor_arguments(read_json(folder / "config.json"))
    except ValueError as error:
        raise CheckpointError(f"{folder}/config.json: {error}") from error
    pad = arguments.get("pad_token_id", 0)
    words = _tokenizer(tokenizer / "tokenizer.json", tokens, pad)
    model, found = presets.read(BertText, folder, arguments)
    vocabulary, positions = (
        len(each.weight)
        for each in (model.embeddings.word_embeddings, model.embeddings.position_embeddings)
    )
    if max(words.largest_id, pad) >= vocabulary or tokens > positions:
        raise CheckpointError(
            f"{folder}: the tokenizer does not fit the encoder: ids go up to {words.largest_id} in "
            f"texts of {tokens}, and the encoder knows {vocabulary} and {positions} positions"
        )
    return Encoder(
        model.eval(),
        TextEncoder(tokens=tokens, pad_id=pad, examples=words.examples),
        tokens,
        words,
        checkpoints_of(folder, words),
        tuple(f"text encoder: {note}" for note in found.notes),
    )


def _tokenizer(path: Path, tokens: int, pad_id: int) -> TokenizerFile:
    """BERT's tokenizer, which puts a token before and after a text."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} holds no tokenizer; expected tokenizer.json")
    try:
        tokenizer = read_tokenizer(path)
    except BundleError as error:
        raise CheckpointError(f"{path.parent} holds no readable tokenizer.json") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    nothing = tuple(tokenizer.encode("").ids)
    if len(nothing) != 2:
        raise CheckpointError(
            f"{path}: expected a token before and after a text, as BERT's tokenizers put them; the "
            f"empty text becomes {shown(str(list(nothing)))}"
        )
    return TokenizerFile(
        tokenizer.to_str(pretty=False),
        tokens,
        nothing[1],
        pad_id,
        max(tokenizer.get_vocab(with_added_tokens=True).values()),
        nothing,
        tuple(tuple(each.ids) for each in tokenizer.encode_batch(EXAMPLES)),
        (path,),
    )
