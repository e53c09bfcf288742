"""Who takes part in a run, and what each holds: built once from settings and data."""

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codream_secure.config.resolved import PrivateRun, Resolved
from codream_secure.data.datasets import Dataset
from codream_secure.data.examples import Examples
from codream_secure.data.partition import (
    Indices,
    label_histogram,
    partition,
    split_validation,
)
from codream_secure.data.pixels import PixelScale
from codream_secure.dreaming.teacher import logit_adjustment
from codream_secure.errors import UserError
from codream_secure.federation.answer_rules import AnswerRules
from codream_secure.federation.client import Client
from codream_secure.federation.messenger import OwnMessenger
from codream_secure.federation.noisy_messenger import OwnNoisySums
from codream_secure.federation.observer import Observer
from codream_secure.federation.run_models import build_student, plain_learner, run_model
from codream_secure.learning.batches import BatchStream, local_stream
from codream_secure.learning.learner import Learner, PlainLearner, PrivateLearner
from codream_secure.models.custom import is_custom
from codream_secure.privacy.class_means import OwnClassMeans, released
from codream_secure.privacy.client_labels import label_plan
from codream_secure.privacy.noisy_descent import gradient_grid, released_gradients
from codream_secure.privacy.plan import AnyPlan, PrivacyPlan
from codream_secure.privacy.sum_plan import SumPlan, sums_of_messenger
from codream_secure.runtime.seeds import derive_bytes, derive_seed, generator
from codream_secure.storage.checkpoint import MemberState

if TYPE_CHECKING:
    from codream_secure.privacy.dpsgd import PrivateTrainer


@dataclass(slots=True)
class Member:
    """One client, its twin, and its validation part.

    Attributes:
        identity: the client's id.
        client: answers requests.
        twin: the same model, trained on local data alone, to compare.
        validation: for the observer; None: nothing was set aside.
    """

    identity: int
    client: Client
    twin: Learner
    validation: Examples | None

    def train_twin(self) -> None:
        """Let the twin take local steps until it has taken as many as the client."""
        self.twin.set_rate(self.client.learner.rate)
        while self.twin.local_steps < self.client.learner.local_steps:
            self.twin.local_step()

    def state(self) -> MemberState:
        """Return what a checkpoint stores of client and twin."""
        return MemberState(client=self.client.state(), twin=self.twin.state())

    def restore(self, state: MemberState) -> None:
        """Restore the state that `state` returned.

        Raises:
            ValueError, RuntimeError: the state belongs to another member.
        """
        self.client.restore(state.client)
        self.twin.restore(state.twin)


class Federation:
    """All participants of one run, or one of them on its own machine.

    Args:
        config: resolved settings.
        data: dealt to the clients here; its test part goes to the observer alone.
        device: where tensors live.
        keep: which training examples take part after all are dealt, bool, shape (N,); None: all.
            An audit leaves some out.
        only: build this client alone, as on its own machine; None: build all clients.
        whole: with ``only``: the whole training part belongs to this client. An even share is
            then ``samples_per_client``, because that number is public.
        model: with ``only``: that client's architecture, overriding the settings.
        rounding: with ``only``: 32 secret bytes that key its rounding; None: derived from the
            run's seed.

    Attributes:
        members: by client id.
        roster: all client ids, ascending, also with ``only``.
        spec, scaling, class_names: of the dataset; public.
        share: training examples of a client if they were dealt evenly; public.
        plan: the private releases under example-level DP; None: there are none.
        label_plan: the noisy sums of labels under client-level DP; None: there are none.
        sum_plan: the noisy sums that train the common model; None: it has none.
        all_parts: rows of the training part by client, those left out included.

    Raises:
        UserError: unknown model or partition, too few examples, or a model that DP cannot train.
    """

    def __init__(
        self,
        config: Resolved,
        data: Dataset,
        device: torch.device,
        keep: NDArray[np.bool_] | None = None,
        *,
        only: int | None = None,
        whole: bool = False,
        model: str | None = None,
        rounding: bytes | None = None,
    ) -> None:
        self.config, self._data, self.device = config, data, device
        self._rounding = rounding
        self._seed = config.run.seed or 0
        self.spec, self.scaling, self.class_names = data.spec, data.scaling, data.class_names
        self.scale = PixelScale(data.scaling, device)
        self.roster = tuple(range(config.data.clients))
        names = [name.strip() for name in config.model.models.split(",")]
        self.model_names = tuple(
            model if model and c == only else names[c % len(names)] for c in self.roster
        )
        parts = self._own_part(only) if whole and only is not None else self._parts()
        self.all_parts = dict(zip(self.roster, parts, strict=True))
        if keep is not None:
            parts = [rows[keep[rows]] for rows in parts]
        dealt = sum(map(len, parts))
        if whole:
            dealt = self._even_share() * len(self.roster)
        self._label_counts = np.stack(
            [label_histogram(data.y_train[rows], self.spec.classes) for rows in parts]
        )
        self.share = dealt // len(self.roster)
        self.plan = PrivacyPlan.of(config, dealt, self.spec)
        self.label_plan = (
            label_plan(config, self.spec)
            if isinstance(config, PrivateRun) and config.private_clients
            else None
        )
        self.sum_plan = self._sum_plan()
        self._local: dict[int, Examples] = {}
        built = self.roster if only is None else (only,)
        self.members = {c: self._member(c, parts[c]) for c in built}

    @cached_property
    def student(self) -> PlainLearner:
        """The server's student. It is built when it is asked for: a site has no use for it."""
        return build_student(self.config, self.spec, self.device)

    @property
    def budget(self) -> AnyPlan | None:
        """The budget that private releases are charged to; None without DP."""
        return self.sum_plan or self.label_plan or self.plan

    def _sum_plan(self) -> SumPlan | None:
        """Return the plan of the noisy sums that train the common model; None without it."""
        config = self.config
        if not (isinstance(config, PrivateRun) and config.has_noisy_model):
            return None
        grid = gradient_grid(self.private_copy(self.student.model), config.privacy.dp_clip)
        kinds = released_gradients(grid, self.share), released(self.spec, self.share)
        return sums_of_messenger(config, *kinds)

    @property
    def per_class(self) -> float:
        """Examples of one class if all clients and classes were even; public."""
        return self.share * len(self.roster) / self.spec.classes

    def observer(self) -> Observer:
        """Return an observer of this federation; no participant keeps a reference to it."""
        test = self.scale.examples(self._data.x_test, self._data.y_test)
        validation = {c: m.validation for c, m in self.members.items() if m.validation}
        return Observer(test, validation, self._label_counts)

    def data_digest(self) -> str:
        """Return the SHA-256 of all images and labels and of their scaling, in hex."""
        data = self._data
        whole = hashlib.sha256(repr((data.spec, data.scaling)).encode())
        parts: tuple[NDArray[Any], ...] = (data.x_train, data.y_train, data.x_test, data.y_test)
        for array in parts + data.client_rows:
            whole.update(repr((array.shape, array.dtype.str)).encode())
            whole.update(np.ascontiguousarray(array).data)
        return whole.hexdigest()

    def local_batches(self, client: int, role: str) -> BatchStream:
        """Return a new stream of minibatches of a client's examples, in the order of ``role``."""
        return self.stream(self._local[client], generator(self._seed, role, "shuffle", client))

    def stream(self, local: Examples, shuffle: torch.Generator) -> BatchStream:
        """Return a stream of minibatches of some examples, with the run's augmentation and loss."""
        return local_stream(self.config.learning, self.scale, self.spec.classes, local, shuffle)

    def pooled(self) -> Examples:
        """Return the training examples of all clients, for centralized training only."""
        parts = self._local.values()
        return Examples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))

    def examples(self, client: int) -> Examples:
        """Return a client's own training examples, for work that is done on its side."""
        return self._local[client]

    def client_models(self) -> dict[int, nn.Module]:
        """Return the clients' models by client id."""
        return {c: member.client.learner.model for c, member in self.members.items()}

    def twin_models(self) -> dict[int, nn.Module]:
        """Return the twins' models by client id."""
        return {c: member.twin.model for c, member in self.members.items()}

    def _parts(self) -> list[Indices]:
        settings = self.config.data
        if self._data.client_rows:
            return list(self._data.client_rows)
        return partition(
            self._data.y_train,
            len(self.roster),
            settings.partition,
            derive_seed(self._seed, "partition"),
            samples_per_client=settings.samples_per_client,
            # BatchNorm needs two examples to train on; up to half are set aside for validation.
            min_examples=4 if settings.validation else 2,
        )

    def _own_part(self, client: int) -> list[Indices]:
        """Return all rows for one client, and none for the others: their data lie elsewhere."""
        everything = np.arange(len(self._data.y_train))
        return [everything if c == client else everything[:0] for c in self.roster]

    def _even_share(self) -> int:
        """Return the examples that count for each site with own data, or raise UserError."""
        share = self.config.data.samples_per_client
        if share is None:
            raise UserError("sites with data of their own need --samples-per-client")
        return share

    def _member(self, c: int, rows: Indices) -> Member:
        validation = None
        labels = self._data.y_train
        if self.config.data.validation:
            rows, held_out = split_validation(
                rows, labels, self.config.data.validation, derive_seed(self._seed, "validation", c)
            )
            validation = self.scale.examples(self._data.x_train[held_out], labels[held_out])
        local = self.scale.examples(self._data.x_train[rows], labels[rows])
        self._local[c] = local
        learner = self._learner(c, local, "client")
        client = Client(
            learner,
            self.scale,
            derive_bytes(self._seed, "rounding", c) if self._rounding is None else self._rounding,
            AnswerRules.of(self.config, self.spec, self.share),
            releases=self.label_plan.share(c) if self.label_plan else None,
            statistics=self._statistics(c, local),
            examples=len(rows),
            adjustment=self._adjustment(local),
            messenger=self._messenger(c, learner),
            noisy=self._noisy(c, local),
        )
        return Member(c, client, self._learner(c, local, "twin"), validation)

    def _messenger(self, c: int, learner: Learner) -> OwnMessenger | None:
        if self.config.has_noisy_model or not self.config.has_common_model:
            return None
        if not isinstance(learner, PlainLearner):
            return None
        common = self.model(self.config.common_architecture, "server")
        return OwnMessenger(self.config, learner, common, c)

    def _noisy(self, c: int, local: Examples) -> OwnNoisySums | None:
        if self.sum_plan is None:
            return None
        common = self.private_copy(self.student.model)
        clip = self.config.privacy.dp_clip
        return OwnNoisySums(
            self.sum_plan.side(c), common, local, self.scale, spec=self.spec, clip=clip
        )

    def _statistics(self, c: int, local: Examples) -> OwnClassMeans | None:
        if not (self.plan and self.plan.class_means):
            return None
        images = self.scale.unscale(local.x).double().cpu().numpy()
        labels = local.y.cpu().numpy()
        return OwnClassMeans(self.plan.class_means, images, labels, self.plan.noise_key(c))

    def _adjustment(self, local: Examples) -> Tensor | None:
        strength = self.config.dream.prior_correction
        return logit_adjustment(local.y, self.spec.classes, strength) if strength else None

    def _learner(self, c: int, local: Examples, role: str) -> Learner:
        """Build the learner of a client or of its twin (``role``), with random streams of its own.

        Both start from the same weights if the seed determines them.
        """
        name, learning = self.model_names[c], self.config.learning
        if self.config.has_noisy_model and (role == "client" or self._at_home):
            # Its model is asked for nothing. It learns from public images, and from own data only
            # if it never leaves.
            data = self.local_batches(c, role) if self._at_home else None
            return plain_learner(self.config, self.model(name, c), data)
        if self.plan:
            model = self.model(name, c, seeded=self.plan.seed is not None)
            trainer = self._trainer(self.plan, model, role, c)
            return PrivateLearner(trainer, (local.x, local.y), learning.learning_rate)
        return plain_learner(self.config, self.model(name, c), self.local_batches(c, role))

    @property
    def _at_home(self) -> bool:
        return self.config.privacy.keep_models_home

    def _trainer(self, plan: PrivacyPlan, model: nn.Module, role: str, c: int) -> "PrivateTrainer":
        from codream_secure.privacy.model_checks import check_private_step  # noqa: PLC0415 - opacus is slow

        name = self.model_names[c]
        try:
            trainer = plan.trainer(model, role, c)
            if is_custom(name) and role == "client":
                check_private_step(model, self.spec)
        except UserError as error:
            raise UserError(f"model {name}: {error}") from error
        return trainer

    def model(self, name: str, *owner: str | int, seeded: bool = True) -> nn.Module:
        """Build a model on the device; its first weights follow from the seed and the owner."""
        return run_model(self.config, self.spec, name, *owner, device=self.device, seeded=seeded)

    def private_copy(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model that DP can train; raise UserError if it cannot."""
        from codream_secure.privacy.model_checks import check_private_model  # noqa: PLC0415 - slow

        check_private_model(model)
        return copy.deepcopy(model)
