"""The settings of a run: one frozen dataclass for each concern.

Every field is an option. Its name with dashes is the option of the command line, and with
underscores the key in a TOML file. Its type holds the values that are allowed. A default of None
that depends on other settings is filled in by `codream_secure.config.rules`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from codream_secure.config.bounds import (
    MANY,
    Bits,
    Channels,
    Clip,
    Decay,
    Delta,
    Epsilon,
    Fraction,
    Natural,
    Pixels,
    Positive,
    PrivateStepSize,
    Seed,
    Size,
    StepSize,
    Temperature,
    Weight,
)
from codream_secure.data.names import DATASET_NAMES
from codream_secure.models.names import MODEL_NAMES
from protocols.params import MAX_INPUT, MAX_STEPS


def _help(text: str) -> Meta:
    """Return what ``--help`` says of an option, as part of its type."""
    return Meta(description=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which data the run uses, and how they are divided among the clients."""

    dataset: Annotated[
        str,
        _help(
            f"{', '.join(DATASET_NAMES)}; or the path of an .npz file; or the path of a folder of "
            "images, which has one subfolder for each class, under train/ and test/ or to be split"
        ),
    ] = "digits"
    data_dir: Annotated[str, _help("folder that datasets are downloaded to")] = "data"
    image_size: Annotated[
        Pixels | None, _help("height and width that the images of a folder are resized to")
    ] = None
    partition: Annotated[
        str,
        _help(
            "iid; dirichlet:ALPHA (class mix of each client, equal sizes); dirichlet-labels:ALPHA "
            "(shares of each class, sizes differ); shards:CLASSES_PER_CLIENT"
        ),
    ] = "iid"
    clients: Annotated[int, Meta(ge=2, le=MANY), _help("number of clients")] = 10
    samples_per_client: Annotated[
        Positive | None,
        _help(
            "examples of each client, on average under dirichlet-labels (default: all examples, "
            "divided)"
        ),
    ] = None
    validation: Annotated[
        float,
        Meta(ge=0, le=0.5),
        _help("fraction of each client's data that is kept for validation (0 under DP)"),
    ] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which architectures the clients have."""

    models: Annotated[
        str,
        _help(
            "comma-separated architectures, given to clients in turn: auto (resnet8, mlp under "
            f"DP), {', '.join(MODEL_NAMES)}, or your own as my_module:my_function"
        ),
    ] = "auto"
    width: Annotated[
        Channels | None,
        _help("width of the models (default: each model's own; linear and your own have none)"),
    ] = None
    norm: Annotated[
        Literal["auto", "batch", "group"],
        _help("normalization layers; auto: batch, group under DP"),
    ] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamConfig:
    """How dreams are made."""

    method: Annotated[
        Literal["codream", "codream-fast", "codream-messenger"],
        _help(
            "the server optimizes pixels; fast: a generator that makes them; messenger: clients "
            "average a small common model beside their own, and dreams come from it alone"
        ),
    ] = "codream"
    collaboration: Annotated[
        bool, _help("dream together; --no-collaboration: every client dreams alone (an ablation)")
    ] = True
    rounds: Annotated[Positive | None, _help("rounds of dreaming and learning")] = None
    dreams: Annotated[Positive | None, _help("dreams in a batch")] = None
    dream_batches: Annotated[Positive | None, _help("batches of dreams in a round")] = None
    parallel_batches: Annotated[
        bool,
        _help("move all dream batches of a round together: one sum a step, fewer round trips"),
    ] = False
    dream_steps: Annotated[Natural | None, _help("global steps for each batch (R)")] = None
    label_last_step: Annotated[
        bool,
        _help("fast: the broadcast of the last step also asks for labels, which saves one request"),
    ] = False
    dream_optimizer: Annotated[
        Literal["adam", "avg", "fedadam"],
        _help("how the server moves pixels; avg: by the mean of the clients' moves"),
    ] = "adam"
    dream_lr: Annotated[
        StepSize | None, _help("step size on pixels, in scaled pixels; with avg a factor")
    ] = None
    local_steps: Annotated[
        int, Meta(ge=1, le=64), _help("steps of every client on its own copy of the dreams (M)")
    ] = 1
    local_size: Annotated[
        Size, _help("size of such a step where a gradient equals the clip, in scaled pixels")
    ] = 0.1
    bits: Annotated[Bits, _help("bits of one quantized gradient coordinate")] = 4
    entropy_weight: Annotated[Weight, _help("weight of the predictions' entropy; 0: off")] = 1.0
    bn_weight: Annotated[
        Weight | None, _help("weight of R_bn, the distance to BatchNorm statistics; 0: off")
    ] = None
    statistics_momentum: Annotated[
        Decay | None, _help("share of earlier dreams in the statistics of R_bn")
    ] = None
    balance_weight: Annotated[Weight, _help("weight of class balance; 0: off")] = 1.0
    prior_correction: Annotated[
        Fraction | None,
        _help("how much of their class frequencies clients remove from their logits"),
    ] = None
    adaptive: Annotated[
        Literal["none", "jsd", "kl"],
        _help("R_adv: seek dreams on which the server's student disagrees (adaptive teaching)"),
    ] = "none"
    adaptive_weight: Annotated[Size, _help("weight of R_adv")] = 1.0
    adaptive_start: Annotated[Positive, _help("first round with R_adv")] = 2
    adaptive_bits: Annotated[
        Bits, _help("bits of the gradient with respect to one logit of the student")
    ] = 8
    tv_weight: Annotated[Weight, _help("weight of total variation (at the server); 0: off")] = 0.0
    l2_weight: Annotated[Weight, _help("weight of the L2 prior (at the server); 0: off")] = 0.0
    latent: Annotated[Channels, _help("fast: numbers in a latent vector")] = 64
    generator_width: Annotated[Pixels, _help("fast: channels of the generator")] = 32
    generator_lr: Annotated[StepSize, _help("fast: Adam's step size on the generator")] = 5e-3
    latent_lr: Annotated[StepSize, _help("fast: Adam's step size on latent vectors")] = 1.5e-2
    meta: Annotated[
        Literal["reptile", "fomaml"],
        _help("fast: how the meta-generator follows the generator of a batch"),
    ] = "reptile"
    meta_lr: Annotated[StepSize, _help("fast: Adam's step size on the meta-generator")] = 1e-2
    generator_decay: Annotated[Weight, _help("fast: weight decay of the meta-generator")] = 1e-4
    generator_average: Annotated[
        Decay,
        _help("fast: decay of the running average of the meta-generator that batches start from"),
    ] = 0.0
    generator_norm: Annotated[
        Size, _help("fast: the gradient of a batch's generator is clipped to this norm")
    ] = 10.0
    generator_reset: Annotated[
        Natural,
        _help("fast: before this round the generator's first layer is drawn anew; 0: never"),
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """How participants learn from dreams and from their own data."""

    labels: Annotated[
        Literal["probabilities", "logits"],
        _help("what is averaged: probabilities at the KD temperature, or logits"),
    ] = "probabilities"
    label_weighting: Annotated[
        Literal["equal", "confidence"],
        _help("clients count equally, or by their confidence at each dream"),
    ] = "equal"
    weights: Annotated[
        Literal["equal", "examples"],
        _help("clients count equally, or by how many examples they have (see SECURITY.md)"),
    ] = "equal"
    weight_cap: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_INPUT)] | None,
        _help("most examples of a client that count (default: four even shares)"),
    ] = None
    label_bits: Annotated[Bits, _help("bits of one quantized label")] = 8
    label_clip: Annotated[float, Meta(gt=0, le=1e6), _help("public range of a logit")] = 20.0
    acquisition: Annotated[
        Literal["joint", "two-stage"],
        _help("distil and learn locally together, or one after the other"),
    ] = "joint"
    kd_temperature: Annotated[Temperature, _help("distillation temperature")] = 4.0
    kd_epochs: Annotated[Natural, _help("distillation epochs over the buffer, each time")] = 20
    kd_period: Annotated[Positive, _help("distil in every k-th round; this is k")] = 1
    kd_batch: Annotated[Positive, _help("dreams in a distillation step")] = 128
    dream_augment: Annotated[
        Literal["none", "crop", "flip-crop"],
        _help("random changes to the dreams, drawn anew in every distillation epoch"),
    ] = "none"
    buffer: Annotated[Positive, _help("dream batches that are kept, first in first out")] = 4
    kd_statistics: Annotated[
        Literal["update", "keep"],
        _help("whether dreams change BatchNorm's running statistics of clients; keep: they do not"),
    ] = "update"
    learning_rate: Annotated[StepSize, _help("the optimizer's step size on models")] = 3e-3
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd"],
        _help("how clients and student move their models; sgd has Nesterov momentum 0.9"),
    ] = "adam"
    weight_decay: Annotated[Weight, _help("weight decay of the optimizer")] = 0.0
    schedule: Annotated[
        Literal["constant", "cosine"],
        _help("of the step size over the rounds; cosine: down to 0 along half a cosine"),
    ] = "constant"
    augment: Annotated[
        Literal["none", "crop", "flip-crop", "randaugment"],
        _help("random changes to local pictures; randaugment: flip-crop and two operations more"),
    ] = "none"
    local_loss: Annotated[
        Literal["cross-entropy", "balanced"],
        _help("balanced: corrected for how many examples of each class a client has"),
    ] = "cross-entropy"
    batch: Annotated[int, Meta(ge=2, le=MANY), _help("local examples in a step (without DP)")] = 32
    warmup_epochs: Annotated[Natural, _help("local epochs before the first round (without DP)")] = (
        20
    )
    local_epochs: Annotated[
        Natural, _help("local epochs in a round besides the joint steps (without DP)")
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureConfig:
    """How sums are protected."""

    secure: Annotated[bool, _help("aggregate under masks; --no-secure sums in the clear")] = True
    threat_model: Annotated[
        Literal["semi-honest", "malicious"],
        _help(
            "what the server may do; malicious: deviate from the protocol, which takes signed "
            "messages and one more round trip"
        ),
    ] = "semi-honest"
    threshold: Annotated[
        Positive | None, _help("clients that must stay (default: floor(2n/3) + 1)")
    ] = None
    key_steps: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None,
        _help("steps that one key exchange prepares (default: all steps of one synthesis)"),
    ] = None
    rejoin: Annotated[
        bool,
        _help("malicious: a client that missed a step may return before the next key exchange"),
    ] = False
    dropout: Annotated[
        Fraction, _help("probability that a client fails in one step, and in one key exchange")
    ] = 0.0
    graph: Annotated[
        Literal["complete", "ring", "chosen", "auto"],
        _help(
            "who masks with whom: complete: all; ring: few neighbours (semi-honest); chosen: few "
            "that each client chooses itself (malicious); auto: complete up to 100 clients, then a "
            "sparse one if one is safe"
        ),
    ] = "complete"
    graph_corrupt: Annotated[
        Fraction, _help("ring, chosen: share of clients that may work for the server")
    ] = 0.05
    graph_silent: Annotated[
        Fraction, _help("ring, chosen: share of clients that may fall silent")
    ] = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """Differential privacy."""

    dp_eps: Annotated[Epsilon | None, _help("total epsilon of a client; turns DP on")] = None
    dp_unit: Annotated[
        Literal["example", "client"],
        _help("who is protected: one training example, or one client with all its data"),
    ] = "example"
    accept_low_utility: Annotated[
        bool, _help("run --dp-unit client although the predicted noise is larger than the labels")
    ] = False
    dp_delta: Annotated[Delta, _help("delta")] = 1e-5
    dp_clip: Annotated[Clip, _help("L2 clip of one example's gradient")] = 0.5
    dp_batch: Annotated[
        Positive | None,
        _help("expected examples in a private step (default: an even share, at most 512)"),
    ] = None
    dp_steps: Annotated[Positive, _help("private steps of a client in the whole run")] = 40
    dp_lr: Annotated[
        PrivateStepSize | None,
        _help(
            "step size of private SGD (default: by its noise z, min(2, 8 / z); with class means "
            "min(1, 4 / z))"
        ),
    ] = None
    dp_warmup: Annotated[
        Fraction, _help("part of the private steps taken before the first round")
    ] = 1.0
    statistics_eps: Annotated[
        Weight | None,
        _help(
            "part of --dp-eps for class means, which all clients release together, under masks and "
            "with noise from every client (default: min(4, 0.9 * --dp-eps)); 0: none"
        ),
    ] = None
    statistics_weight: Annotated[
        Weight, _help("weight of the server's term that keeps dreams near the class means")
    ] = 0.0
    secure_noise: Annotated[
        bool,
        _help(
            "DP-SGD in exact integers, with discrete Gaussian noise from AES-CTR; full batches only"
        ),
    ] = False
    dp_noise: Annotated[
        Literal["gaussian", "skellam"],
        _help("integer noise that clients add to sums before they mask them"),
    ] = "gaussian"
    keep_models_home: Annotated[
        bool,
        _help(
            "codream-messenger: clients' own models, which never leave, also learn from own data "
            "without noise; only what leaves a client is private then"
        ),
    ] = False
    noise_colluders: Annotated[
        Natural | None,
        _help(
            "clients whose share of the noise the server may know (default: 1; malicious: as many "
            "as may collude)"
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where and how the run is computed."""

    device: Annotated[Literal["auto", "cpu", "cuda"], _help("where tensors live")] = "auto"
    precision: Annotated[
        Literal["float32", "bf16"],
        _help(
            "numbers in the models' forward passes; what is quantized and sent is always float32"
        ),
    ] = "float32"
    channels_last: Annotated[
        bool, _help("store features with the channels innermost: faster convolutions")
    ] = True
    seed: Annotated[
        Seed | None,
        _help(
            "seed of the run (default 0). Given explicitly under DP it also seeds the noise: "
            "for experiments only"
        ),
    ] = None
