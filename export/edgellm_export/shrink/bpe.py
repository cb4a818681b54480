"""A tokenizer.json with fewer tokens, which still encodes every text.

A token of a BPE vocabulary is made by merges, each of which makes a token too. Whoever keeps a
token keeps what it is made of; merges that make a token that has gone go as well. Then a text whose
old tokens are all kept gets the same tokens: at each step the old tokenizer took the first merge
that applied, and that one is still there, with none before it. Any other text falls to shorter
tokens, at worst to single bytes.
Source: huggingface/tokenizers, models/bpe/{model,word}.rs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from edgellm.errors import Incompatible

Pair = tuple[str, str]


class Vocabulary:
    """The BPE model in the contents of a tokenizer.json; Incompatible for any other kind."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        model = content["model"]
        odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
        if model.get("type") != "BPE" or odd:
            what = odd[0] if odd else model.get("type")
            raise Incompatible(
                f"a tokenizer with {what} cannot be trimmed, only BPE; leave out --keep-vocab and "
                "--keep-script"
            )
        self.ids: dict[str, int] = model["vocab"]
        self.added: dict[str, int] = {
            token["content"]: token["id"] for token in content["added_tokens"]
        }
        self.whole_words = bool(model.get("ignore_merges"))
        self._byte_fallback = bool(model.get("byte_fallback"))
        self._unknown: str | None = model.get("unk_token")
        self._ranks: dict[Pair, int] = {}
        for rank, merge in enumerate(model["merges"]):
            self._ranks.setdefault(pair(merge), rank)

    def always(self) -> set[int]:
        """Tokens without which some text could not be encoded, and those found as they stand."""
        if self._byte_fallback:
            spelled = [f"<0x{byte:02X}>" for byte in range(256)]
        else:
            spelled = [token for token in self.ids if len(token) == 1]
        if self._unknown is not None:
            spelled.append(self._unknown)
        return {*self.added.values(), *(self.ids[token] for token in spelled if token in self.ids)}

    def reachable(self, token: str) -> bool:
        """Whether merges, or a look-up of the whole word, ever give this token."""
        return self.whole_words or self._made(token)[1] == 1

    def closed(self, wanted: Iterable[int]) -> set[int]:
        """`wanted` with all that they are made of."""
        tokens = {token_id: token for token, token_id in self.ids.items()}
        kept = set(wanted)
        for token_id in tuple(kept):
            token = tokens.get(token_id)
            if token is not None and token not in self.added:
                kept |= {self.ids[part] for part in self._made(token)[0] if part in self.ids}
        return kept

    def _made(self, token: str) -> tuple[set[str], int]:
        """The tokens met while `token` is put together alone, and how many are left at the end.

        In a longer word it goes the same way: nothing has crossed its borders when it is done.
        """
        parts = list(token)
        met = set(parts)
        while len(parts) > 1:
            ranked = [
                (self._ranks[two], i) for i, two in enumerate(pairwise(parts)) if two in self._ranks
            ]
            if not ranked:
                break
            at = min(ranked)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            met.add(parts[at])
        return met, len(parts)


def pair(merge: str | Sequence[str]) -> Pair:
    """The two tokens of a merge, in either of the forms a tokenizer.json has."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def trimmed(content: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """The contents of a tokenizer.json with the tokens in `new_ids` only, under these ids."""
    model = content["model"]
    vocab = {token: new_ids[i] for token, i in model["vocab"].items() if i in new_ids}
    merges = [merge for merge in model["merges"] if _kept(pair(merge), vocab)]
    return {
        **content,
        "added_tokens": [
            {**token, "id": new_ids[token["id"]]}
            for token in content["added_tokens"]
            if token["id"] in new_ids
        ],
        "post_processor": _post_processor(content.get("post_processor"), new_ids),
        "padding": _padding(content.get("padding"), new_ids),
        "model": {**model, "vocab": vocab, "merges": merges},
    }


def _kept(merge: Pair, vocab: Collection[str]) -> bool:
    left, right = merge
    return left in vocab and right in vocab and left + right in vocab


def _padding(padding: Mapping[str, Any] | None, new_ids: Mapping[int, int]) -> Any:
    return padding and {**padding, "pad_id": new_ids.get(padding["pad_id"], 0)}


def _post_processor(step: Mapping[str, Any] | None, new_ids: Mapping[int, int]) -> Any:
    """The step that adds BOS and its like, with their new ids; an unknown one is refused."""
    match step:
        case None | {"type": "ByteLevel"}:
            return step
        case {"type": "Sequence", "processors": list(steps)}:
            return {**step, "processors": [_post_processor(one, new_ids) for one in steps]}
        case {"type": "TemplateProcessing", "special_tokens": dict(tokens)}:
            moved = {
                name: {**token, "ids": [new_ids[i] for i in token["ids"]]}
                for name, token in tokens.items()
            }
            return {**step, "special_tokens": moved}
        case {"type": "RobertaProcessing" | "BertProcessing", "sep": sep, "cls": cls}:
            return {**step, "sep": [sep[0], new_ids[sep[1]]], "cls": [cls[0], new_ids[cls[1]]]}
        case _:
            raise Incompatible(
                f"a tokenizer with the post-processor {step.get('type')!r} cannot be trimmed; "
                "leave out --keep-vocab and --keep-script"
            )


def post_processor_ids(step: Mapping[str, Any] | None) -> set[int]:
    """The ids that it adds."""
    match step:
        case {"type": "Sequence", "processors": list(steps)}:
            return set().union(*map(post_processor_ids, steps))
        case {"type": "TemplateProcessing", "special_tokens": dict(tokens)}:
            return {i for token in tokens.values() for i in token["ids"]}
        case {"type": "RobertaProcessing" | "BertProcessing", "sep": sep, "cls": cls}:
            return {sep[1], cls[1]}
        case _:
            return set()
