"""lm-evaluation-harness on our models: what it finds on the same prompts is what we find."""

import copy
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from greats_jax.data import Encoder, PlainText, Renderer
from greats_jax.errors import TaskError
from greats_jax.models import Decoder, DecoderConfig, combine
from greats_jax.models.generate import generate
from greats_jax.models.likelihood import continuation_log_likelihoods
from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.measuring import measure
from greats_jax.tasks.mmlu import load_mmlu
from greats_jax.tasks.questions import Benchmark, Question

pytest.importorskip("lm_eval")

# What the harness and its dependencies warn of is none of ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SUBJECTS = ("anatomy", "sociology")
LIKE_OURS = (
    "The following are multiple choice questions (with answers) about  {{subject}}.\n\n{{shots}}{{question}}\n"
    "A. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
)


BOTH = [
    pytest.param(("trimmed", "chatml"), id="chat"),
    pytest.param(("blank_first", "none"), id="tulu", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=BOTH)
def tokenizer(request, make_tokenizer):
    return make_tokenizer(*request.param)


@pytest.fixture(scope="module")
def model(tokenizer) -> Decoder:
    """Random, with weights large enough that it has preferences."""
    config = DecoderConfig(
        family="llama", vocab_size=len(tokenizer), width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn_width=32,
        max_length=1024, tied=True, eos_token_ids=(2,),
    )  # fmt: skip
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(config, jax.random.key(0))))
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        scale = path[-1].key == "scale"
        return jnp.asarray(rng.normal(float(scale), 0.1 if scale else 1.0, leaf.shape), leaf.dtype)

    return combine(graphdef, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(shapes)), {})


@pytest.fixture(scope="module")
def harness(model, tokenizer):
    from greats_jax.analysis.lm_eval_adapter import HarnessModel

    return HarnessModel(model, tokenizer, batch=4)


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory) -> tuple[Path, dict[tuple[str, str], list[list[str]]]]:
    """A folder of questions as MMLU is published, and the same rows."""
    folder, rng = tmp_path_factory.mktemp("mmlu"), np.random.default_rng(0)
    rows: dict[tuple[str, str], list[list[str]]] = {}
    for split, count in (("dev", 5), ("test", 9)):
        (folder / split).mkdir()
        for subject in SUBJECTS:
            made = [
                [
                    f"the answer {i} {rng.integers(1000)}?",
                    *(f"cat {rng.integers(100)}" for _ in range(4)),
                    "ABCD"[i % 4],
                ]
                for i in range(count if subject == "anatomy" else count - 3)
            ]
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(made)
            rows[subject, split] = made
    return folder, rows


def task(name: str, docs: list[dict], **settings):
    """A task of the harness on given documents, which nothing is fetched for."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    data = DatasetDict({"test": Dataset.from_list(docs)})
    return ConfigurableTask(config={"task": name, "custom_dataset": lambda **_: data, "test_split": "test", **settings})


def run(harness, tasks, **settings) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    evaluate: Any = lm_eval.simple_evaluate  # its decorator hides what it takes

    # Reading the harness's own 14,000 task files takes ten seconds.
    manager = TaskManager(include_defaults=False)
    found = evaluate(model=harness, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True, **settings)
    assert found is not None
    return dict(found)


def test_mmlu_is_the_same_question_by_question(harness, model, tokenizer, mmlu):
    folder, rows = mmlu
    shots = 2
    config = TaskConfig(name="mmlu", subject=",".join(SUBJECTS), path=str(folder), shots=shots, n_validation=1)
    ours = measure(load_mmlu(config).benchmark, model, tokenizer, batch=4)

    tasks = []
    for subject in SUBJECTS:
        worked = "".join(
            f"{row[0]}\nA. {row[1]}\nB. {row[2]}\nC. {row[3]}\nD. {row[4]}\nAnswer: {row[5]}\n\n"
            for row in rows[subject, "dev"][:shots]
        )
        docs = [
            {
                "subject": subject,
                "shots": worked,
                "question": row[0],
                "choices": row[1:5],
                "answer": "ABCD".index(row[5]),
            }
            for row in rows[subject, "test"]
        ]
        tasks.append(
            task(
                subject, docs, output_type="multiple_choice", doc_to_text=LIKE_OURS, doc_to_target="answer",
                doc_to_choice=list("ABCD"), gen_prefix="The answer is:",
                metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
            )
        )  # fmt: skip
    theirs = run(harness, tasks, apply_chat_template=True)
    for subject in SUBJECTS:
        answers = [answer for answer in ours.answers if answer.group == subject]
        samples = sorted(theirs["samples"][subject], key=lambda sample: sample["doc_id"])
        assert len(samples) == len(answers) >= 6
        found = [[value for ((value, _),) in sample["resps"]] for sample in samples]
        np.testing.assert_allclose(found, [answer.likelihoods for answer in answers], rtol=1e-5)
        assert theirs["results"][subject]["acc,none"] == pytest.approx(ours.groups[subject]["accuracy"])
    assert len({answer.prediction for answer in ours.answers}) > 1


@pytest.mark.slow
def test_cloze_choices_normalised_by_length_are_the_same(harness, model, tokenizer):
    choices = ("the cat", "dog on the mat", "answer 12345, naïve")
    asked = tuple(
        Question(str(i), "", f"what is {i}?", "It is", (" the cat",), tuple(f" {choice}" for choice in choices))
        for i in range(7)
    )
    ours = measure(Benchmark("cloze", asked, "choice", 0, likelihood="per_character"), model, tokenizer)
    docs = [{"question": one.prompt, "choices": list(choices), "label": 0} for one in asked]
    cloze = task(
        "cloze", docs, output_type="multiple_choice", doc_to_text="{{question}}", doc_to_target="label",
        doc_to_choice="choices", gen_prefix="It is", metric_list=[{"metric": "acc_norm"}],
    )  # fmt: skip
    theirs = run(harness, [cloze], apply_chat_template=True)
    assert theirs["results"]["cloze"]["acc_norm,none"] == pytest.approx(ours.scores["accuracy"])
    found = [[value for ((value, _),) in sample["resps"]] for sample in theirs["samples"]["cloze"]]
    np.testing.assert_allclose(found, [answer.likelihoods for answer in ours.answers], rtol=1e-5)


@pytest.mark.slow
def test_written_answers_are_the_same(harness, model, tokenizer):
    prompts = [f"the cat {i} sat on" for i in range(5)]
    settings = {"until": ["th"], "max_gen_toks": 24, "do_sample": False, "temperature": 0.0}
    writing = task(
        "writing", [{"question": prompt, "answer": "x"} for prompt in prompts], output_type="generate_until",
        doc_to_text="{{question}}", doc_to_target="answer", generation_kwargs=settings,
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    theirs = run(harness, [writing])["samples"]["writing"]
    rendered = Encoder(tokenizer, 1000).encode([Renderer(tokenizer).render(PlainText(prompt)) for prompt in prompts])
    tokens = [one.input_ids[:-1].tolist() for one in rendered]  # without the end that plain text is given
    ends = (2, *sorted(Renderer(tokenizer).end_tokens()))
    plainly = generate(model, tokens, max_new_tokens=24, eos_token_ids=ends)
    texts = [tokenizer.decode(row, skip_special_tokens=True).partition("th")[0] for row in plainly]
    assert [sample["resps"][0][0] for sample in sorted(theirs, key=lambda sample: sample["doc_id"])] == texts
    assert len(set(texts)) > 2


def test_an_answer_may_be_cut_at_a_special_token(model, tokenizer):
    from lm_eval.api.instance import Instance

    from greats_jax.analysis.lm_eval_adapter import HarnessModel

    texts = [f"the cat {i}" for i in range(8)]
    prompts = [HarnessModel(model, tokenizer).tok_encode(text) for text in texts]
    ends = (2, *sorted(Renderer(tokenizer).end_tokens()))
    written = generate(model, prompts, max_new_tokens=48, eos_token_ids=ends)
    # One of its tokens that occurs once, and whose name is the text that it stands for, becomes a special one.
    text, free, name, place = next(
        (text, free, name, place)
        for text, free in zip(texts, written, strict=True)
        for place, name in enumerate(tokenizer.convert_ids_to_tokens(free))
        if place and name.isalpha() and name == tokenizer.decode(free[place]) not in tokenizer.decode(free[:place])
    )
    special = copy.deepcopy(tokenizer)
    special.add_special_tokens({"additional_special_tokens": [name]})
    settings = {"until": [name], "max_gen_toks": 48}
    found = HarnessModel(model, special).generate_until([Instance("generate_until", {}, (text, settings), 0)])
    assert found == [tokenizer.decode(free[:place])] != [""]
    assert special.decode(free[place], skip_special_tokens=True) == ""


@pytest.mark.slow
def test_whole_texts_are_judged_in_windows(model, tokenizer):
    from lm_eval.api.instance import Instance

    from greats_jax.analysis.lm_eval_adapter import HarnessModel

    text = "the cat sat on the mat, " * 6
    whole, short = HarnessModel(model, tokenizer), HarnessModel(model, tokenizer, max_length=16)
    asked = [Instance("loglikelihood_rolling", {}, (one,), 0) for one in (text, "the end.")]
    tokens = whole.tok_encode(text, add_special_tokens=False)
    expected, _ = continuation_log_likelihoods(model, [[whole.prefix_token_id]], [tokens])
    assert whole.loglikelihood_rolling(asked)[0] == pytest.approx(expected[0], rel=1e-5)
    found = short.loglikelihood_rolling(asked)
    assert found[0] == pytest.approx(rolled(model, tokens, whole.prefix_token_id, 16), rel=1e-5)
    assert found[1] == pytest.approx(whole.loglikelihood_rolling(asked[1:])[0], rel=1e-5)


def rolled(model, tokens: list[int], prefix: int, size: int) -> float:
    """Every token once: the first `size` after the prefix, then as many at a time with the token before them."""
    first, total = tokens[:size], 0.0
    total += continuation_log_likelihoods(model, [[prefix]], [first])[0][0]
    for start in range(size, len(tokens), size):
        part = tokens[start : start + size]
        before = tokens[start + len(part) - size - 1 : start]
        total += continuation_log_likelihoods(model, [before], [part])[0][0]
    return total


def test_what_is_too_long_loses_its_beginning(model, tokenizer):
    from greats_jax.analysis.lm_eval_adapter import HarnessModel

    short = HarnessModel(model, tokenizer, max_length=8)
    found = short._loglikelihood_tokens([(("", ""), list(range(20, 40)), [41, 42])])
    expected = continuation_log_likelihoods(model, [list(range(33, 40))], [[41, 42]])
    assert found == [(pytest.approx(expected[0][0], rel=1e-5), bool(expected[1][0]))]
    with pytest.raises(TaskError, match="has more tokens than the 8 to be read"):
        short._loglikelihood_tokens([(("", "long"), [1], list(range(20, 40)))])


def test_a_conversation_changes_nothing_for_the_texts_after_it(harness, make_tokenizer):
    from greats_jax.analysis.lm_eval_adapter import HarnessModel

    begins = HarnessModel(harness.model, make_tokenizer("blank_first", "chatml"))
    before = begins.tok_encode("the cat")
    assert len(before) > len(begins.tok_encode("the cat", add_special_tokens=False))
    chat = begins.apply_chat_template([{"role": "user", "content": "the cat"}])
    assert begins.tok_encode(chat) == begins.tok_encode(chat, add_special_tokens=False)
    assert begins.tok_encode("the cat") == before


def test_what_cannot_be_written_is_refused(harness):
    from lm_eval.api.instance import Instance

    for settings, message in (({"do_sample": True, "temperature": 0.7}, "at random"), ({"max_gen_toks": 2000}, "room")):
        with pytest.raises(TaskError, match=message):
            harness.generate_until([Instance("generate_until", {}, ("the cat", settings), 0)])


@pytest.mark.slow
def test_a_run_is_measured_with_its_adapters_and_without(finished_run):
    from greats_jax.analysis.lm_eval_adapter import HarnessModel

    trained = HarnessModel.from_run(finished_run.result.folder, batch=2)
    base = HarnessModel.from_run(str(finished_run.result.folder), base=True)
    pair = [(("", ""), [3, 15], [6, 7])]
    assert trained._loglikelihood_tokens(pair) != base._loglikelihood_tokens(pair)
    assert trained.apply_chat_template([{"role": "user", "content": "say red"}]) == "<user> say red <assistant> "
    assert trained.tok_encode("say red") == [15, 6]


@pytest.mark.slow
def test_nothing_of_the_product_needs_the_harness():
    program = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "import greats_jax.cli.evaluate, greats_jax.analysis\n"
        "try:\n    import greats_jax.analysis.lm_eval_adapter\nexcept ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'greats-jax[lm-eval]'" in done.stdout
