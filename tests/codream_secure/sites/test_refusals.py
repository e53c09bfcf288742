"""Every reason for which a site refuses, and the public fact that it depends on.

A refusal is heard by the server. So it must follow from what the server sent, from what this site
has been asked before, from its operator's policy, or from how it was set up: never from data or
model. Two attacks that read private data off refusals are kept here too.
"""

import ast
from pathlib import Path

import msgspec
import pytest
from machines import OPTIONS, asking

from codream_secure.aggregation.requests import LabelRequest
from codream_secure.sites import wire

ROOT = Path(__file__).parents[3]
# Where a site refuses, besides its own room; the protocol's refusals are in SPEC 6.6.
FILES = (
    "flower/secure_mod.py",
    "flower/mean.py",
    "flower/mean_request.py",
    "federation/client.py",
    "federation/answer_rules.py",
    "aggregation/decoding.py",
    "privacy/release_plan.py",
)
# By the public fact: how each text begins; {} stands for what it quotes.
REFUSALS = {
    "the operator's policy": {
        "--graph chosen is made for {} colluders of {}, and this site",
        "a delta of {}",
        "a site that was out is back for the {}th time, and this site",
        "an epsilon of {}",
        "class means rest on others' noise, and without a roster this",
        "noise for {} colluders, and {} must be reckoned with",
        "the sum differs by fewer than {} sites from one about simila",
        "this site does not allow rejoining: rejoin = true in its pol",
        "this site takes part under differential privacy only: --dp-e",
        "this site has spent epsilon for examples alone, which bounds",
        "this site's limit is about the whole site: --dp-unit client",
        "threshold {} of {} is too low: this site counts on up to {} ",
        "with a seed the server knows this site's noise: leave it out",
        "with this run the site would have spent {} {}, and it allows",
        "{} sessions have begun and {} = {}; to admit this one, the s",
        "{} {} is beyond this site's {} = {}",
        "{} {} is not in this site's list {}",
        "{} {} is outside 0 to {}",
    },
    "what this site was asked before": {
        "NO_SESSION",
        "all {} noisy sums are spent",
        "an earlier session asked the same of this site (D1); a run t",
        "no class means are due",
        "round {} comes first",
        "round {} is not the one that this site has finished",
        "step {} after step {} (D1)",
        "the input of step {} was computed before (D5)",
        "the record has no signatures on a sum's survivors",
        "the record lists a step that is not over",
        "the record lists a sum of fewer sites than the threshold",
        "the record lists another sum than this site took part in",
        "the record lists other survivors than this site signed",
        "the record lists this site in a sum that it did not answer",
        "the record names another request than this site answered",
        "the session is known, with other settings",
        "the weight had another name in this session (D2)",
        "the weight was told once (D2){}",
        "weight_cap {}: it was {} when the session began (D2)",
        "weight_cap {}: the weight was told under {} (D2){}",
        "this broadcast was answered before in this session",
        "this site remembers {} requests and forgets none by itself: ",
        "this site was told other things than the server says, or has",
    },
    "how the site was set up": {
        "its images do not have the run's shape; see the site's log"[:60],
        "the run has another number of classes than this site",
        "the folder has no secret for rounding: begin a new run",
        "the server has another run configuration than this client",
        "the server speaks version {} and this site {}: install the s",
        "the server's list of public keys is not this site's roster",
        "this site adds nothing to sums",
        "this site is not set up for the {} model",
        "this site takes part in runs of codream only",
        "this site takes part in sums only",
    },
    "what the server sent": {
        "{} is not what the run's settings resolve to",
        "a request of version {}, not {}",
        "a run of {} sites, and the roster has {}",
        "a noisy sum on terms that this client does not know",
        "a scale is not positive and finite",
        "clip {} is outside [{}, {}]",
        "evaluations have odd steps, and nothing else has",
        "feature statistics are not private and not answered under DP",
        "labels of a step that the record lists no sum of",
        "labels with noise do not travel with a gradient",
        "labels with noise on terms that this client does not know",
        "labels with noise, and nothing else, go with client-level DP",
        "local steps of size {}",
        "no common model in this run",
        "no images have the shape {}",
        "no masked input can answer this: {}",
        "no noisy gradients in this run",
        "this run asks for noisy sums alone",
        "not a canonical request of this version",
        "not a request: {}",
        "not summed labels: {}",
        "reason",
        "sizes and scales are not of the same tensors",
        "statistics on terms that this client does not know",
        "this run asks for no gradients",
        "str(error)",
        "summed labels are larger than answers can make them",
        "summed labels count others than the survivors of their step",
        "summed labels of other dreams than the record's request",
        "summed labels of other sections than the request's",
        "summed labels that are no probabilities",
        "summed labels: {}",
        "the broadcast is of step {}, not {}",
        "the dreams do not fill the announced shape",
        "the run has no adaptive teaching",
        "{}{} {} is not the run's, which is {}",
        "the student's logits do not fit the dreams",
        "this client answers under masks only: use SecureGrid at the ",
        "weight cap {} is outside 0..{}",
        "weights without a cap, or with one that is out of range",
        "what is asked is answered to {} messages only",
        "{} bits a number",
        "{} bits are outside 1..{}",
        "{} dreams are not {} equal batches",
        "{} is not a metric that is summed",
        "{} local steps are outside 1..{}",
    },
}


def text_of(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return node.value if isinstance(node, ast.Constant) else ast.unparse(node)


def refusals():
    code = ROOT / "codream_secure"
    for path in [*(code / "sites").glob("*.py"), *(code / name for name in FILES)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "RequestRefused":
                yield text_of(call.args[0])[:60]


def test_every_refusal_is_listed_with_the_public_fact_it_depends_on():
    listed = [text for texts in REFUSALS.values() for text in texts]
    assert len(set(listed)) == len(listed)
    assert set(refusals()) == set(listed)


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-6, 4.0, 1e300, float("nan")])
def test_a_temperature_singles_no_site_out(machines, temperature):
    """The attack: softmax overflows at the site with the largest logit alone, which refused.

    A search for that temperature read the logit off the refusals to within 0.007.
    """
    there = machines()
    refused, carry = [], there.carry

    def noting(messages):
        answers = carry(messages)
        if any(isinstance(wire.decode(m), wire.Ask) for m in messages.values()):
            refused.append([wire.decode_answer(answers[site]).refused for site in sorted(answers)])
        return answers

    def hot(asked):
        if not isinstance(asked, LabelRequest):
            return asked
        labels = msgspec.structs.replace(asked.labels, temperature=temperature)
        return msgspec.structs.replace(asked, labels=labels)

    there.carry = noting
    there.lie(lambda _, message: asking(message, hot))
    options = {**OPTIONS, "rounds": 1, "dream_steps": 1, "dreams": 4}
    list(there.coordinator(options, evaluates=False).rounds())
    assert len(refused) >= 2
    assert all(len(set(one)) == 1 for one in refused)
    assert any(one[0] for one in refused) == (temperature != 4.0)
