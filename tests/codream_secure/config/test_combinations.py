"""An option that would be accepted and ignored is refused, in one line."""

import pytest

TINY = [
    "simulate",
    *("--clients", "4", "--rounds", "1", "--models", "linear", "--seed", "0"),
    *("--dreams", "4", "--dream-steps", "1", "--kd-epochs", "1"),
]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threat-model", "malicious", "--no-secure"), "--no-secure"),
        (("--rejoin",), "--threat-model malicious"),
        (("--key-steps", "2000"), "--key-steps must be from 1 to 1024, not 2000"),
        (("--latent", "8"), "--latent needs --method codream-fast"),
        (("--method", "codream-fast", "--dream-lr", "0.1"), "use --generator-lr"),
        (("--local-size", "0.3"), "--local-size needs --local-steps above 1"),
        (("--adaptive-start", "3"), "needs --adaptive jsd or kl"),
        (("--no-collaboration", "--adaptive", "jsd"), "the server has no student"),
        (("--no-collaboration", "--threat-model", "malicious"), "nothing is aggregated"),
        (("--weight-cap", "5"), "needs --weights examples"),
        (
            ("--prior-correction", "0.5", "--dp-eps", "8"),
            "--prior-correction cannot be used with --dp-eps: class frequencies are private",
        ),
        (("--weights", "examples", "--dp-eps", "8"), "--weights cannot be used with --dp-eps"),
        (("--models", "linear,mlp", "--norm", "group"), "--norm changes none of --models"),
        (("--dp-eps", "8", "--norm", "group", "--models", "auto"), "--norm changes none"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(run, options, words):
    code, _, err = run(*TINY, *options)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
