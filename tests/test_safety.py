"""What comes from elsewhere is data: it runs nothing, and is written nowhere but into the run folder."""

import ast
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from greats_jax.data.formats import BadRecord, Conversation, Message
from greats_jax.data.rendering import Renderer
from greats_jax.errors import ModelError
from greats_jax.models import from_pretrained, load_adapter, load_tokenizer
from greats_jax.training.config_loading import load_config
from greats_jax.training.trainer import Trainer

# Modules that run or unpack what they are given.
RUNS_WHAT_IT_READS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch"}
UNPACKS = {"tarfile", "zipfile"}
STARTS_PROGRAMS = {"subprocess", "pty"}
CALLS = {"eval", "exec", "compile", "__import__", "load_module", "unpack_archive", "system", "popen"}

_heard: list[tuple[str, str]] | None = None
_hears = False


@contextmanager
def audited() -> Iterator[list[tuple[str, str]]]:
    """Hears what the interpreter does meanwhile: unpickling, starting of programs, connecting, writing of files."""
    global _heard, _hears
    if not _hears:  # a hook cannot be taken away again, so it listens only here
        sys.addaudithook(_hook)
        _hears = True
    _heard = []
    try:
        yield _heard
    finally:
        _heard = None


def _hook(event: str, arguments: tuple) -> None:
    if _heard is None:
        return
    if event in ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "socket.connect"):
        _heard.append((event, repr(arguments)[:200]))
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _heard.append((event, str(arguments[0])))


def ran(heard: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What was heard beside the writing of files."""
    return [(event, what) for event, what in heard if event != "open"]


def sources(repository: Path) -> list[Path]:
    return [path for folder in ("greats_jax", "scripts", "examples") for path in (repository / folder).rglob("*.py")]


def test_no_module_of_ours_can_run_what_it_reads(repository):
    """The one that runs files is for rules of the user's own, which she names herself."""
    found = set()
    for path in sources(repository):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module.split(".")[0]]
            elif isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                # A compiled step or expression is no text that is run.
                names = [called] if called in CALLS and not (called == "compile" and _compiles(node)) else []
                wished = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if (
                    wished.get("trust_remote_code", "False") != "False"
                    or wished.get("allow_pickle", "False") != "False"
                ):
                    names.append("remote code or pickles")
            dangerous = {*RUNS_WHAT_IT_READS, *UNPACKS, *STARTS_PROGRAMS, *CALLS, "runpy", "remote code or pickles"}
            found |= {(path.relative_to(repository).as_posix(), name) for name in names if name in dangerous}
    package = {(path, name) for path, name in found if path.startswith("greats_jax/")}
    # BIG-Bench-Hard comes as an archive, which is read in memory: nothing in it becomes a file.
    assert package == {("greats_jax/training/own_rules.py", "runpy"), ("greats_jax/tasks/bbh.py", "tarfile")}
    reader = (repository / "greats_jax" / "tasks" / "bbh.py").read_text(encoding="utf-8")
    assert ".extractall(" not in reader
    assert ".extract(" not in reader
    assert {name for path, name in found - package} <= STARTS_PROGRAMS, "a benchmark may start programs, no more"


def _compiles(node: ast.Call) -> bool:
    """Whether a call of `compile` is one of `re`, or of a lowered JAX program, which takes nothing."""
    return isinstance(node.func, ast.Attribute) and (ast.unparse(node.func.value) == "re" or not node.args)


def test_the_data_sets_library_is_one_that_runs_no_scripts(repository):
    """Since version 4 data sets with code of their own are refused by it."""
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [floor] = [Requirement(text) for text in project["dependencies"] if text.startswith("datasets")]
    assert not floor.specifier.contains(Version("3.99"))


@pytest.fixture
def hostile_model(tiny_model, tmp_path) -> Path:
    """The tiny model with everything beside it that other programs would run."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    program = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py"):
        (folder / name).write_text(program)
    for name, classes in (
        ("config.json", {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_evil.Evil", None]}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": classes}))
    for name in ("pytorch_model.bin", "adapter_model.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    return folder


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_the_bomb_would_go_off(tmp_path):
    """The tests below could not fail otherwise."""
    with audited() as heard:
        pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()
    assert any(event == "pickle.find_class" for event, _ in heard)


def test_code_beside_a_model_is_never_run(hostile_model, tmp_path):
    with audited() as heard:
        from_pretrained(hostile_model)
        load_tokenizer(hostile_model)
    assert ran(heard) == []
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused_unread(hostile_model, tiny_model, tmp_path):
    (hostile_model / "model.safetensors").unlink()
    with audited() as heard:
        with pytest.raises(ModelError, match=r"only pickled weights .* never loaded"):
            from_pretrained(hostile_model)
        (hostile_model / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
        )
        with pytest.raises(ModelError, match="read from safetensors only"):
            load_adapter(from_pretrained(tiny_model), hostile_model)
    assert ran(heard) == []
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{% for a in range(999999999) %}{% endfor %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(attack, make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer()
    renderer = Renderer(tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", attack)
    with audited() as heard, pytest.raises(BadRecord, match="chat template refuses"):
        renderer.render(Conversation((Message("user", "a"), Message("assistant", "b"))))
    assert ran(heard) == []


def test_what_a_template_is_given_is_not_a_template(make_tokenizer):
    said = "{{ 7 * 7 }}{% raw %}"
    rendered = Renderer(make_tokenizer()).render(Conversation((Message("user", said), Message("assistant", "b"))))
    assert said in rendered.text


def test_a_run_on_hostile_names_writes_into_its_folder_only(config_file, hostile_model, tiny_data, tmp_path):
    """Ids, sources and a subject that are paths; a template of the whole tree would show what went elsewhere."""
    names = [
        "../../escaped",
        "/escaped",
        "~/escaped",
        "a/../../escaped",
        "C:\\escaped",
        "..",
        "{output}",
        "$HOME/escaped",
    ]
    rows = (tiny_data / "copy.jsonl").read_text().splitlines()
    hostile = [
        json.dumps(json.loads(row) | {"id": f"{names[i % 8]}-{i}", "kind": names[i % 8]}) for i, row in enumerate(rows)
    ]
    (tmp_path / "hostile.jsonl").write_text("\n".join(hostile))
    config = load_config(
        config_file,
        [
            f"model={hostile_model}",
            f"data.sources=[{{path: {tmp_path}/hostile.jsonl, label_field: kind}}]",
            f"output={tmp_path}/{{task}}-run",
            "task.subject=../../elsewhere",
            "checkpoint.every_steps=1",
        ],
    )
    before = everything(tmp_path)
    with audited() as heard:
        result = Trainer(config).fit()
    run = tmp_path / "elsewhere-run"
    assert result.folder == run
    assert {name for name in names if any(row["sources"].count(name) for row in result.selections)}
    assert {path for path in everything(tmp_path) - before if path != run and run not in path.parents} == set()
    written = [Path(name) for event, name in heard if event == "open"]
    assert run / "selections.jsonl" in written
    # The second is no file: it makes the system count this process's memory anew.
    expected = os.environ["JAX_COMPILATION_CACHE_DIR"], "/proc/self/clear_refs"
    outside = [path for path in written if run not in path.parents and not any(one in str(path) for one in expected)]
    assert outside == []
    assert ran(heard) == []


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))
