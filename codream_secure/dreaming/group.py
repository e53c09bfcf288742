"""A group of clients that make dreams together, with the group's buffer and generator.

A federation is one group. Without collaboration (an ablation in the paper) every client is a
group by itself and sends nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from codream_secure.aggregation.aggregator import Aggregator
from codream_secure.aggregation.requests import LocalSteps
from codream_secure.config.resolved import Resolved
from codream_secure.config.rules import label_temperature
from codream_secure.data.pixels import PixelScale
from codream_secure.data.spec import InputSpec
from codream_secure.dreaming.buffer import DreamBuffer
from codream_secure.dreaming.generator import GeneratedDreams, GeneratorSettings, MetaGenerator
from codream_secure.dreaming.server_terms import ClassMeans, SynthesisSettings
from codream_secure.dreaming.sources import DreamSource, ParallelBatches, PixelDreams, smooth_noise
from codream_secure.dreaming.synthesis import Clips, DreamSynthesis, LabelledDreams
from codream_secure.privacy.class_means import ClassMeanImages
from codream_secure.privacy.release_plan import ReleasePlan
from codream_secure.runtime.seeds import derive_seed, generator
from codream_secure.storage.checkpoint import GroupState

# A client with more examples than this many even shares counts as if it had this many. The cap
# is sent to everybody, so it must not say how many examples any client has.
WEIGHT_CAP_SHARES = 4


class GroupMember(Protocol):
    """What a group needs of a client that runs in this process."""

    def freeze_teacher(self) -> None:
        """Copy the client's model; the copy answers the requests of this round."""


@dataclass(slots=True)
class DreamGroup:
    """What the clients of a group share.

    Args:
        name: selects the group's random streams.
        members: the clients in this process, by id; empty over machines.
        aggregator: sums the clients' answers.
        config: resolved settings.
        spec: shape of an image and number of classes.
        scale: the public pixel scale.
        device: of the dreams.
        weight_cap: largest weight of a client; 0: all clients have the same weight.
        label_plan: plan of the noisy label sums, under client-level DP; else None.

    Attributes:
        images: public images that dreams start from; None: dreams start from noise.
        buffer: the labelled dreams that the members learn from.
        rolled_back: number of steps that were undone because their result was not finite.
    """

    name: tuple[str | int, ...]
    members: Mapping[int, GroupMember]
    aggregator: Aggregator
    config: Resolved
    spec: InputSpec
    scale: PixelScale
    device: torch.device
    weight_cap: int
    label_plan: ReleasePlan | None = None
    images: ClassMeanImages | None = None
    buffer: DreamBuffer = field(init=False)
    rolled_back: int = field(init=False, default=0)
    _clips: Clips = field(init=False, default_factory=Clips)
    _meta: MetaGenerator | None = field(init=False)

    def __post_init__(self) -> None:
        self.buffer = DreamBuffer(self.config.learning.buffer)
        self._meta = None
        if self.config.dream.method == "codream-fast":
            seed = derive_seed(self._seed, "generator", *self.name)
            settings = _generator_settings(self.config)
            self._meta = MetaGenerator(self.spec, self.scale, settings, seed=seed)

    def begin_round(self, number: int) -> None:
        """Freeze the members' teachers and prepare the generator for the round's dream batches."""
        for member in self.members.values():
            member.freeze_teacher()
        if self._meta is not None:
            self._meta.begin_round(number)

    def synthesise(
        self, number: int, student: nn.Module | None, advance: Callable[[], None]
    ) -> list[LabelledDreams]:
        """Make a round's dream batches and add them to the buffer.

        Args:
            number: round number.
            student: frozen, in eval mode, for adaptive teaching; None without it.
            advance: called after every dream step and after the labels.

        Returns:
            Labelled dream batches, in order. Those whose label sum was aborted are missing.
        """
        batches = range(self.config.dream.dream_batches)
        together = [batches] if self.config.dream.parallel_batches else [[one] for one in batches]
        found = []
        for some in together:
            found += self._synthesise(number, some, student, advance)
        return found

    def _synthesise(
        self,
        number: int,
        batches: Sequence[int],
        student: nn.Module | None,
        advance: Callable[[], None],
    ) -> list[LabelledDreams]:
        """Make one or more of a round's dream batches in one synthesis."""
        noises = [generator(self._seed, "dreams", *self.name, number, b) for b in batches]
        starts = [self._source(noise) for noise in noises]
        sources = [source for source, _ in starts]
        synthesis = DreamSynthesis(
            sources[0] if len(sources) == 1 else ParallelBatches(sources),
            self.scale,
            synthesis_settings(self.config, self.spec, self.weight_cap, batches=len(batches)),
            clips=self._clips,
            noise=noises[0],
            position=(number, batches[0]),
            student=student,
            label_plan=self.label_plan,
            released=_joined([released for _, released in starts]),
        )
        labelled = self._run(synthesis, advance)
        self._count_start(sources)
        self.rolled_back += synthesis.rolled_back
        self._learn_from(sources)
        found = [] if labelled is None else labelled.split(len(batches))
        for batch in found:
            dreams = self.scale.from_pixels(batch.pixels)
            self.buffer.add(dreams, batch.targets.to(self.device))
        return found

    def _run(self, synthesis: DreamSynthesis, advance: Callable[[], None]) -> LabelledDreams | None:
        """Take all steps of a synthesis; return its labelled dreams, or None if aborted."""
        dream = self.config.dream
        for _ in range(dream.dream_steps - dream.label_last_step):
            if self._without_gradients:
                synthesis.public_step()
            else:
                synthesis.dream_step(self.aggregator)
            advance()
        # One request can ask for the last gradient and for the labels; that saves a broadcast.
        if self.config.has_noisy_model:
            advance()
            return synthesis.label_by_student(label_temperature(self.config))
        finish = synthesis.labelled_step if dream.label_last_step else synthesis.label
        labelled = finish(self.aggregator)
        advance()
        return labelled

    def _count_start(self, sources: Sequence[DreamSource]) -> None:
        """Count the first dreams as avoidable bytes: clients could draw them from the seed."""
        if self._meta is not None:
            return  # Generator weights stay on the server, so clients could not derive its dreams.
        size = sum(source.dreams().numel() for source in sources)  # one byte a pixel
        what = "starting noise, from a public seed"
        if self.config.has_common_model:
            what = "dreams, from the messenger and a public seed"
        for _ in self.members:
            self.aggregator.count_avoidable(what, size)

    def _learn_from(self, sources: Sequence[DreamSource]) -> None:
        """Take one step of the meta-generator for every batch that it started."""
        for source in sources:
            if self._meta is not None and isinstance(source, GeneratedDreams):
                self.rolled_back += not self._meta.learn_from(source)

    def state(self) -> GroupState:
        """Return what a checkpoint stores of the group; each member is stored separately."""
        return GroupState(
            buffer=self.buffer.state(),
            clips=dict(self._clips.values),
            rolled_back=self.rolled_back,
            generator=None if self._meta is None else self._meta.state(),
            aggregator=self.aggregator.state(),
        )

    def restore(self, state: GroupState) -> None:
        """Restore the state that `state()` returned, in a group that has made no dreams yet.

        Raises:
            ValueError, RuntimeError: the state belongs to another group.
        """
        for dreams, targets in state.buffer:
            self.buffer.add(dreams.to(self.device), targets.to(self.device))
        self._clips.values = {name: state.clips[name] for name in self._clips.values}
        self.rolled_back = state.rolled_back
        if (self._meta is None) != (state.generator is None):
            raise ValueError("a group with a generator is none without")
        if self._meta is not None and state.generator is not None:
            self._meta.restore(state.generator)
        self.aggregator.restore(state.aggregator)

    def _source(self, noise: torch.Generator) -> tuple[DreamSource, ClassMeans | None]:
        """Return a new dream batch, and the class means that it started from or None."""
        dream = self.config.dream
        if self._meta is not None:
            return self._meta.batch(dream.dreams, noise, fits=dream.local_steps), None
        shape = (dream.dreams, self.spec.channels, self.spec.height, self.spec.width)
        released = None
        if self.config.has_noisy_model:
            start = self._transfer_images(shape, noise)
        elif self._without_gradients:
            # No client's gradient shapes these dreams, so they start with some structure of images.
            start = smooth_noise(shape, noise).to(self.device)
        elif self.images is None:
            start = torch.randn(shape, generator=noise).to(self.device)
        else:
            drawn, classes = self.images.draw(shape[0], noise)
            start, means = self.scale.scale(drawn), self.scale.scale(self.images.means)
            released = ClassMeans(classes.to(self.device), means)
        source = PixelDreams(start, self.scale, optimizer=dream.dream_optimizer, lr=dream.dream_lr)
        return source, released

    def _transfer_images(
        self, shape: tuple[int, int, int, int], noise: torch.Generator
    ) -> torch.Tensor:
        """Return images around the class means and as many of uniform noise, scaled.

        The mixture was tried on one or two validation folds of the digits' training part alone.
        """
        drawn = torch.rand(shape, generator=noise)
        if self.images is not None:
            half = shape[0] // 2
            drawn[:half] = self.images.draw(half, noise)[0]
        return self.scale.scale(drawn)

    @property
    def _without_gradients(self) -> bool:
        return bool(self.label_plan) or self.config.has_common_model

    @property
    def _seed(self) -> int:
        return self.config.run.seed or 0


def _joined(released: Sequence[ClassMeans | None]) -> ClassMeans | None:
    """Return the class means that the parallel batches started from, or None."""
    found = [one for one in released if one is not None]
    return ClassMeans(torch.cat([one.classes for one in found]), found[0].means) if found else None


def weight_cap(config: Resolved, share: int) -> int:
    """Return W, the largest weight of a client; 0: all clients count alike.

    Args:
        config: settings of the run.
        share: examples of a client if they were dealt evenly.
    """
    learning = config.learning
    if learning.weights == "equal":
        return 0
    return learning.weight_cap or WEIGHT_CAP_SHARES * share


def synthesis_settings(
    config: Resolved, spec: InputSpec, weight_cap: int, *, batches: int = 1
) -> SynthesisSettings:
    """Return the settings of a synthesis that makes ``batches`` parallel batches."""
    dream, learning = config.dream, config.learning
    return SynthesisSettings(
        classes=spec.classes,
        bits=dream.bits,
        entropy_weight=dream.entropy_weight,
        bn_weight=dream.bn_weight,
        balance_weight=dream.balance_weight,
        statistics_momentum=dream.statistics_momentum,
        tv_weight=dream.tv_weight,
        l2_weight=dream.l2_weight,
        statistics_weight=config.privacy.statistics_weight,
        local=LocalSteps(dream.local_steps, dream.local_size),
        adversary="kl" if dream.adaptive == "kl" else "jsd",
        adversary_weight=dream.adaptive_weight,
        adversary_bits=dream.adaptive_bits,
        labels=learning.labels,
        label_weighting=learning.label_weighting,
        label_bits=learning.label_bits,
        label_clip=learning.label_clip,
        kd_temperature=label_temperature(config),
        weight_cap=weight_cap,
        batches=batches,
        targeted=config.has_common_model,
    )


def _generator_settings(config: Resolved) -> GeneratorSettings:
    dream = config.dream
    return GeneratorSettings(
        latent=dream.latent,
        width=dream.generator_width,
        lr=dream.generator_lr,
        latent_lr=dream.latent_lr,
        meta=dream.meta,
        meta_lr=dream.meta_lr,
        weight_decay=dream.generator_decay,
        average=dream.generator_average,
        max_norm=dream.generator_norm,
        reset_round=dream.generator_reset,
    )
