"""Disables every check of the protocol in turn, and requires that a test fails for each.

    python tests/protocols/mutations.py [WORD]

Works on a copy of the package in a temporary folder. A mutation replaces text that must stand in
its file exactly once: one that does not fit the code any more is an error, not a pass. WORD
selects the mutations whose description contains it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("protocols", "codream_secure", "tests")


@dataclass(frozen=True)
class Mutation:
    """One check less.

    Args:
        what: the check.
        file: where it stands, from the root.
        old: its code, once in the file.
        new: the code without it.
        tests: where it must be missed: test files, and perhaps -k.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def tests(*names: str) -> tuple[str, ...]:
    """Return the paths of test files of this folder: `room/test_name`, both given as room/name."""
    places = [name.rpartition("/") for name in names]
    return tuple(f"tests/protocols/{room}{slash}test_{name}.py" for room, slash, name in places)


MACHINES = tests(
    "client/session", "client/offline", "client/step",
    "server/session", "server/offline", "server/step", "sessions",
)  # fmt: skip
MALICIOUS = tests("malicious_model", "policy", "client/durable")
BATCHES = tests("key_batches")
LOST = tests("lost_pairs")
CODEC = tests("messages")
CONTEXTS = tests("context")
PARTS = tests("primitives/shamir", "primitives/keys", "params")
PACKING = tests("primitives/field", "primitives/packing", "primitives/prg")
QUANTIZER = tests("quantization")
AUDIT_CODEC = (*tests("audit/run"), "-k", "test_property and codec")
AUDIT_RECORDS = (*tests("audit/decoders"), "-k", "test_records")
FAULTS = tests("faults_of_others")
WRONG = tests("server/recovery", "primitives/decoding", "seeds")
BLAME = tests("blame_and_limits", "seeds", "params")
RING = tests("ring_sessions")
CHOSEN = tests("chosen")
CHOSEN_BAD = (*tests("vectors"), "-k", "bad_chosen or negative")
STEP = tests("client/step")
SITES = ("tests/codream_secure/sites/test_answers.py",)
CLIENT_RULES = ("tests/codream_secure/federation/test_client.py",)
WEIGHTS = ("tests/codream_secure/flower/test_secure_mod.py", "-k", "weight or cap")
PRESENCE = ("tests/codream_secure/sites/test_presence.py",)
PENDING = "codream_secure/sites/pending.py"
PENDING_TESTS = ("tests/codream_secure/sites/test_pending.py",)
UNIT = ("tests/codream_secure/sites/test_run_terms.py",)
COHORTS = ("tests/codream_secure/sites/test_cohorts.py",)
TOLD = ("tests/codream_secure/sites/test_told_labels.py",)
MOD = ("tests/codream_secure/flower/test_secure_mod.py", "-k", "look_alike")

CLIENT = "protocols/client/session.py"
OFFLINE = "protocols/client/offline.py"
DIRECTORIES = "protocols/client/directories.py"
CONSISTENCY = "protocols/server/consistency.py"
GRAPH = "protocols/graph.py"
SERVER = "protocols/server/session.py"
CLIENT_STEP = "protocols/client/step.py"
CLIENT_STATES = "protocols/client/states.py"
BUNDLES = "protocols/client/bundles.py"
DURABLE = "protocols/client/durable.py"
SERVER_OFFLINE = "protocols/server/offline.py"
SERVER_STEP = "protocols/server/step.py"
RECOVERY = "protocols/server/recovery.py"
MESSAGES = "protocols/messages.py"
SEEDS = "protocols/seeds.py"
DECODING = "protocols/primitives/decoding.py"
SHAMIR = "protocols/primitives/shamir.py"
POLICY = "protocols/policy.py"


def refusal(what: str, file: str, condition: str, where: tuple[str, ...]) -> Mutation:
    """An `if CONDITION:` whose body raises, never taken."""
    return Mutation(what, file, f"if {condition}:", "if False:", where)


TOO_LONG = 600  # seconds that the tests of one mutant may take

MUTATIONS = [
    # Unmasking
    refusal("U3 within the active set", CLIENT_STEP,
        "not set(survivors) <= {*current.held, *current.non_neighbours}",
        MACHINES),
    refusal("self among the survivors", CLIENT_STEP, "party.client not in survivors", MACHINES),
    refusal("|U3| at the client", CLIENT_STEP, "len(survivors) < party.batch.threshold", MACHINES),
    Mutation(
        "one kind of share per peer", CLIENT_STEP,
        "shares.self_mask if peer in survivors else shares.mask_key", "shares.mask_key", MACHINES,
    ),
    Mutation(
        "shares leave once", CLIENT,
        "self._state = msgspec.structs.replace(state, current=None)", "self._state = state",
        MACHINES,
    ),
    Mutation(
        "no unmasking before the consistency round", CLIENT,
        'Phase.UNMASKING, (Masked,), SurvivorSet, step.unmask, (Prepared,), "semi-honest"',
        "Phase.UNMASKING, (Masked,), SurvivorSet, step.unmask, (Prepared,)", MALICIOUS,
    ),
    # Consistency
    refusal(
        "signers and signatures", CLIENT_STEP, "len(signers) != len(message.signatures)", MALICIOUS
    ),
    refusal(
        "signers within U3", CLIENT_STEP, "not set(signers) <= set(current.survivors)", MALICIOUS
    ),
    refusal("signatures count", CLIENT_STEP, "len(signers) < needed", MALICIOUS),
    Mutation(
        "signatures of a proof", CLIENT_STEP,
        "signing.check(batch, signer, bound, body, signature)", "pass", MALICIOUS,
    ),
    Mutation(
        "a signed U3 is the next cohort", CLIENT_STEP,
        "current=signed, cohort=signed.survivors", "current=signed", MALICIOUS,
    ),
    # Masked input
    refusal("keys are unspent", CLIENT_STEP, "key not in state.unused", MACHINES),
    Mutation("keys are spent", CLIENT_STEP, " if later > key}", "}", BATCHES),
    refusal("|A| at the client", CLIENT_STEP, "len(active) < party.batch.threshold", MACHINES),
    refusal("self in the active set", CLIENT_STEP, "party.client not in active", MACHINES),
    refusal(
        "shares held of all active", CLIENT_STEP,
        "not set(active) - lost <= {*held, *state.non_neighbours}", MACHINES,
    ),
    Mutation(
        "cohorts shrink", CLIENT_STEP,
        "shrinking = party.policy is not None and not party.policy.rejoin", "shrinking = False",
        MALICIOUS,
    ),
    refusal("step numbers grow", CLIENT_STEP, "task.step <= state.last_step", MALICIOUS),
    Mutation(
        "policy on tasks", CLIENT_STEP, "party.policy.check_task(task)", "pass", MALICIOUS
    ),
    refusal("inputs in range", CLIENT_STEP, "int(vector.max()) > section.maximum", MACHINES),
    refusal(
        "inputs of the right shape", CLIENT_STEP,
        'vector.shape != (section.length,) or vector.dtype.kind != "u"', MACHINES,
    ),
    # Offline exchange, client
    refusal("identity of the roster", CLIENT_STATES,
            "own != (self.identity.public if self.identity else None)", MALICIOUS),
    Mutation(
        "policy on batches", CLIENT_STATES, "self.policy.check_batch(self.batch)", "pass", MALICIOUS
    ),
    Mutation(
        "policy on share holders", DIRECTORIES,
        "        party.policy.check_members(batch, len(members))\n    directory",
        "        pass\n    directory", MALICIOUS,
    ),
    refusal("|U1| at the client", DIRECTORIES, "len(members) < batch.threshold", MACHINES),
    refusal(
        "as many advertisements as members", DIRECTORIES,
        "len(members) != len(message.advertisements)", MACHINES,
    ),
    refusal(
        "own advertisement present", DIRECTORIES, "listed.get(party.client) != state.sent", MACHINES
    ),
    refusal(
        "number of mask keys at the client", DIRECTORIES,
        "any(len(keys.mask_keys) != batch.steps for keys in directory.values())", MACHINES,
    ),
    refusal("keys repeat at the client", DIRECTORIES, "keys_repeat(directory.values())", MACHINES),
    Mutation(
        "advertisements are signed", DIRECTORIES,
        "signing.check(party.batch, client, party.off0, body, signature)", "pass", MALICIOUS,
    ),
    refusal("|U2| at the client", OFFLINE, "len(sharers) < party.batch.threshold", MACHINES),
    refusal("own bundles in U2", OFFLINE, "party.client not in sharers", MACHINES),
    refusal(
        "U2 within U1", OFFLINE,
        "not set(sharers) <= {party.client, *state.inbound_keys, *state.non_neighbours}", MACHINES,
    ),
    refusal(
        "as many bundles as sharers", OFFLINE, "len(message.bundles) != len(senders)", MACHINES
    ),
    refusal("shares in a bundle", BUNDLES, "len(shares) != 2 * steps", MACHINES),
    Mutation(
        "bundled shares are elements", BUNDLES,
        "        shamir.decode_element(share)\n", "        pass\n", MACHINES,
    ),
    Mutation(
        "ids in bundle keys", BUNDLES,
        'hkdf(secret, "bundle", edge, u64(sender), u64(recipient))', 'hkdf(secret, "bundle", edge)',
        CONTEXTS,
    ),
    Mutation(
        "ids in associated data", BUNDLES,
        'frame(b"bundle", off1, u64(sender), u64(recipient))', 'frame(b"bundle", off1)', CONTEXTS,
    ),
    # Offline exchange, server
    refusal(
        "number of mask keys at the server", SERVER_OFFLINE,
        "len(message.mask_keys) != batch.steps", MACHINES,
    ),
    refusal("keys repeat at the server", SERVER_OFFLINE,
        "keys_repeat((message,)) or not state.keys.isdisjoint(keys)",
        MACHINES),
    Mutation("low order at the server", SERVER_OFFLINE, "_PROBE.agree(public)", "pass", MACHINES),
    refusal(
        "number of bundles", SERVER_OFFLINE,
        "len(message.bundles) != len(state.graph.recipients(client))", MACHINES,
    ),
    refusal(
        "size of bundles", SERVER_OFFLINE,
        "any(len(bundle) != messages.bundle_size(batch) for bundle in message.bundles)", MACHINES,
    ),
    refusal(
        "number of commitments", SERVER_OFFLINE,
        "len(message.commitments) != 2 * batch.steps", MACHINES
    ),
    refusal(
        "commitments are those advertised", SERVER_OFFLINE,
        "commit_all(message.commitments) != state.advertised[client].commitment", MACHINES,
    ),
    refusal("sender takes part", SERVER_OFFLINE, "client not in allowed", MACHINES),
    refusal("one message per round", SERVER_OFFLINE, "client in received", MACHINES),
    refusal(
        "threshold of every round at the server", SERVER_OFFLINE,
        "len(received) < batch.threshold", MACHINES,
    ),
    # Server
    Mutation(
        "uploads are signed", SERVER,
        "signing.check(self._batch, client, bound, body, signature)", "pass", MALICIOUS,
    ),
    refusal("barred clients", SERVER, "client in self._barred", MACHINES),
    refusal("masked elements below p", SERVER_STEP, "not field_.contains(vector)", CODEC),
    refusal(
        "number of sections", SERVER_STEP, "len(message.sections) != len(task.sections)", CODEC
    ),
    refusal(
        "number of shares", SERVER_STEP,
        "[len(message.self_shares), len(message.key_shares)] != [len(group) for group in owners]",
        MACHINES,
    ),
    Mutation(
        "shares are elements", SERVER_STEP,
        "        decode_element(share)\n", "        pass\n", MACHINES
    ),
    Mutation(
        "replays of an earlier step", SERVER,
        "due = row is not None and moment(message) == self._now()",
        "due = row is not None and moment(message)[1] == self._now()[1]", BATCHES,
    ),
    refusal(
        "dealer's seed gives its advertised key", SERVER_STEP,
        "pair.public != step.mask_key(dropped)", MACHINES,
    ),
    refusal(
        "step numbers grow at the server", SERVER,
        "self._tasks and task.step <= self._tasks[-1].step", BATCHES,
    ),
    refusal("active clients can be active", SERVER,
            "not set(wanted) <= set(candidates)", BATCHES),
    refusal("|A| at the server", SERVER, "len(members) < self._batch.threshold", BATCHES),
    refusal(
        "messages of later rounds", SERVER, "moment(message) > self._now()", MACHINES
    ),
    # Policy
    *(
        refusal(what, POLICY, condition, MALICIOUS)
        for what, condition in {
            "policy: threat model": "self.malicious and not batch.malicious",
            "policy: steps ahead": "batch.steps > self.max_steps",
            "policy: honest inputs": "batch.threshold - self.colluders < self.min_honest",
            "policy: roster size": "batch.n < self.min_clients",
            "policy: share holders": "members < self.min_clients",
            "policy: 2t > |U1| + n_C": "2 * batch.threshold <= members + self.colluders",
            "policy: first step": "task.step < self.first_step",
            "policy: kinds": "self.kinds is not None and task.kind not in self.kinds",
            "policy: length":
                "sum(section.length for section in task.sections) > self.max_length",
            "policy: largest input": "section.maximum > self.max_input",
            "policy: clip": "not self.min_clip <= section.clip <= self.max_clip",
        }.items()
    ),
    # Replay protection
    Mutation("request digest", DURABLE, "stored.request != digest", "False", MALICIOUS),
    Mutation(
        "the task is in the digest", DURABLE,
        'asked = context.online(request, 0, task, self._party.batch.n, b"")', "asked = request",
        MALICIOUS,
    ),
    refusal(
        "records of others", DURABLE,
        "(loaded.off0, loaded.client) != (party.off0, party.client)", MALICIOUS,
    ),
    Mutation("damaged text in records", DURABLE, "UnicodeDecodeError, ", "", AUDIT_RECORDS),
    Mutation("deep nesting in records", DURABLE, ", RecursionError", "", AUDIT_RECORDS),
    Mutation("stored replies", DURABLE, "self._answers.get(stage)", "None", MALICIOUS),
    # Encoding
    refusal("canonical encoding", MESSAGES, "encode(message) != data",
            AUDIT_CODEC),
    refusal("length bound", MESSAGES,
            "len(data) > max_size(kind, batch, *tasks)", CODEC),
    Mutation(
        "bitmap padding", MESSAGES,
        ' or int.from_bytes(bitmap, "little") >> n', "", CODEC,
    ),
    refusal(
        "vector padding", "protocols/primitives/packing.py",
        "length * bits % 8 and data[-1] >> (length * bits % 8)", PACKING,
    ),
    refusal("vector size", "protocols/primitives/packing.py",
            "len(data) != packed_size(length, bits)", PACKING),
    # Cryptography
    Mutation("rejection sampling", "protocols/primitives/prg.py",
             "if int(words.max()) >= self._limit:", "if False:", PACKING),
    Mutation("commitment of a rebuilt seed", SEEDS,
             "return seed if self.commit(seed) == commitment else None", "return seed", MACHINES),
    Mutation("errors are on few places", DECODING,
             " or 2 * len(found) > len(xs) - threshold", "", WRONG),
    Mutation("all roots are places", DECODING,
             "len(found) != len(locator) - 1 or ", "", WRONG),
    Mutation("coefficients are random", RECOVERY,
             'int.from_bytes(shamir.draw_element(entropy), "big")', "1", WRONG),
    Mutation("common decoding", RECOVERY,
             "self._decode_together(doubtful, self._entropy)", "pass", WRONG),
    Mutation("search behind the decoding", SEEDS,
             "return self.search(shares, threshold, commitment)",
             'raise CryptoError("no search")', WRONG),
    Mutation("untrusted shares as the last resort", RECOVERY,
             "(trusted, one.shares) if len(trusted) < len(one.shares) else (one.shares,)",
             "(trusted,)", WRONG),
    Mutation("a lost seed bars nobody", SERVER,
             "if error.peer is not None and not isinstance(error, SeedLost):",
             "if error.peer is not None:", WRONG),
    Mutation("a false key is its dealer's fault", SERVER,
             "if error.peer is not None and not isinstance(error, SeedLost):", "if False:", BLAME),
    refusal("share is an element", SHAMIR, "len(data) != SIZE or value >= P", PARTS),
    Mutation("seeds by rejection", SHAMIR,
             'int.from_bytes(candidate, "big") < P', "True", PARTS),
    Mutation("x is not zero", SHAMIR, "not 0 < x < P", "not x < P", PARTS),
    Mutation("x is not repeated", SHAMIR,
             "len(set(xs)) != len(xs) or ", "", PARTS),
    refusal("enough shares", SHAMIR,
            "threshold < 1 or len(xs) < threshold", PARTS),
    Mutation(
        "steps answered in other batches", CLIENT,
        "last_step=max(state.last_step, above)", "last_step=state.last_step", BLAME,
    ),
    Mutation(
        "the driver keeps answered steps", "protocols/driver.py",
        "self._answered[client] = task.step", "pass", BLAME,
    ),
    Mutation(
        "reports of those who are gone", SERVER_STEP,
        "(pair for pair in lost if present.issuperset(pair))", "lost", LOST,
    ),
    Mutation(
        "unknown senders are not remembered", SERVER,
        "            if client in self._batch.roster:\n                self._barred",
        "            if True:\n                self._barred", BLAME,
    ),
    Mutation(
        "active clients counted once", SERVER,
        "tuple(sorted(set(active)))", "tuple(sorted(active))", BLAME,
    ),
    Mutation(
        "one encoding of a key", MESSAGES,
        " or not all(map(is_canonical, keys))", "", BLAME,
    ),
    Mutation(
        "low order at the client", "protocols/primitives/keys.py",
        'raise CryptoError("key agreement failed") from None', "return bytes(32)", PARTS,
    ),
    Mutation(
        "Ed25519 verification", "protocols/primitives/keys.py",
        'raise CryptoError("signature is not valid") from None', "return", MALICIOUS,
    ),
    refusal("entropy size", "protocols/primitives/keys.py", "len(data) != size", PARTS),
    *(
        Mutation(f"context binds {what}", "protocols/context.py", old, new, CONTEXTS)
        for what, old, new in [
            ("the session", "batch.session, ", ""),
            ("the batch number", "u64(batch.batch), ", ""),
            ("the threshold", "graph, u64(batch.threshold), *numbers", "graph, *numbers"),
            ("the key step", "u64(key), u64(task.step)", "(u64(task.step),)"),
            ("the step", "u64(key), u64(task.step)", "(u64(key),)"),
            ("the kind", "task.kind.encode(), ", ""),
            ("the active set", "sections, active, ", "sections, "),
            ("the broadcast", "pairs, task.broadcast_digest", "pairs"),
            ("the clip", ', struct.pack(">d", section.clip)', ""),
        ]
    ),
    Mutation("signatures bind the context", "protocols/signing.py",
             'digest("signed", context, ', 'digest("signed", ', MALICIOUS),
    # Parameters and quantizer
    Mutation("t > n/2", "protocols/params.py", "self.n // 2 + 1, self.n", "1, self.n", PARTS),
    Mutation("sums cannot wrap", "protocols/primitives/field.py",
             "if field.p > largest:", "if True:", PACKING),
    Mutation("NaN counts as zero", "protocols/quantization.py",
             "np.copyto(values, 0.0, where=np.isnan(values))", "pass", QUANTIZER),
    Mutation("clipping", "protocols/quantization.py",
             "np.clip(values, -self.clip, self.clip, out=values)", "pass", QUANTIZER),
    # The ring (SPEC 6.9)
    # The graph that clients choose
    refusal("everybody chosen is a neighbour", DIRECTORIES,
            "not set(chosen) <= set(directory)", CHOSEN_BAD),
    refusal("enough chosen in U1", DIRECTORIES, "len(chosen) < graph.threshold", CHOSEN_BAD),
    refusal("neighbours chose or were chosen", DIRECTORIES,
            "not set(directory) <= choosers.union(chosen)", CHOSEN_BAD),
    refusal("3k choosers at most", DIRECTORIES, "len(choosers) > graph.most_choosers", CHOSEN),
    refusal("neighbours within U1", DIRECTORIES,
            "not set(neighbours) <= set(members) - {party.client}", CHOSEN_BAD),
    Mutation("self in U1", DIRECTORIES,
            "_check_number(batch, members)\n    if party.client not in members:\n        raise",
            "_check_number(batch, members)\n    if False:\n        raise", CHOSEN_BAD),
    refusal("as many advertisements as neighbours", DIRECTORIES,
            "len(neighbours) != len(message.advertisements)", CHOSEN_BAD),
    Mutation("keys repeat among chosen", OFFLINE,
             "choosers = checked_choices(party, directory, chosen)\n    own = advertisement("
             "party, party.client, state.sent, ChosenAdvertisement)\n    if keys_repeat(",
             "choosers = checked_choices(party, directory, chosen)\n    own = advertisement("
             "party, party.client, state.sent, ChosenAdvertisement)\n    if False and keys_repeat(",
             CHOSEN_BAD),
    refusal("a list names k others", GRAPH,
            "batch.chosen is None or len(chosen) != batch.chosen.degree or client in chosen",
            CHOSEN_BAD),
    refusal("signers are holders", CLIENT_STEP,
            "current.chosen and not set(signers) <= set(current.chosen)", CHOSEN),
    refusal("the policy on chosen", POLICY,
            "log2_split(batch.n, self.colluders, k, t) > -self.sigma", CHOSEN),
    refusal("nonce was committed to, server", SERVER_OFFLINE,
            "found != state.advertised[client].nonce_commitment", RING),
    refusal("nonces were committed to, client", DIRECTORIES,
            "any(state.committed.get(u) != commitment for u, commitment in shown.items())", RING),
    refusal("own commitment is listed", OFFLINE, "committed.get(party.client) != own", RING),
    refusal("keys are the neighbour's", DIRECTORIES,
            "message.nonce_commitment != state.committed[client]", RING),
    refusal("enough active neighbours", CLIENT_STEP,
            "len(_kept(holders, active, lost)) < party.batch.share_threshold",
            (*RING, *LOST)),
    refusal("enough surviving neighbours", CLIENT_STEP,
            "len(_holders(current).intersection(survivors)) < party.batch.share_threshold", RING),
    # Pairs that lost each other (SPEC 6.2, 6.3)
    Mutation("own lost peers hold no shares", CLIENT_STEP,
             "present = frozenset(active) - lost", "present = frozenset(active)", LOST),
    refusal("nobody is cut off unseen", CLIENT_STEP,
            'party.batch.graph == "complete" and any(\n'
            "        len(active) - len(others) < least for others in lost.values()\n    )",
            (*tests("audit/lying"), "-k", "unseen")),
    Mutation("no share of a lost peer is given", CLIENT_STEP,
             "if u in keys.held and u not in lost}", "if u in keys.held}", LOST),
    refusal("lost pairs are active", CLIENT_STEP,
            "not {u for pair in lost for u in pair} <= set(active)", LOST),
    refusal("lists of pairs ascend", "protocols/pairs.py",
            "not all(i < k < n for i, k in places) or not all(a < b for a, b in pairwise(places))",
            LOST),
    Mutation("`on` binds the lost pairs", "protocols/context.py",
             "sections, active, pairs, task", "sections, active, task", CONTEXTS),
    Mutation("bars last for the session", "protocols/rounds.py",
             "set() if terms.malicious else None", "None", LOST),
    Mutation("bundles come before the step", "protocols/rounds.py",
             "if self._terms.malicious and not keys.delivered:", "if False:", LOST),
    # The session above (D1)
    refusal("a broadcast is answered once", "codream_secure/federation/client.py",
            "seen in self._answered", ("tests/codream_secure/federation/test_client.py",)),
    # Weights count once, and are told once
    refusal("requests are the run's", "codream_secure/federation/answer_rules.py",
            "(found := getattr(request, name)) != value", CLIENT_RULES),
    Mutation("labels count alike", "codream_secure/federation/client.py",
             "numbers * share if name in _WEIGHTED else numbers", "numbers * share", CLIENT_RULES),
    refusal("one cap of weights", "codream_secure/sites/weights.py",
            "None not in {cap, known.cap} and cap != known.cap", WEIGHTS),
    refusal("the weight is told once", "codream_secure/sites/weights.py",
            "told is not None and told.request != hashlib.sha256(broadcast).digest()", WEIGHTS),
    refusal("one cap for all sessions", "codream_secure/sites/weights.py",
            "cap and told is not None and told.cap != cap", WEIGHTS),
    # Who a site is (SPEC 3.12)
    Mutation("a proof is of the site's own key", "codream_secure/sites/presence.py",
             "        except CryptoError:\n            return False",
             "        except CryptoError:\n            pass", PRESENCE),
    Mutation("a proof names its node", "codream_secure/sites/presence.py",
             "presence(self.session, nonce, site, channel)",
             'presence(self.session, nonce, site, b"")', PRESENCE),
    Mutation("a stranger does not keep a site out", "codream_secure/sites/peers.py",
             "if not proven:", "if False:", PRESENCE),
    Mutation("a node proves its number", "codream_secure/flower/carrier.py",
             "question.nonce, claim.proof, channel_of(node)):",
             "question.nonce, claim.proof, channel_of(node)) and False:",
             ("tests/codream_secure/flower/test_carrier.py",)),
    Mutation("a proof binds the nonce", "protocols/signing.py",
             'digest("presence", session, nonce,', 'digest("presence", session, b"",', PRESENCE),
    # Whether a site answers depends on nothing private
    Mutation("inputs are computed after all checks", CLIENT_STEP,
             "vectors = _checked_inputs(task, inputs() if callable(inputs) else inputs)",
             "vectors = _checked_inputs(task, inputs)", STEP),
    Mutation("a client's error adds zeros", "codream_secure/federation/client.py",
             "            self.failed(error)\n            return {}", "            raise", SITES),
    Mutation("a model that cannot be trained is kept", "codream_secure/sites/summand.py",
             '        _log.exception("training stopped; the model stays as it is by now")',
             "        raise", SITES),
    Mutation("an app's error adds zeros", "codream_secure/flower/secure_mod.py",
             "            content = RecordDict()", "            raise", MOD),
    Mutation("a missing metric is zero", "codream_secure/flower/mean.py",
             "missing.append(f\"no metric {name!r} that is one number\")",
             'raise ValueError("no metric")', MOD),
    # The record of a session (SPEC 6.11), and what sites learn from
    *(
        refusal(f"record: {what}", PENDING, condition, PENDING_TESTS)
        for what, condition in [
            ("a step that is not over", "step is not None and entry.step >= step"),
            ("the request", "own.on and entry.request != own.request"),
            ("the threshold", "len(survivors) < self.batch.threshold"),
            ("the survivors that were signed",
             "own.survivors and entry.survivors != own.survivors"),
            ("the sum", "own.on and entry.on != own.on"),
            ("a step that was not answered", "not own.on"),
            ("signatures", "self.batch.malicious and not own.proved"),
        ]
    ),
    Mutation("record: steps are bound to it", "codream_secure/sites/history.py",
             "if public[:SIZE] != history:", "if False:", TOLD),
    Mutation("pending state waits for the record", PENDING,
             "    _save(folder, Pending(step, request, state))",
             "    _save(folder, Pending(step, request, state)); folder.save(STATE, state)",
             PENDING_TESTS),
    *(
        refusal(f"labels: {what}", "codream_secure/sites/told_labels.py", condition, TOLD)
        for what, condition in [
            ("of a step of the record", "entry is None"),
            ("signatures", "self.batch.malicious"),
            ("as many as survivors",
             "found.count != len(decode_set(entry.survivors, self.batch.roster))"),
            ("as large as answers make them",
             "int(totals[section.name].max(initial=0)) > found.count * section.maximum"),
            ("of the dreams in the request",
             "request is None or digest(request.dreams) != found.dreams or encode(found) != sums"),
            ("rows of probabilities",
             "(rows < weight * (1 - classes / 2) - slack).any() or (rows > slack).any()"),
        ]
    ),
    refusal("cohorts: similar sums", "codream_secure/sites/cohorts.py",
            "self._strict and count >= policy.small_differences", COHORTS),
    refusal("cohorts: they grow again so often", "codream_secure/sites/cohorts.py",
            "refuse and shrinking and known.returns >= policy.returns", COHORTS),
    Mutation("cohorts: other sizes are similar", "codream_secure/sites/cohorts.py",
             "        if one.size != new.size:\n            return True",
             "        if one.size != new.size:\n            continue", COHORTS),
    Mutation("cohorts: a sum that comes nearer counts", "codream_secure/sites/cohorts.py",
             "all(_distance(one, s) > distance for s in same)", "not same", COHORTS),
    Mutation("cohorts: a site that is back counts", "codream_secure/sites/cohorts.py",
             "_is_larger(new, one) or all(", "all(", COHORTS),
    Mutation("cohorts: survivors are compared before they are signed",
             "codream_secure/sites/cohorts.py",
             "self._save(self._compared(changed, last.returns))", "self._save(changed)", COHORTS),
    refusal("contents: an earlier session", "codream_secure/sites/contents.py",
            "kept[start + _HASH : start + _SIZE] != number",
            ("tests/codream_secure/sites/test_contents.py",)),
    refusal("a sparse graph for the site's own colluders", "codream_secure/sites/proposals.py",
            "terms.chosen is not None and terms.colluders < wanted",
            ("tests/codream_secure/sites/test_deployment_table.py", "-k", "sparse")),
    Mutation("the site holds a run to its graph", "codream_secure/sites/party.py",
             "chosen=None if terms.chosen is None else Chosen(*terms.chosen)", "chosen=None",
             ("tests/codream_secure/sites/test_chosen_graph.py", "-k", "few")),
    # Clients as the unit of privacy
    *(
        refusal(f"unit: {what}", f"codream_secure/{file}.py", condition, (*UNIT, "-k", word))
        for what, file, condition, word in [
            ("the terms are the site's own", "privacy/release_plan",
             "asked != noisy_terms(self.terms)", "other_terms"),
            ("sums are counted", "privacy/release_plan",
             "self.budget.charged >= self.budget.total", "one_sum_more"),
            ("the malicious model", "sites/run_terms",
             'config.secure.threat_model != "malicious"', "roster"),
            ("no seed, whatever the policy", "sites/run_terms",
             "config.run.seed is not None", "makes_the_noise_known"),
            ("as many sites as the roster", "sites/run_terms",
             "message.identities and len(message.identities) != clients", "inflated"),
            ("noise for the colluders", "sites/allowance",
             "chosen is not None and not (isinstance(chosen, int) and chosen >= colluders)",
             "inflated"),
            ("a run of this unit", "sites/allowance",
             'self.unit == "client" and options.get("dp_unit") != "client"', "inflated"),
            ("sessions add up", "sites/allowance", "not total <= most", "sessions"),
            ("never the other way", "sites/allowance",
             "of_site and any(one.client is None for one in spent)", "other_way"),
        ]
    ),
    refusal("epsilon: no seed", "codream_secure/sites/allowance.py",
            'options.get("seed") is not None',
            ("tests/codream_secure/sites/test_deployment_table.py", "-k", "protects_less")),
    Mutation("unit: labels alone", "codream_secure/sites/run_terms.py",
             "        kinds = {LabelRequest.__name__}", "        pass",
             (*UNIT, "-k", "accuracies or counts_for")),
    Mutation("unit: an example changes twice as much", "codream_secure/sites/run_terms.py",
             "group_epsilon((plan.planned(),), delta, 2)", "epsilon", (*UNIT, "-k", "counts_for")),
    Mutation("unit: charges outlive a process", "codream_secure/sites/stored_learner.py",
             "plan.journal_shares(budget.journal)", "pass", (*UNIT, "-k", "one_sum_more")),
    Mutation("unit: an answer is given again", "codream_secure/sites/stored_learner.py",
             "        if name_of(broadcast) in self._answered():\n            return  #",
             "        if False:\n            return  #", (*UNIT, "-k", "given_again")),
    Mutation("labels need their request", "codream_secure/sites/told_labels.py",
             "            raise LacksRequestsError(lacking)",
             "            return []", TOLD),
    refusal("shape of a request", "codream_secure/aggregation/decoding.py",
            "min(request.shape) < 1 or len(request.dreams) != math.prod(request.shape)",
            ("tests/codream_secure/test_fuzz_requests.py",)),
]  # fmt: skip


def main(word: str = "") -> int:
    """Run all mutations that match; gives the exit code."""
    chosen = [mutation for mutation in MUTATIONS if word in mutation.what]
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        copy_to(room)
        for selection in sorted({mutation.tests for mutation in chosen}):
            code, output = run_tests(room, selection)
            if code != 0:
                print(f"these tests fail without any mutation: {' '.join(selection)}\n{output}")
                return 1
        began = time.perf_counter()
        bad = [mutation for mutation in chosen if not report(room, mutation)]
        seconds = time.perf_counter() - began
    print(f"{len(chosen) - len(bad)} of {len(chosen)} mutants were noticed; {seconds:.0f} seconds")
    return 1 if bad else 0


def copy_to(room: Path) -> None:
    """Copy what the tests need."""
    skipped = shutil.ignore_patterns("__pycache__", "runs")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, room / folder, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", room)


def report(room: Path, mutation: Mutation) -> bool:
    """Apply one mutation, print what became of it, and take it back."""
    path = room / mutation.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        verdict, noticed = f"STALE: found {source.count(mutation.old)} times", False
    else:
        path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
        verdict, noticed = judged(*run_tests(room, mutation.tests))
        path.write_text(source, encoding="utf-8")
    print(f"{mutation.what:42} {mutation.file:28} {verdict}", flush=True)
    return noticed


def judged(code: int, output: str) -> tuple[str, bool]:
    """A mutant counts as noticed if a test failed; not if nothing could be run."""
    failed = re.findall(r"^FAILED \S+::(.+)$", output, flags=re.MULTILINE)
    if code == 1 and failed:
        return failed[0][:100], True
    return ("SURVIVED" if code == 0 else f"pytest ended with {code}: {output[-60:]}"), False


def run_tests(room: Path, selection: tuple[str, ...]) -> tuple[int, str]:
    """Run tests of the copy up to the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *selection]
    settings = {
        "PYTHONPATH": str(room),
        "PYTHONDONTWRITEBYTECODE": "1",  # sources change faster than their modification times
        "HYPOTHESIS_PROFILE": "quick",
        "COLUMNS": "200",
    }
    try:
        done = subprocess.run(
            command,
            cwd=room,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=TOO_LONG,
        )
    except subprocess.TimeoutExpired:
        # No verdict: the machine may be busy, or the mutant may wait for ever.
        return -1, f"no end within {TOO_LONG} seconds"
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
