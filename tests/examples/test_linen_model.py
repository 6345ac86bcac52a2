def test_a_linen_model_learns_from_the_source_of_its_validation_examples(load_example, capsys):
    shares = load_example("linen_model").main()
    assert shares["last"] > 0.8
    assert f"last 30 updates {shares['last']:.0%}" in capsys.readouterr().out
