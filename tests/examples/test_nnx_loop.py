import re


def test_two_lines_make_the_loop_selective_and_better(repository, load_program, capsys):
    example = load_program("examples/nnx_loop.py")
    selective = example.main()
    source = (repository / "examples" / "nnx_loop.py").read_text(encoding="utf-8")
    # Each plain line takes the place of the selective line below it.
    plain, changed = re.subn(r"# plain: (.*)\n.*", r"\1", source)
    assert changed == 2
    names = {"__name__": "plain"}
    exec(plain, names)
    assert selective < names["main"]() - 0.1  # pyright: ignore[reportCallIssue]
    assert capsys.readouterr().out.startswith(
        f"After {example.STEPS} updates a letter of good English costs {selective:.2f}"
    )
