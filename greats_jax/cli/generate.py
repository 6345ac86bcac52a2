"""`greats generate`."""

import argparse
import json
import sys
from pathlib import Path

from greats_jax.data import Encoder, Rendered, Renderer
from greats_jax.errors import RunError
from greats_jax.models.generate import generate as continue_prompts
from greats_jax.training.result import RunResult
from greats_jax.training.setup import load_base, load_trained

_ROWS = 8  # prompts answered at once
_LONGEST = 128  # tokens of an answer, unless asked otherwise


def generate(arguments: argparse.Namespace) -> int:
    """Answer one prompt on standard output, or each prompt of a file as a JSON line."""
    run = RunResult.load(arguments.folder)
    prompts = [arguments.prompt] if arguments.file is None else read_prompts(Path(arguments.file))
    model, tokenizer = load_base(run.config.model, run.config.seed) if arguments.base else load_trained(run)
    renderer = Renderer(tokenizer, run.config.data.template)
    rows = encode_prompts(prompts, renderer, raw=arguments.raw)
    room = model.config.max_length - max(len(row) for row in rows)
    max_tokens = arguments.max_tokens or max(1, min(_LONGEST, room))
    ends = tuple(sorted({*model.config.eos_token_ids, *renderer.end_tokens()}))
    for start in range(0, len(rows), _ROWS):
        answers = continue_prompts(
            model,
            rows[start : start + _ROWS],
            max_new_tokens=max_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed + start,
            eos_token_ids=ends,
        )
        for prompt, answer in zip(prompts[start:], answers, strict=False):
            text = tokenizer.decode(answer, skip_special_tokens=True)
            if arguments.file is None:
                print(text)
            else:
                print(json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False), flush=True)
    if arguments.file is not None:
        print(f"{len(prompts)} prompts answered", file=sys.stderr)
    return 0


def encode_prompts(prompts: list[str], renderer: Renderer, raw: bool) -> list[list[int]]:
    """Tokens of prompts, each opened for the assistant with the template the run trained with, or as plain text."""
    rendered = [
        Rendered(prompt, (), add_bos=True) if raw else renderer.render_question(prompt, "", "") for prompt in prompts
    ]
    # The model itself refuses what is too long for it; a prompt must not silently lose its end here.
    encoder = Encoder(renderer.tokenizer, max_length=sys.maxsize)
    return [encoded.input_ids.tolist() for encoded in encoder.encode(rendered)]


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: the field `prompt` of JSON lines (.jsonl), or every line that is not blank.

    Raises:
        RunError: The file cannot be read, holds no prompt, or a line of JSON has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read as a file of prompts ({error})") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            prompts.append(line)
            continue
        try:
            prompts.append(json.loads(line)["prompt"])
        except (json.JSONDecodeError, KeyError, TypeError):
            raise RunError(f'{path}:{number}: not a JSON object with a field "prompt"') from None
        if not isinstance(prompts[-1], str):
            raise RunError(f'{path}:{number}: the field "prompt" is not text')
    if not prompts:
        raise RunError(f"{path}: holds no prompt; write one a line")
    return prompts
