"""The tokenizer that belongs to a model, as a fast tokenizer of transformers."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greats_jax.errors import ModelError
from greats_jax.models.gguf import GgufFile
from greats_jax.models.sources import locate, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONTROL = 3  # ggml's token type of tokens that are never made from text
_USER_DEFINED = 4
# How ggml names the split of text before byte-level BPE; True where digits are split one by one.
_PRE_TOKENIZERS = {"smollm": True, "starcoder": True, "refact": True, "command-r": True, "gpt-2": False}


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer of a model.

    Args:
      source: as for `from_pretrained`. From a directory, tokenizer.json decides (with the special tokens and chat
        template of tokenizer_config.json); from a GGUF file, its metadata.

    Returns:
      A tokenizer with `chat_template` set where the model has one.

    Raises:
      ModelError: if there is none, it is damaged, or it would need code that comes with the model.
    """
    path = locate(source)
    if path.is_file():
        file = GgufFile(path)
        try:
            return tokenizer_from_gguf(file)
        except ModelError:
            raise
        except Exception as error:  # tokenizers raises whatever the first wrong value of the metadata leads to
            raise ModelError(f"{path}: its tokenizer is damaged ({one_line(error)}): get the file again") from error
    # tokenizer.json is taken as it is: the classes named in tokenizer_config.json may rebuild parts of it differently.
    import transformers

    exact = (path / "tokenizer.json").is_file()
    try:
        if exact:
            return transformers.PreTrainedTokenizerFast.from_pretrained(path)
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise unrelated types, among them a bare Exception
        raise ModelError(
            f"no tokenizer could be read from {path} ({one_line(error)}): "
            "the directory needs tokenizer.json, or vocab.json and merges.txt"
        ) from error


def tokenizer_from_gguf(file: GgufFile) -> "PreTrainedTokenizerFast":
    """Builds the byte-level BPE tokenizer in the metadata of a GGUF file.

    Raises:
      ModelError: if the tokenizer is of another kind or incomplete.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, split = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in _PRE_TOKENIZERS:
        raise ModelError(
            f"{file.path} has a tokenizer of kind {kind!r} ({split!r}), which is not read from GGUF: "
            "name the directory with its tokenizer.json"
        )
    tokens, merges = _texts(file, "tokenizer.ggml.tokens"), _texts(file, "tokenizer.ggml.merges")
    splits = [merge.split(" ") for merge in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    for pair in splits:
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise ModelError(f"{file.path}: merge {' '.join(pair)!r} names a token that is not in the vocabulary")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(left, right) for left, right in splits]))
    bytes_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if _PRE_TOKENIZERS[split] else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_level])
    tokenizer.decoder = decoders.ByteLevel()
    types = file.metadata.get("tokenizer.ggml.token_type") or []
    for token, token_type in zip(tokens, types, strict=False):
        if token_type in (_CONTROL, _USER_DEFINED):
            special = token_type == _CONTROL
            added = [AddedToken(token, special=special, normalized=False)]
            tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    named: dict[str, Any] = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = file.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            named[f"{ours}_token"] = tokens[index]
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=file.metadata.get("llama.context_length", 2048),
        clean_up_tokenization_spaces=False,
        **named,
    )
    with contextlib.suppress(KeyError):
        result.chat_template = file.metadata["tokenizer.chat_template"]
    return result


def _texts(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise ModelError(f"{file.path} has no {key}: name a directory with a tokenizer.json")
    return value
