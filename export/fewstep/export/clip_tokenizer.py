"""CLIP's tokenizer as one ``tokenizer.json``, which the ``tokenizers`` library reads.

Folders of transformers have that file, or ``vocab.json`` and ``merges.txt`` of which it is made as
``CLIPTokenizer`` of transformers 5 (``CLIPTokenizerFast`` of 4) makes it: NFC, one blank for
several, lower case, byte-level BPE with ``</w>`` at the end of words, and a token before and after
every text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.export.checkpoint import read_json
from fewstep.export.filekind import shown
from fewstep.export.tokenizer_file import EXAMPLES, TokenizerFile
from fewstep.runtime.errors import CheckpointError, missing

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_SPECIAL = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(folder: Path, longest: int) -> TokenizerFile:
    """The tokenizer of a folder.

    Args:
        folder: with ``tokenizer.json``, or with ``vocab.json`` and ``merges.txt``. Names of special
            tokens and the length of texts are in ``tokenizer_config.json`` and
            ``special_tokens_map.json``, if these are there.
        longest: ids of a text that the encoder takes at most.

    Raises:
        CheckpointError: no such files, damaged ones, or another kind of tokenizer.
        MissingDependencyError: ``tokenizers`` is not installed.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise missing("tokenizers", "text") from error
    names = ("tokenizer_config.json", "special_tokens_map.json")
    beside = [folder / name for name in names if (folder / name).is_file()]
    said: dict[str, Any] = {}
    for path in reversed(beside):
        said |= {key: value for key, value in read_json(path).items() if value is not None}
    _check_class(folder, said.get("tokenizer_class"))
    words = {name: _content(folder, name, said.get(name, word)) for name, word in _SPECIAL.items()}
    tokenizer, files = _tokenizer(folder, words, said)
    length = said.get("model_max_length", longest)
    length = min(longest, int(length)) if isinstance(length, (int, float)) else longest
    if length < 2:
        raise CheckpointError(f"{folder}: model_max_length must be at least 2, got {length}")
    ids = {name: tokenizer.token_to_id(word) for name, word in words.items()}
    if absent := [shown(words[name]) for name, each in ids.items() if each is None]:
        raise CheckpointError(f"{folder}: the vocabulary lacks {', '.join(absent)}")
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    nothing = tuple(tokenizer.encode("").ids)
    if nothing != (ids["bos_token"], ids["eos_token"]):
        raise CheckpointError(
            f"{folder}: expected {words['bos_token']} and {words['eos_token']} around a text, as "
            f"CLIP's tokenizers put them; the empty text becomes {list(nothing)}"
        )
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    largest, files = max(vocabulary.values()), (*files, *beside)
    return TokenizerFile(
        tokenizer.to_str(pretty=False),
        length,
        ids["eos_token"],
        ids["pad_token"],
        largest,
        nothing,
        tuple(tuple(each.ids) for each in tokenizer.encode_batch(EXAMPLES)),
        tuple(files),
    )


def _check_class(folder: Path, found: object) -> None:
    if found is not None and found not in _CLASSES:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: expected tokenizer_class {_CLASSES[0]}, got "
            f"{shown(str(found))}"
        )


def _content(folder: Path, name: str, said: object) -> str:
    """The text of a special token, which may be described by an object."""
    found = said.get("content") if isinstance(said, dict) else said
    if not isinstance(found, str) or not found:
        raise CheckpointError(f"{folder}: {name} must be a token, got {shown(str(said))}")
    return found


def _tokenizer(
    folder: Path, words: Mapping[str, str], said: Mapping[str, Any]
) -> tuple[Tokenizer, tuple[Path, ...]]:
    """The tokenizer, and the files that it is of."""
    from tokenizers import Tokenizer

    whole, parts = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
    try:
        if whole.is_file():
            return Tokenizer.from_file(str(whole)), (whole,)
        if all(path.is_file() for path in parts):
            return _made(*parts, words, said), parts
    except Exception as error:  # the library raises bare ones
        raise CheckpointError(
            f"{folder} holds no readable tokenizer: {shown(str(error))}"
        ) from error
    raise CheckpointError(
        f"{folder} holds no tokenizer; expected tokenizer.json, or vocab.json and merges.txt"
    )


def _made(
    vocabulary: Path, merges: Path, words: Mapping[str, str], said: Mapping[str, Any]
) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    tokenizer = Tokenizer(
        BPE.from_file(
            str(vocabulary),
            str(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=words["unk_token"],
        )
    )
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), blanks, normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token in _added_tokens(words, said):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    around = {name: (words[name], tokenizer.token_to_id(words[name])) for name in words}
    tokenizer.post_processor = processors.RobertaProcessing(
        around["eos_token"],  # not by names: those differ between versions of the library
        around["bos_token"],
        add_prefix_space=False,
        trim_offsets=False,
    )
    return tokenizer


def _added_tokens(words: Mapping[str, str], said: Mapping[str, Any]) -> list[AddedToken]:
    """Tokens that are found in a text as they are, with what the configuration says of each."""
    from tokenizers import AddedToken

    added = said.get("added_tokens_decoder")
    described = [said[name] for name in words if isinstance(said.get(name), dict)]
    described += added.values() if isinstance(added, dict) else ()
    flags: dict[str, dict[str, bool]] = {word: {"special": True} for word in words.values()}
    for each in described:
        if isinstance(each, dict) and isinstance(word := each.get("content"), str):
            own = {flag: bool(each[flag]) for flag in _FLAGS if flag in each}
            flags[word] = {"special": True, **flags.get(word, {}), **own}
    return [AddedToken(word, **own) for word, own in flags.items()]
