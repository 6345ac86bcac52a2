def test_a_linen_model_learns_from_the_source_of_its_validation_examples(load_program, capsys):
    shares = load_program("examples/linen_model.py").main()
    assert shares["last"] > 0.8
    assert f"last 30 updates {shares['last']:.0%}" in capsys.readouterr().out
