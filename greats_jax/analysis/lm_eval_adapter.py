"""lm-evaluation-harness on our models (extra `lm-eval`): pass a `HarnessModel` to `lm_eval.simple_evaluate`.

What the harness asks is answered by the functions that measure our own tasks, so that on the same prompts both find the
same. Only this module imports the harness, and nothing here or there needs torch.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from greats_jax.data import Encoder, Rendered, Renderer, Template
from greats_jax.errors import TaskError
from greats_jax.models import Decoder
from greats_jax.models.likelihood import continuation_log_likelihoods
from greats_jax.tasks.measuring import written_answers
from greats_jax.training.result import RunResult
from greats_jax.training.setup import load_base, load_trained

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise TaskError("lm-evaluation-harness is not installed: pip install 'greats-jax[lm-eval]'") from None

_ANSWER = 256  # tokens of an answer, unless the task says otherwise
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # first that is given counts


class HarnessModel(TemplateLM):
    """One of our models as lm-evaluation-harness wants it.

    Prompts are split from continuations as the harness does it for its own models: blanks that end a prompt begin the
    continuation. What is too long loses its beginning.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        template: How conversations are written where the harness applies a chat template; as in `DataConfig`.
        batch: Prompts answered at once.
        max_length: Longest prompt and continuation in tokens; None for the positions of the model.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Template = "auto",
        batch: int = 8,
        max_length: int | None = None,
    ):
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch
        self.max_length = min(max_length or sys.maxsize, model.config.max_length)
        self._renderer = Renderer(tokenizer, template)
        self._encoder = Encoder(tokenizer, max_length=sys.maxsize)
        # A chat template writes what begins a text itself, and what it writes begins with a token of its own.
        self._begun = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)

    @classmethod
    def from_run(cls, folder: str | Path, *, base: bool = False, **settings: Any) -> "HarnessModel":
        """The model that a run ended with.

        Args:
            folder: The run folder.
            base: Take the model as the run found it.
            settings: `batch` and `max_length` of the constructor; the template is that of the run.

        Raises:
            GreatsError: The run or its weights cannot be read.
        """
        run = RunResult.load(folder)
        model, tokenizer = load_base(run.config.model, run.config.seed) if base else load_trained(run)
        return cls(model, tokenizer, template=run.config.data.template, **settings)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ends = (self.tokenizer.eos_token_id, *self.model.config.eos_token_ids)
        return next(token for token in (*ends, 0) if isinstance(token, int))

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text of which every token is judged."""
        first = self.tokenizer.bos_token_id
        return first if isinstance(first, int) else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer came from; the harness files cached requests under it."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template as text, for the records of the harness."""
        if not chat_template:
            return None
        return str(self.tokenizer.chat_template) if self._renderer.template == "chat" else self._renderer.template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, whose last turn is left open.

        Args:
            chat_history: Turns with `role` and `content`.
            add_generation_prompt: Whether to open a turn of the assistant; otherwise the last one is the assistant's
                and goes on.
        """
        opening = "" if add_generation_prompt else chat_history[-1]["content"]
        turns = chat_history if add_generation_prompt else chat_history[:-1]
        if self._renderer.template != "chat":
            return "".join(f"<|{turn['role']}|>\n{turn['content']}\n" for turn in turns) + f"<|assistant|>\n{opening}"
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)) + opening

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text; what the tokenizer puts before every text is there once."""
        begins = not string.startswith(self._begun) if add_special_tokens is None else add_special_tokens
        (encoded,) = self._encoder.encode([Rendered(string, (), add_bos=begins)])
        return encoded.input_ids.tolist()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows as long as the model can read."""
        prompts, continuations, owners = [], [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(_args(request)[0], add_special_tokens=False)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                before, judged = make_disjoint_window(window)
                prompts.append(before)
                continuations.append(judged)
                owners.append(number)
        sums, _ = continuation_log_likelihoods(self.model, prompts, continuations, batch=self.batch_size)
        found = [0.0] * len(requests)
        for owner, value in zip(owners, sums.tolist(), strict=True):
            found[owner] += value
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", _args(request), value)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context, up to a stop, which may be a special token, or an end of turn.

        Raises:
            TaskError: A task wants answers drawn at random, or so long that no room is left for a prompt.
        """
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[_settings(_args(request)[1])].append(number)
        answers = [""] * len(requests)
        for (length, stops), members in groups.items():
            room = self.max_length - length
            if room < 1:
                raise TaskError(
                    f"answers of {length} tokens leave no room for a prompt: the model reads {self.max_length}; lower "
                    "max_gen_toks (gen_kwargs)"
                )
            prompts = [self.tok_encode(_args(requests[number])[0])[-room:] for number in members]
            texts = written_answers(self.model, self._renderer, prompts, stops, length, self.batch_size)
            for number, text in zip(members, texts, strict=True):
                answers[number] = text
                self.cache_hook.add_partial("generate_until", _args(requests[number]), text)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        prompts = []
        for (_, text), before, judged in requests:
            room = self.max_length + 1 - len(judged)
            if room < 1:
                raise TaskError(f"the continuation {text[:40]!r} has more tokens than the {self.max_length} to be read")
            prompts.append(before[-room:])
        sums, greedy = continuation_log_likelihoods(
            self.model, prompts, [judged for _, _, judged in requests], batch=self.batch_size
        )
        found = list(zip(sums.tolist(), greedy.tolist(), strict=True))
        for (texts, _, _), one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, one)
        return found


def _args(request: Instance) -> tuple[Any, ...]:
    """What is asked: texts, and for an answer that is written its settings."""
    return tuple(request.args)


def _settings(options: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Greatest number of new tokens, and stops."""
    if options.get("do_sample") and options.get("temperature") != 0:
        raise TaskError("the task wants answers drawn at random (do_sample), but only the likeliest are given here")
    until = options.get("until") or ()
    stops: Sequence[str] = (until,) if isinstance(until, str) else until
    length = next((int(options[name]) for name in _LENGTHS if options.get(name) is not None), _ANSWER)
    return length, tuple(stop for stop in stops if stop)
