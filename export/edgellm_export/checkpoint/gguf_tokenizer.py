"""The text side of a GGUF file: its vocabulary becomes Hugging Face's tokenizer files.

    metadata ── gguf_vocabulary (checked) ── byte-level BPE ("gpt2") or SentencePiece ("llama")
             ──▶ TextFiles

A GGUF names its pre-tokenizer instead of carrying it. A name that is not in `pretokenizers` is
refused: a guess would give slightly wrong ids, and silently worse answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgellm.errors import Incompatible
from edgellm_export.checkpoint import TextFiles, gguf_vocabulary
from edgellm_export.checkpoint.gguf_vocabulary import TokenType, Vocabulary
from edgellm_export.checkpoint.pretokenizers import FAMILIES, Step

_METASPACE = "\u2581"
# Control tokens that end a turn, as llama.cpp lists end-of-generation tokens by name.
_TURN_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
# In OpenAI's harmony format <|end|> ends a part of the answer, and these end the answer.
_HARMONY_ENDS = ("<|return|>", "<|call|>")


def build_text_files(metadata: Mapping[str, Any]) -> TextFiles:
    """tokenizer.json and its companions for the decoded metadata of a GGUF file.

    Strings are str, or bytes that must be UTF-8; arrays are sequences. Corrupt when the metadata
    contradicts itself, Incompatible when its tokenizer cannot be rebuilt exactly.
    """
    vocabulary = gguf_vocabulary.read(metadata)
    match vocabulary.kind:
        case "gpt2":
            add_bos, tokenizer = _byte_level(vocabulary, metadata)
        case "llama":
            add_bos, tokenizer = _sentencepiece(vocabulary, metadata)
        case other:
            raise Incompatible(
                f"GGUF vocabulary of kind {other!r} cannot be rebuilt exactly (only gpt2 and "
                "llama can); export from the model's Hugging Face folder instead"
            )
    template = gguf_vocabulary.text(metadata, "tokenizer.chat_template")
    return TextFiles(
        tokenizer_json=json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")),
        tokenizer_config=_tokenizer_config(vocabulary, metadata, add_bos, template),
        chat_template=template,
        generation_config=_generation_config(vocabulary),
    )


def _byte_level(vocabulary: Vocabulary, metadata: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    family = FAMILIES.get(vocabulary.pre or "")
    if family is None:
        raise Incompatible(
            f"GGUF pre-tokenizer {vocabulary.pre!r} is not known here, and guessing it would give "
            "wrong token ids; export from the model's Hugging Face folder instead"
        )
    add_bos = family.add_bos if vocabulary.add_bos is None else vocabulary.add_bos
    steps = [_prefixed(step, bool(vocabulary.add_space_prefix)) for step in family.steps]
    model = _bpe(
        vocabulary,
        gguf_vocabulary.merges(metadata, vocabulary),
        ignore_merges=family.ignore_merges,
    )
    return add_bos, _tokenizer(
        vocabulary,
        add_bos=add_bos,
        normalizer=family.normalizer,
        pre_tokenizer=(
            steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
        ),
        decoder={
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        model=model,
    )


def _prefixed(step: Step, add_space_prefix: bool) -> Step:
    return {**step, "add_prefix_space": add_space_prefix} if "add_prefix_space" in step else step


def _sentencepiece(
    vocabulary: Vocabulary, metadata: Mapping[str, Any]
) -> tuple[bool, dict[str, Any]]:
    """SentencePiece BPE with byte fallback, as transformers writes Llama 2's tokenizer.json."""
    if metadata.get("general.architecture") == "phi3":
        raise Incompatible(
            "phi3 drops the spaces after its special tokens, which its GGUF does not say; "
            "export from the model's Hugging Face folder instead"
        )
    missing = [f"<0x{i:02X}>" for i in range(256) if f"<0x{i:02X}>" not in vocabulary.ids]
    if missing:
        raise Incompatible(
            f"the SentencePiece vocabulary lacks {len(missing)} of 256 byte tokens; "
            "export from the model's Hugging Face folder instead"
        )
    add_bos = vocabulary.add_bos is not False
    prefixed = vocabulary.add_space_prefix is not False
    prepend: list[Step] = [{"type": "Prepend", "prepend": _METASPACE}] if prefixed else []
    strip: list[Step] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    model = _bpe(
        vocabulary,
        _ranked_merges(vocabulary, gguf_vocabulary.scores(metadata, vocabulary)),
        unk_token=vocabulary.token("unk"),
        fuse_unk=True,
        byte_fallback=True,
    )
    return add_bos, _tokenizer(
        vocabulary,
        add_bos=add_bos,
        normalizer={"type": "Sequence", "normalizers": [*prepend, _replace(" ", _METASPACE)]},
        pre_tokenizer=None,
        decoder={
            "type": "Sequence",
            "decoders": [
                _replace(_METASPACE, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *(strip if prefixed else []),
            ],
        },
        model=model,
    )


def _replace(old: str, new: str) -> Step:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _ranked_merges(vocabulary: Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, best score first.

    SentencePiece merges the pair whose result scores best, so one score a token is the rank of its
    merges. Ties within a token, and between runs of spaces (all at -1e9 in Llama 2), are ordered
    as in `generate_merges` of transformers/convert_slow_tokenizer.py, which made the published
    files.
    """
    ids = vocabulary.ids
    found: list[tuple[float, int, int, str, str]] = []
    run_of_score: dict[float, bool] = {}  # of those met so far
    for token, kind, score in zip(vocabulary.tokens, vocabulary.types, scores, strict=True):
        cuts = range(1, len(token)) if kind == TokenType.NORMAL else ()
        pairs = [(token[:i], token[i:]) for i in cuts if token[:i] in ids and token[i:] in ids]
        if not pairs:
            continue
        run = len(set(token)) == 1
        if score in run_of_score and not (run and run_of_score[score]):
            raise Incompatible(
                f"SentencePiece tokens share the score {score:g} (one is {token!r:.80}), so the "
                "order of merges is unknown; export from the model's Hugging Face folder instead"
            )
        run_of_score[score] = run
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(score, len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda entry: entry[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _bpe(
    vocabulary: Vocabulary, merges: Iterable[tuple[str, str]], **settings: Any
) -> dict[str, Any]:
    pairs = list(merges)
    spaced = any(" " in left or " " in right for left, right in pairs)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **settings,
        "vocab": dict(vocabulary.ids),
        # Older loaders know only the form "left right", which a space inside would break.
        "merges": pairs if spaced else [f"{left} {right}" for left, right in pairs],
    }


def _tokenizer(vocabulary: Vocabulary, add_bos: bool, **parts: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(vocabulary)),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(vocabulary, add_bos),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def _added_tokens(vocabulary: Vocabulary) -> Iterable[dict[str, Any]]:
    """Tokens that are found in the text as they stand. Unused ones are in the vocabulary only."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    # Gemma's runs of spaces, where a converter left them as SentencePiece writes them; a prefix
    # would be put before them too.
    spaces = vocabulary.kind == "llama" and vocabulary.add_space_prefix is False
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind in (*special, TokenType.USER_DEFINED):
            yield {
                "id": token_id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": spaces and kind == TokenType.USER_DEFINED and _METASPACE in token,
                "special": kind in special,
            }


def _post_processor(vocabulary: Vocabulary, add_bos: bool) -> dict[str, Any] | None:
    head = [vocabulary.token("bos")] if add_bos else []
    tail = [vocabulary.token("eos")] if vocabulary.add_eos else []
    used = {token: vocabulary.ids[token] for token in (*head, *tail) if token is not None}
    if not used:
        return None

    def around(name: str, type_id: int) -> list[dict[str, Any]]:
        sequence = {"Sequence": {"id": name, "type_id": type_id}}
        return [
            *({"SpecialToken": {"id": t, "type_id": type_id}} for t in head if t is not None),
            sequence,
            *({"SpecialToken": {"id": t, "type_id": type_id}} for t in tail if t is not None),
        ]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [token_id], "tokens": [token]}
            for token, token_id in used.items()
        },
    }


def _tokenizer_config(
    vocabulary: Vocabulary, metadata: Mapping[str, Any], add_bos: bool, template: str | None
) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos and vocabulary.token("bos") is not None,
        "add_eos_token": vocabulary.add_eos,
    }
    for role in ("bos", "eos", "unk", "pad"):
        token = vocabulary.token(role)
        if token is not None:
            config[f"{role}_token"] = token
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if isinstance(context, int):
        config["model_max_length"] = context
    if template is not None:
        config["chat_template"] = template
    return config


def _generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    named = [name for name in (*_TURN_ENDS, *_HARMONY_ENDS) if vocabulary.is_control(name)]
    if _HARMONY_ENDS[0] in named:
        named = [name for name in named if name != "<|end|>"]
    roles = [
        vocabulary.special[role] for role in ("eos", "eot", "eom") if role in vocabulary.special
    ]
    ends = list(dict.fromkeys([*roles, *(vocabulary.ids[name] for name in named)]))
    config: dict[str, Any] = {"eos_token_id": ends} if ends else {}
    for role in ("bos", "pad"):
        if role in vocabulary.special:
            config[f"{role}_token_id"] = vocabulary.special[role]
    return config
