"""How answers are judged: against published rules, against rouge-score, and against lm-evaluation-harness."""

import gzip
import json
import sys
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greats_jax.errors import TaskError
from greats_jax.tasks import metrics
from greats_jax.tasks.metrics import METRICS, check_metric, conclusion, final_number, normalise_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Apple", "apple"),
        ("an apple, a day.", "apple day"),
        ("  U.S.A.  \n 1945 ", "usa 1945"),
        ("theatre another Than", "theatre another than"),  # articles are whole words
        ("state-of-the-art", "stateoftheart"),  # punctuation goes first, so its articles are no words any more
        ("“the” – 178 см", "“ ” – 178 см"),  # punctuation is that of ASCII
        ("La Plata; EL NIÑO", "la plata el niño"),
        ("...", ""),
        ("the", ""),
    ],
)
def test_normalised_answers(text, normal):
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "f1", "exact"),
    [
        ("1453", ("1453",), 1, 1),
        ("in the year 1453", ("1453",), 0.5, 0),  # 1 of 3 words said ("the" is none), 1 of 1 wanted
        ("14. helmikuuta 1994", ("helmikuuta 1994 14",), 1, 0),  # order does not matter for F1
        ("the the cat", ("cat cat",), 2 / 3, 0),  # a word counts as often as both have it
        ("1978", ("1978 hingga 1984", "1978"), 1, 1),  # the best of the answers
        ("blue", ("red", "green"), 0, 0),
        ("", ("red",), 0, 0),
        ("The", ("a",), 0, 1),  # nothing is left of both: equal, yet without a common word
        ("사람으로는 전파되지", ("사람으로는 전파되지 않는다",), 0.8, 0),
    ],
)
def test_f1_of_words(prediction, answers, f1, exact):
    assert METRICS["f1"](prediction, answers) == pytest.approx({"f1": f1, "exact_match": exact})


WORDS = st.text(alphabet="ab 1.,-'theAN\n", max_size=30)


@given(prediction=WORDS, answers=st.lists(WORDS, min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_f1_is_that_of_the_evaluation_harness(prediction, answers):
    theirs = pytest.importorskip("lm_eval.tasks.tydiqa.utils")
    assert METRICS["f1"](prediction, answers) == pytest.approx(
        {
            "f1": theirs.metric_max_over_ground_truths(theirs.f1_score, prediction, answers, "en"),
            "exact_match": float(
                theirs.metric_max_over_ground_truths(theirs.exact_match_score, prediction, answers, "en")
            ),
        }
    )


def test_rouge_of_known_sentences():
    scores = METRICS["rouge"]("the cat sat on the mat", ("the cat was on the mat",))
    # 5 of 6 words, 3 of 5 pairs, and 5 words in common order.
    assert scores == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})
    assert METRICS["rouge"]("mat the on", ("on the mat",)) == pytest.approx({"rouge1": 1, "rouge2": 0, "rougeL": 1 / 3})
    assert METRICS["rouge"]("cats", ("cat",))["rouge1"] == 0  # no stemming
    assert METRICS["rouge"]("", ("cat",)) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
    best = METRICS["rouge"]("a b", ("c d", "a b"))
    assert best == {"rouge1": 1, "rouge2": 1, "rougeL": 1}


@given(prediction=st.text(alphabet="abc de.\n", max_size=40), answer=st.text(alphabet="abc de.\n", max_size=40))
@settings(max_examples=100, deadline=None)
def test_rouge_is_that_of_the_package(prediction, answer):
    from rouge_score import rouge_scorer

    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(answer, prediction)
    assert METRICS["rouge"](prediction, (answer,)) == {name: score.fmeasure for name, score in theirs.items()}


def test_rouge_without_its_package(monkeypatch):
    metrics._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(TaskError, match="pip install rouge-score"):
        check_metric("rouge")
    monkeypatch.undo()
    check_metric("rouge")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("... 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("#### 1,450,000", "1450000"),
        ("#### -3.50", "-3.5"),
        ("#### $12", "12"),
        ("The answer is 42.", "42"),
        ("She pays 3 + 4 = 7 dollars, so $7.", "7"),
        ("it costs 2,125, or so", "2125"),
        ("#### 2\n\nQ2: 5+5 #### 10", "2"),
        ("#### none\n\nQ2: 5+5 #### 10", "10"),
        ("####\n72", "72"),
        ("5 apples #### none", "5"),
        ("a loss of -12%", "-12"),
        (".5", "0.5"),
        ("none", None),
        ("", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "strict"),
    [
        ("so 18\n#### 18", "18", 1, 1),
        ("so it is 18.", "18", 1, 0),  # the number is right, the form is not the published one
        ("#### 70,000", "70000", 1, 1),
        ("#### 18.0", "18", 1, 0),
        ("#### 18.", "18", 1, 1),
        ("#### 18\n\nQ2: 5 + 5 = #### 10", "18", 1, 1),
        ("#### 19, not 18", "18", 0, 0),
        ("nothing", "18", 0, 0),
    ],
)
def test_numbers(prediction, answer, exact, strict):
    assert METRICS["number"](prediction, (answer,)) == {"exact_match": exact, "strict_match": strict}


def real_solutions(shared):
    with gzip.open(shared / "data" / "eval" / "gsm8k_test.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line in lines]


def test_real_solutions_end_with_their_numbers(shared):
    solutions = real_solutions(shared)
    assert len(solutions) == 1319
    for solution in solutions:
        answer = solution.rpartition("####")[2].strip().replace(",", "")
        assert METRICS["number"](solution, (answer,)) == {"exact_match": 1, "strict_match": 1}
        assert METRICS["number"](solution.replace("#### ", "The answer is "), (answer,))["exact_match"] == 1
        assert METRICS["number"](solution + "1", (answer,)) == {"exact_match": 0, "strict_match": 0}


def test_numbers_are_those_of_the_evaluation_harness(shared):
    filters = pytest.importorskip("lm_eval.filters.extraction")
    strict = filters.RegexFilter(r"#### (\-?[0-9\.\,]+)")
    flexible = filters.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    solutions = real_solutions(shared)
    answers = [solution.rpartition("####")[2].strip().replace(",", "") for solution in solutions]
    said = [s.replace("####", "the answer is $") if n % 2 else s for n, s in enumerate(solutions)]
    for text, answer, (marked,), (last,) in zip(
        said, answers, strict.apply([[s] for s in said], []), flexible.apply([[s] for s in said], []), strict=True
    ):
        ours = METRICS["number"](text, (answer,))
        assert ours["strict_match"] == (marked.replace(",", "") == answer)
        assert ours["exact_match"] == (last.replace(",", "").replace("$", "") == answer) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Let's think step by step.\nSo the answer is (B).", "(B)"),
        ("The answer is: Yes.", "Yes"),
        ("so the answer is ] } ].", "] } ]"),
        ("the answer is 3. No, the answer is 4.\n\nmore", "4"),
        ("the answer is\nTrue", "True"),
        ("barn damp dot", "barn damp dot"),
        ("", ""),
    ],
)
def test_conclusions(text, said):
    assert conclusion(text) == said


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("So the answer is (A).", "(A)", 1),
        ("So the answer is A.", "(A)", 1),
        ("So the answer is (A) 05/01/2021.", "(A)", 1),
        ("So the answer is (AB).", "(A)", 0),
        ("So the answer is (B) or (A).", "(A)", 0),
        ("So the answer is yes.", "Yes", 1),
        ("So the answer is not valid.", "valid", 0),
        ("So the answer is ] ) ).", "] ) )", 1),
        ("So the answer is ] ) ].", "] ) )", 0),  # brackets are not punctuation that may be left out
        ("So the answer is -19.", "-19", 1),
        ("So the answer is 19.", "-19", 0),
        ("So the answer is  barn  damp.", "barn damp", 1),
        ("So the answer is dearth, wind, & fire.", "dearth, wind, & fire", 1),
        ("", "(A)", 0),
    ],
)
def test_chains_of_thought(prediction, answer, right):
    assert METRICS["bbh"](prediction, (answer,)) == {"exact_match": right}


def test_simple_metrics():
    assert METRICS["choice"](" A", (" A",)) == {"accuracy": 1}
    assert METRICS["choice"](" B", (" A", " C")) == {"accuracy": 0}
    assert METRICS["exact"](" Paris\n", ("Paris",)) == {"exact_match": 1}
    assert METRICS["exact"]("paris", ("Paris",)) == {"exact_match": 0}
    assert METRICS["contains"]("It is in  NEW\nYork, I think", ("new york",)) == {"contains": 1}
    assert METRICS["contains"]("It is in York", ("new york",)) == {"contains": 0}


@given(name=st.sampled_from(sorted(METRICS)), prediction=st.text(max_size=40), answer=st.text(min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_every_metric_judges_every_text(name, prediction, answer):
    scores = METRICS[name](prediction, (answer,))
    assert all(isinstance(score, float) and 0 <= score <= 1 for score in scores.values())
    assert METRICS[name](prediction, (answer, "something else")).keys() == scores.keys()


def test_unknown_metric():
    with pytest.raises(TaskError, match="the metric 'bleu' is unknown: expected one of choice, exact"):
        check_metric("bleu")
