"""Independent training: every client alone, as CoDream's clients train before the first dream."""

from torch import nn

from codream_secure.baselines.base import Baseline, Parties, Party


class Independent(Baseline):
    """Sends nothing: the lower bound that collaboration has to beat."""

    def __init__(self, parties: Parties) -> None:
        super().__init__(parties)
        members = parties.federation.members
        self._learners = {c: members[c].client.learner for c in parties.clients}

    def client_models(self) -> dict[int, nn.Module]:
        """Return the clients' models."""
        return {c: learner.model for c, learner in self._learners.items()}

    def round(self, number: int) -> None:
        """Let each client take one round's local steps."""
        private_steps = self.parties.private_steps(number)

        def work(party: Party) -> None:
            learner = self._learners[party.identity]
            learner.set_rate(party.rate)
            before = learner.work.trained
            for _ in range(party.steps if private_steps is None else private_steps):
                learner.local_step()
            party.work.trained += learner.work.trained - before

        self.parties.each(work)
