"""The settings of a run: one frozen dataclass for each concern.

Every field is an option. Its name with dashes is the option of the command line, and with
underscores the key in a TOML file. Its type holds the values that are allowed. A default of None
that depends on other settings is filled in by `codream_secure.config.rules`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from codream_secure.data.names import DATASET_NAMES
from codream_secure.models.names import MODEL_NAMES
from protocols.params import MAX_INPUT, MAX_STEPS

# Every number has both bounds, so that no run computes with what float32 or memory cannot hold.
_MANY = 10**7
_LARGE = 1e6
Natural = Annotated[int, Meta(ge=0, le=_MANY)]
Positive = Annotated[int, Meta(ge=1, le=_MANY)]
Bits = Annotated[int, Meta(ge=1, le=16)]
Channels = Annotated[int, Meta(ge=1, le=4096)]
Pixels = Annotated[int, Meta(ge=1, le=1024)]
Weight = Annotated[float, Meta(ge=0, le=_LARGE)]
Size = Annotated[float, Meta(gt=0, le=_LARGE)]
StepSize = Annotated[float, Meta(gt=0, le=100)]
Temperature = Annotated[float, Meta(ge=0.01, le=1000)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]  # of a running average: at 1 it would never move


def told(text: str) -> Meta:
    """Return what ``--help`` says of an option, as part of its type."""
    return Meta(description=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which data the run uses, and how they are divided among the clients."""

    dataset: Annotated[
        str,
        told(
            f"{', '.join(DATASET_NAMES)}; or the path of an .npz file; or the path of a folder of "
            "images, which has one subfolder for each class, under train/ and test/ or to be split"
        ),
    ] = "digits"
    data_dir: Annotated[str, told("folder that datasets are downloaded to")] = "data"
    image_size: Annotated[
        Pixels | None, told("height and width that the images of a folder are resized to")
    ] = None
    partition: Annotated[
        str,
        told(
            "iid; dirichlet:ALPHA (class mix of each client, equal sizes); dirichlet-labels:ALPHA "
            "(shares of each class, sizes differ); shards:CLASSES_PER_CLIENT"
        ),
    ] = "iid"
    clients: Annotated[int, Meta(ge=2, le=_MANY), told("number of clients")] = 10
    samples_per_client: Annotated[
        Positive | None,
        told(
            "examples of each client, on average under dirichlet-labels (default: all examples, "
            "divided)"
        ),
    ] = None
    validation: Annotated[
        float,
        Meta(ge=0, le=0.5),
        told("fraction of each client's data that is kept for validation (0 under DP)"),
    ] = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which architectures the clients have."""

    models: Annotated[
        str,
        told(
            "comma-separated architectures, given to clients in turn: auto (resnet8, mlp under "
            f"DP), {', '.join(MODEL_NAMES)}, or your own as my_module:my_function"
        ),
    ] = "auto"
    width: Annotated[
        Channels | None,
        told("width of the models (default: each model's own; linear and your own have none)"),
    ] = None
    norm: Annotated[
        Literal["auto", "batch", "group"],
        told("normalization layers; auto: batch, group under DP"),
    ] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class DreamConfig:
    """How dreams are made."""

    method: Annotated[
        Literal["codream", "codream-fast", "codream-messenger"],
        told(
            "the server optimizes pixels; fast: a generator that makes them; messenger: clients "
            "average a small common model beside their own, and dreams come from it alone"
        ),
    ] = "codream"
    collaboration: Annotated[
        bool, told("dream together; --no-collaboration: every client dreams alone (an ablation)")
    ] = True
    rounds: Annotated[Positive | None, told("rounds of dreaming and learning")] = None
    dreams: Annotated[Positive | None, told("dreams in a batch")] = None
    dream_batches: Annotated[Positive | None, told("batches of dreams in a round")] = None
    parallel_batches: Annotated[
        bool,
        told("move all dream batches of a round together: one sum a step, fewer round trips"),
    ] = False
    dream_steps: Annotated[Natural | None, told("global steps for each batch (R)")] = None
    label_last_step: Annotated[
        bool,
        told("fast: the broadcast of the last step also asks for labels, which saves one request"),
    ] = False
    dream_optimizer: Annotated[
        Literal["adam", "avg", "fedadam"],
        told("how the server moves pixels; avg: by the mean of the clients' moves"),
    ] = "adam"
    dream_lr: Annotated[
        StepSize | None, told("step size on pixels, in scaled pixels; with avg a factor")
    ] = None
    local_steps: Annotated[
        int, Meta(ge=1, le=64), told("steps of every client on its own copy of the dreams (M)")
    ] = 1
    local_size: Annotated[
        Size, told("size of such a step where a gradient equals the clip, in scaled pixels")
    ] = 0.1
    bits: Annotated[Bits, told("bits of one quantized gradient coordinate")] = 4
    entropy_weight: Annotated[Weight, told("weight of the predictions' entropy; 0: off")] = 1.0
    bn_weight: Annotated[
        Weight | None, told("weight of R_bn, the distance to BatchNorm statistics; 0: off")
    ] = None
    statistics_momentum: Annotated[
        Decay | None, told("share of earlier dreams in the statistics of R_bn")
    ] = None
    balance_weight: Annotated[Weight, told("weight of class balance; 0: off")] = 1.0
    prior_correction: Annotated[
        Fraction | None,
        told("how much of their class frequencies clients remove from their logits"),
    ] = None
    adaptive: Annotated[
        Literal["none", "jsd", "kl"],
        told("R_adv: seek dreams on which the server's student disagrees (adaptive teaching)"),
    ] = "none"
    adaptive_weight: Annotated[Size, told("weight of R_adv")] = 1.0
    adaptive_start: Annotated[Positive, told("first round with R_adv")] = 2
    adaptive_bits: Annotated[
        Bits, told("bits of the gradient with respect to one logit of the student")
    ] = 8
    tv_weight: Annotated[Weight, told("weight of total variation (at the server); 0: off")] = 0.0
    l2_weight: Annotated[Weight, told("weight of the L2 prior (at the server); 0: off")] = 0.0
    latent: Annotated[Channels, told("fast: numbers in a latent vector")] = 64
    generator_width: Annotated[Pixels, told("fast: channels of the generator")] = 32
    generator_lr: Annotated[StepSize, told("fast: Adam's step size on the generator")] = 5e-3
    latent_lr: Annotated[StepSize, told("fast: Adam's step size on latent vectors")] = 1.5e-2
    meta: Annotated[
        Literal["reptile", "fomaml"],
        told("fast: how the meta-generator follows the generator of a batch"),
    ] = "reptile"
    meta_lr: Annotated[StepSize, told("fast: Adam's step size on the meta-generator")] = 1e-2
    generator_decay: Annotated[Weight, told("fast: weight decay of the meta-generator")] = 1e-4
    generator_average: Annotated[
        Decay,
        told("fast: decay of the running average of the meta-generator that batches start from"),
    ] = 0.0
    generator_norm: Annotated[
        Size, told("fast: the gradient of a batch's generator is clipped to this norm")
    ] = 10.0
    generator_reset: Annotated[
        Natural,
        told("fast: before this round the generator's first layer is drawn anew; 0: never"),
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """How participants learn from dreams and from their own data."""

    labels: Annotated[
        Literal["probabilities", "logits"],
        told("what is averaged: probabilities at the KD temperature, or logits"),
    ] = "probabilities"
    label_weighting: Annotated[
        Literal["equal", "confidence"],
        told("clients count equally, or by their confidence at each dream"),
    ] = "equal"
    weights: Annotated[
        Literal["equal", "examples"],
        told("clients count equally, or by how many examples they have (see SECURITY.md)"),
    ] = "equal"
    weight_cap: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_INPUT)] | None,
        told("most examples of a client that count (default: four even shares)"),
    ] = None
    label_bits: Annotated[Bits, told("bits of one quantized label")] = 8
    label_clip: Annotated[float, Meta(gt=0, le=1e6), told("public range of a logit")] = 20.0
    acquisition: Annotated[
        Literal["joint", "two-stage"],
        told("distil and learn locally together, or one after the other"),
    ] = "joint"
    kd_temperature: Annotated[Temperature, told("distillation temperature")] = 4.0
    kd_epochs: Annotated[Natural, told("distillation epochs over the buffer, each time")] = 20
    kd_period: Annotated[Positive, told("distil in every k-th round; this is k")] = 1
    kd_batch: Annotated[Positive, told("dreams in a distillation step")] = 128
    dream_augment: Annotated[
        Literal["none", "crop", "flip-crop"],
        told("random changes to the dreams, drawn anew in every distillation epoch"),
    ] = "none"
    buffer: Annotated[Positive, told("dream batches that are kept, first in first out")] = 4
    kd_statistics: Annotated[
        Literal["update", "keep"],
        told("whether dreams change BatchNorm's running statistics of clients; keep: they do not"),
    ] = "update"
    learning_rate: Annotated[StepSize, told("the optimizer's step size on models")] = 3e-3
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd"],
        told("how clients and student move their models; sgd has Nesterov momentum 0.9"),
    ] = "adam"
    weight_decay: Annotated[Weight, told("weight decay of the optimizer")] = 0.0
    schedule: Annotated[
        Literal["constant", "cosine"],
        told("of the step size over the rounds; cosine: down to 0 along half a cosine"),
    ] = "constant"
    augment: Annotated[
        Literal["none", "crop", "flip-crop", "randaugment"],
        told("random changes to local pictures; randaugment: flip-crop and two operations more"),
    ] = "none"
    local_loss: Annotated[
        Literal["cross-entropy", "balanced"],
        told("balanced: corrected for how many examples of each class a client has"),
    ] = "cross-entropy"
    batch: Annotated[int, Meta(ge=2, le=_MANY), told("local examples in a step (without DP)")] = 32
    warmup_epochs: Annotated[Natural, told("local epochs before the first round (without DP)")] = 20
    local_epochs: Annotated[
        Natural, told("local epochs in a round besides the joint steps (without DP)")
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureConfig:
    """How sums are protected."""

    secure: Annotated[bool, told("aggregate under masks; --no-secure sums in the clear")] = True
    threat_model: Annotated[
        Literal["semi-honest", "malicious"],
        told(
            "what the server may do; malicious: deviate from the protocol, which takes signed "
            "messages and one more round trip"
        ),
    ] = "semi-honest"
    threshold: Annotated[
        Positive | None, told("clients that must stay (default: floor(2n/3) + 1)")
    ] = None
    key_steps: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None,
        told("steps that one key exchange prepares (default: all steps of one synthesis)"),
    ] = None
    rejoin: Annotated[
        bool,
        told("malicious: a client that missed a step may return before the next key exchange"),
    ] = False
    dropout: Annotated[
        Fraction, told("probability that a client fails in one step, and in one key exchange")
    ] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """Differential privacy."""

    dp_eps: Annotated[Size | None, told("total epsilon of a client; turns DP on")] = None
    dp_unit: Annotated[
        Literal["example", "client"],
        told("who is protected: one training example, or one client with all its data"),
    ] = "example"
    accept_low_utility: Annotated[
        bool, told("run --dp-unit client although the predicted noise is larger than the labels")
    ] = False
    dp_delta: Annotated[float, Meta(gt=0, lt=1), told("delta")] = 1e-5
    dp_clip: Annotated[Size, told("L2 clip of one example's gradient")] = 0.5
    dp_batch: Annotated[
        Positive | None,
        told("expected examples in a private step (default: an even share, at most 512)"),
    ] = None
    dp_steps: Annotated[Positive, told("private steps of a client in the whole run")] = 40
    dp_lr: Annotated[
        StepSize | None,
        told(
            "step size of private SGD (default: by its noise z, min(2, 8 / z); with class means "
            "min(1, 4 / z))"
        ),
    ] = None
    dp_warmup: Annotated[
        Fraction, told("part of the private steps taken before the first round")
    ] = 1.0
    statistics_eps: Annotated[
        Weight | None,
        told(
            "part of --dp-eps for class means, which all clients release together, under masks and "
            "with noise from every client (default: min(4, 0.9 * --dp-eps)); 0: none"
        ),
    ] = None
    statistics_weight: Annotated[
        Weight, told("weight of the server's term that keeps dreams near the class means")
    ] = 0.0
    secure_noise: Annotated[
        bool,
        told(
            "DP-SGD in exact integers, with discrete Gaussian noise from AES-CTR; full batches only"
        ),
    ] = False
    dp_noise: Annotated[
        Literal["skellam", "gaussian"],
        told("integer noise that clients add to sums before they mask them"),
    ] = "skellam"
    noise_colluders: Annotated[
        Natural | None,
        told(
            "clients whose share of the noise the server may know (default: 1; malicious: as many "
            "as may collude)"
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where and how the run is computed."""

    device: Annotated[Literal["auto", "cpu", "cuda"], told("where tensors live")] = "auto"
    precision: Annotated[
        Literal["float32", "bf16"],
        told("numbers in the models' forward passes; what is quantized and sent is always float32"),
    ] = "float32"
    channels_last: Annotated[
        bool, told("store features with the channels innermost: faster convolutions")
    ] = True
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**63 - 1)] | None,
        told(
            "seed of the run (default 0). Given explicitly under DP it also seeds the noise: "
            "for experiments only"
        ),
    ] = None
