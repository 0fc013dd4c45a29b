"""BERT as a text encoder. Sizes as in the ``config.json`` of sentence-transformers/all-MiniLM-L6-v2
and of google-bert/bert-base-uncased on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.export.models.bert_text import ARGUMENTS, BertText
from fewstep.export.parts import Kind, Part, Preset
from fewstep.export.wrappers import Wanted

_SMALL = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}

PARTS: Mapping[Kind, Part] = {
    BertText: Part(
        "BERT text encoder",
        "--text-encoder",
        sizes=(Preset("all-MiniLM-L6-v2", _SMALL), Preset("BERT base", {})),
        form="bert",
        settings=ARGUMENTS,
        settings_beside="type_vocab_size",
        rules=Wanted(frozenset(), beside=r"^(embeddings\.position_ids$|pooler\.|cls\.)"),
    ),
}
"""By the class of the network."""
